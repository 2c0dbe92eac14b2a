"""Prompts in, judged groups out as they complete, journalled: what a rollout and an evaluation ask of an engine.

groups = collect(engine, requests, params, version=step, judge=partial(judged, judges, rubric, step))

source = GroupSource(engine, journal, prompts, ...)     # rank 0; `NoGroups` elsewhere
rollout = source.next(step)
...the samples are with the ranks that learn from them...
source.handed_over()
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from r1mega.data.mixture import Stream
from r1mega.diagnostics.rollout import rollout_metrics, transcripts
from r1mega.errors import RolloutError
from r1mega.rewards.failures import Failures
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judges import Judges
from r1mega.rewards.rubric import Rubric
from r1mega.rollout.engine import Engine, Request, SamplingParams, derived_seed
from r1mega.rollout.journal import Journal
from r1mega.rollout.replay import JournalledEngine
from r1mega.runtime import files
from r1mega.runtime.progress import Stopwatch
from r1mega.samples import Completion, Group, Prompt

log = logging.getLogger(__name__)

MAX_EMPTY_ROLLOUTS = 10
"""Rollouts in a row that leave nothing to learn from before the run gives up."""

J = TypeVar("J")
Judge = Callable[[Prompt, tuple[Completion, ...]], Future[J]]
"""What will become of all answers to one prompt: a `Group`, or the grades of an evaluation."""
Breakable = Callable[[], AbstractContextManager[None]]
"""Makes what is entered to wait for something that a signal may break off (`Interrupt.at_once`)."""
Say = Callable[[str, str], None]
"""Tells people what is waited for, and what has come of it (`progress.Bar.say`)."""


def collect(
    engine: Engine,
    requests: Sequence[Request],
    params: SamplingParams,
    *,
    version: int,
    judge: Judge[J],
    on_judged: Callable[[int, J], None] = lambda index, judged: None,
    breakable: Breakable = nullcontext,
) -> list[J]:
    """Ask, and have each request's answers judged when they are all there, while others are still being sampled.

    Args:
        engine: asked once; where it is a `JournalledEngine`, answers are journalled before they are judged.
        version: of the weights that answer.
        judge: called once a request, in the thread that samples; what it returns must not keep that thread.
        on_judged: called in that thread with a request's index and what became of it, in the order in which answers
            come.
        breakable: entered while nothing is left but to wait for judgements.

    Returns:
        What became of each request, in the requests' order.

    Raises: as `Engine.generate` and `judge`'s futures.
    """
    collected = _Collected(requests, judge, on_judged)
    engine.generate(requests, params, version=version, on_answer=collected.take)
    with breakable():
        collected.wait()
    return [collected.judged[index] for index in range(len(requests))]


class _Collected(Generic[J]):
    """What has come so far of one `collect`."""

    def __init__(self, requests: Sequence[Request], judge: Judge[J], on_judged: Callable[[int, J], None]) -> None:
        self._requests, self._judge, self._on_judged = requests, judge, on_judged
        self._open: deque[tuple[int, Future[J]]] = deque()
        """Requests that are being judged, in the order in which their answers came."""
        self.judged: dict[int, J] = {}

    def take(self, index: int, completions: tuple[Completion, ...]) -> None:
        self._open.append((index, self._judge(self._requests[index].prompt, completions)))
        while self._open and self._open[0][1].done():
            self._take_first()

    def wait(self) -> None:
        while self._open:
            self._take_first()

    def _take_first(self) -> None:
        index, future = self._open[0]
        self.judged[index] = future.result()
        self._open.popleft()
        self._on_judged(index, self.judged[index])


def judged(
    judges: Judges, rubric: Rubric, step: int, prompt: Prompt, completions: tuple[Completion, ...]
) -> Future[Group]:
    """All answers to one prompt, with the rules' verdicts after `step` optimiser steps. Raises as `Rubric.judge`."""
    verdicts = judges.judge(rubric, prompt, completions, step)
    return gathered([verdicts], lambda found: Group(prompt, completions, found[0]))


class Count:
    """Tells people how many answers have come and are judged. An `on_judged` of `collect`."""

    def __init__(self, say: Say, what: str, num_requests: int, n: int) -> None:
        """n: answers to each request."""
        self._say, self._what = say, what
        self._n, self._come, self._total = n, 0, num_requests * n
        say(what, f"waiting for the first of {self._total:,} answers")

    def __call__(self, index: int, judged: object) -> None:
        self._come += self._n
        self._say(self._what, f"{self._come:,} of {self._total:,} answers")


