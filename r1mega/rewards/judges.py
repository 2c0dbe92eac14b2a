"""A rubric's rules, asked in worker processes, and its endpoints, asked over the network: verdicts as futures.

    with Pool(preloaded=preloaded(prompts)) as pool, connected(rubric.rewards, run_dir.path) as callers:
        judges = Judges(pool, callers)
        verdicts = judges.judge(rubric, prompt, completions, step)      # at once; the caller goes on
        ...
        verdicts.result()

Each rule is asked of each answer in a task of its own, so that an answer that breaks one rule is judged by the others
as any other. What the answer itself causes (too much time or memory, the end of its worker beside a control task that
passes) is 0 with the reason; what our side causes is failed.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from r1mega.data.sources.families import FAMILIES
from r1mega.errors import ConfigError
from r1mega.rewards.callers import Callers
from r1mega.rewards.gathering import gathered
from r1mega.rewards.pool import Pool, TaskOutcome
from r1mega.rewards.reward import Answer, Reward, RuleReward, Score, answer_of, failed, scored
from r1mega.rewards.rubric import Rubric, score_of
from r1mega.rewards.worker import PRELOADED
from r1mega.samples import Completion, Prompt, Verdict, VerdictStatus


def preloaded(verifiers: Iterable[str], rewards: Mapping[str, Reward] = MappingProxyType({})) -> tuple[str, ...]:
    """What workers import before they judge answers to questions of these verifiers by these rewards."""
    library = ("reasoning_gym.factory",) if any(name in FAMILIES for name in verifiers) else ()
    more = [name for reward in rewards.values() if isinstance(reward, RuleReward) for name in reward.imports]
    return (*PRELOADED, "r1mega.rewards.registry", *library, *more)


@dataclass
class Judges:
    """Rules in a pool, and connections to endpoints."""

    pool: Pool
    callers: Callers = field(default_factory=Callers)
    _ended: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def take_ended(self) -> int:
        """How many judgements were 0 because their answer used too much or ended its worker; counted from 0 again."""
        with self._lock:
            ended, self._ended = self._ended, 0
        return ended

    def take_figures(self) -> dict[str, float]:
        """What endpoints were asked since the last call."""
        return self.callers.take_figures()

    def judge(
        self, rubric: Rubric, prompt: Prompt, completions: Sequence[Completion], step: int
    ) -> Future[tuple[Verdict, ...]]:
        """`Rubric.judge`, in the pool, and what endpoints say; what the former raises, the future does."""
        return self.judge_answers(rubric, prompt, [answer_of(prompt, one) for one in completions], step)

    def judge_answers(
        self, rubric: Rubric, prompt: Prompt, answers: Sequence[Answer], step: int
    ) -> Future[tuple[Verdict, ...]]:
        """`Rubric.judge_answers`, as `judge`."""
        asked = [self.judge_one(rubric, prompt, answer, answers, step) for answer in answers]
        return gathered(asked, lambda found: tuple(verdict for verdict, _ in found))

    def judge_one(
        self, rubric: Rubric, prompt: Prompt, answer: Answer, group: Sequence[Answer], step: int
    ) -> Future[tuple[Verdict, float]]:
        """One answer's verdict, and the seconds that its rules took. The future raises as `judge`'s."""
        if (settled := rubric.settled(prompt, answer, step)) is not None:
            return gathered([], lambda _: (settled, 0.0))
        rules, endpoints = rubric.rules(prompt, step), rubric.endpoints(prompt, step)
        if missing := [name for name in endpoints if name not in self.callers]:
            raise ConfigError(f"rewards.{missing[0]}: an endpoint gives it, and nobody here has a connection to one")
        in_pool = [
            self.pool.submit(
                score_of, name, rule, prompt, answer, group if rule.whole_group else (), limits=rule.limits(prompt)
            )
            for name, rule in rules.items()
        ]
        outside = [reward.ask(self.callers[name], prompt, answer) for name, reward in endpoints.items()]

        def verdict(both: "list[list[Any]]") -> tuple[Verdict, float]:
            outcomes, said = both
            scores = {name: self._score(name, found) for name, found in zip(rules, outcomes, strict=True)}
            scores |= {name: _named(name, score) for name, score in zip(endpoints, said, strict=True)}
            return rubric.verdict(scores, step), sum(outcome.seconds for outcome in outcomes)

        return gathered([gathered(in_pool, list[Any]), gathered(outside, list[Any])], verdict)

    def _score(self, name: str, outcome: TaskOutcome) -> Score | ConfigError:
        if outcome.status == "done":
            return outcome.value
        if outcome.status == "failed":
            return failed(f"reward {name}: {outcome.reason}")
        with self._lock:
            self._ended += 1
        return scored(0.0, f"{name}: {outcome.reason}")


def _named(name: str, score: Score) -> Score:
    """An endpoint's score, with the reward's name where it says why there is none."""
    if score.status is VerdictStatus.SCORED:
        return score
    return replace(score, reason=f"reward {name}: {score.reason}")