@dataclass(frozen=True)
class Rollout:
    """What was sampled to learn from at one step's weights.

    `Rollout(groups=(Group(...), ...), metrics={"rollout/answers": 8192.0, ...}, seconds=210.0)`
    """

    groups: tuple[Group, ...] = ()
    """One a prompt; none on ranks that do not sample."""
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of these groups, and of those that were tried before and left too little."""
    seconds: float = 0.0
    """Of sampling, judging and pushing."""


class GroupSource:
    """What the loop takes its rollouts from: the next prompts, each with G judged answers of the present weights."""

    def __init__(
        self,
        engine: JournalledEngine,
        journal: Journal,
        prompts: Stream,
        params: Callable[[int], SamplingParams],
        *,
        group_size: int,
        num_prompts: int,
        judge: "Callable[[int, Prompt, tuple[Completion, ...]], Future[Group]]",
        failures: Failures,
        figures: Callable[[Sequence[Group]], Mapping[str, float]],
        num_usable: Callable[[int, Sequence[Group]], int],
        least: int,
        seed: int,
        folder: Path,
        say: Say,
        breakable: Breakable,
    ) -> None:
        """Nothing is asked yet.

        Args:
            journal: the engine's.
            params: how answers are drawn after so many steps.
            group_size: G.
            num_prompts: of one rollout.
            judge: has all answers to a prompt judged by the rules, after so many steps; what a model scores is added
                where all ranks take part.
            failures: stops the run where too many verdicts fail.
            figures: more of a rollout's groups than `rollout_metrics` has.
            num_usable: how many answers of some groups, sampled after so many steps, can be learnt from.
            least: fewer than these are no rollout: other prompts are taken.
            seed: the run's.
            folder: where people read the answers, a file step_N.jsonl a step.
            breakable: see `collect`.
        """
        self._judge, self._failures, self._figures, self._breakable = judge, failures, figures, breakable
        self._engine, self._journal, self._prompts, self._params = engine, journal, prompts, params
        self._group_size, self._num_prompts = group_size, num_prompts
        self._num_usable, self._least = num_usable, least
        self._seed, self._folder, self._say = seed, folder, say
        self._passed: list[tuple[int, int]] = []
        self._place: dict[str, Any] | None = None
        """Among the prompts, before the rollout that is not yet handed over."""

    def next(self, step: int) -> Rollout:
        """Groups sampled at the weights of `step`.

        Raises:
            RolloutError: `MAX_EMPTY_ROLLOUTS` in a row left too little.
            RewardError: as `Failures.see`.
        """
        self._place = self._prompts.state()
        for since, rollouts in self._passed:
            for _ in range(rollouts if since == step else 0):
                self._prompts.take(self._num_prompts, step)
        tried, seconds = list[Group](), 0.0
        for _ in range(MAX_EMPTY_ROLLOUTS):
            with Stopwatch() as watch:
                groups = self._groups(step)
            tried += groups
            files.write_jsonl(self._folder / f"step_{step}.jsonl", transcripts(step, tried))
            self._failures.see(step, groups)
            seconds += watch.seconds
            usable = self._num_usable(step, groups)
            if usable >= self._least:
                return Rollout(tuple(groups), self._metrics(tried, usable), seconds)
            log.warning("step %d: %d usable answers in the rollout; taking other prompts", step, usable)
        raise RolloutError(
            f"step {step}: {MAX_EMPTY_ROLLOUTS} rollouts in a row left fewer usable answers than the "
            f"{self._least} mini-batches; objective.constant_groups and objective.truncated decide what is usable, "
            f"{self._folder} holds the answers"
        )

    def _groups(self, step: int) -> list[Group]:
        asked = [
            Request(p, self._group_size, derived_seed(self._seed, "rollout", step, p.id))
            for p in self._prompts.take(self._num_prompts, step)
        ]
        count = Count(self._say, "rollout", len(asked), self._group_size)
        judge, breakable = partial(self._judge, step), self._breakable
        return collect(
            self._engine, asked, self._params(step), version=step, judge=judge, on_judged=count, breakable=breakable
        )

    def _metrics(self, tried: Sequence[Group], usable: int) -> dict[str, float]:
        compared = self._engine.comparison
        again = {"replay/tokens": compared.tokens, "replay/equal_tokens": compared.equal_tokens}
        return {
            **rollout_metrics(tried),
            **self._figures(tried),
            # Not the answers without a verdict, of constant groups that are dropped, or of prompts in whose place
            # others were taken.
            "rollout/learnt_from": float(usable),
            "rollout/replayed_requests": self._engine.replayed,
            **(again if compared.tokens else {}),
        }

    def handed_over(self) -> None:
        """The last rollout's samples are with the ranks that learn from them, and in every checkpoint from now on."""
        self._place = None

    def state(self, step: int) -> dict[str, Any]:
        """For `restore`, at the policy's present step: to go on with the very next rollout, or to repeat one that was
        broken off; JSON."""
        return {"prompts": self._place or self._prompts.state(), "journal": self._journal.state(step)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises as `Stream.restore` and `Journal.check`."""
        self._prompts.restore(state["prompts"])
        self._journal.check(state["journal"])

    def leave_out(self, ids: Iterable[str]) -> None:
        """Ask the questions of these ids no more, from the next rollout on."""
        self._prompts.leave_out(ids)

    def pass_over(self, step: int, rollouts: int) -> None:
        """Let the rollout at a step's weights ask what comes so many rollouts further on. Told again where a run
        resumes: `state` is of the place before."""
        self._passed.append((step, rollouts))

    def forget_after(self, step: int) -> None:
        """Remove journalled answers of the weights after a step, which the run leaves."""
        self._journal.drop_after(step)

    def forget_before(self, step: int) -> None:
        """Remove journalled answers of the weights before a step, which no checkpoint that is kept needs."""
        self._journal.prune(step)


class NoGroups:
    """`GroupSource` on the ranks that do not sample."""

    def next(self, step: int) -> Rollout:
        return Rollout()

    def handed_over(self) -> None: ...

    def state(self, step: int) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def leave_out(self, ids: Iterable[str]) -> None: ...

    def pass_over(self, step: int, rollouts: int) -> None: ...

    def forget_after(self, step: int) -> None: ...

    def forget_before(self, step: int) -> None: ...
