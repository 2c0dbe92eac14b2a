"""The rubric: which rewards an answer has, what they are worth together, and what becomes of odd cases.

    rubric = Rubric({"accuracy": Accuracy(), "format": Format(weight=0.5)}, truncated="zero")
    verdicts = rubric.judge(prompt, completions, step)      # the rules', as soon as the answers have come
    groups = scored_by_models(mesh, groups, rubric, ...)    # the models' (`trainer.scoring`), before the update

A verdict's reward is the sum of weight x value over the rewards asked. One that failed makes the verdict failed, one
that cannot judge makes it unscorable: neither is ever a zero, and such an answer enters no baseline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from r1mega.errors import ConfigError
from r1mega.rewards.reward import Answer, ModelReward, Reward, RuleReward, Score, answer_of, failed
from r1mega.samples import Completion, Document, Group, Prompt, Verdict, VerdictStatus

Truncated = Literal["zero", "mask", "judge"]


@dataclass(frozen=True)
class Rubric:
    """Rewards by name, and what an answer cut at the length limit is worth."""

    rewards: Mapping[str, Reward]
    truncated: Truncated
    """zero: it scores 0 throughout; mask: it is unscorable and leaves the group; judge: it is judged as it stands."""

    def judge(self, prompt: Prompt, completions: Sequence[Completion], step: int) -> tuple[Verdict, ...]:
        """The rules' verdicts of all answers to one question, after `step` optimiser steps.

        Where models are asked as well, a scored verdict is as yet without their parts.

        Raises:
            ConfigError: the question names something that there is not, such as an unknown verifier.
        """
        return self.judge_answers(prompt, [answer_of(prompt, completion) for completion in completions], step)

    def judge_answers(self, prompt: Prompt, answers: Sequence[Answer], step: int) -> tuple[Verdict, ...]:
        """The rules' verdicts of answers as rules see them. Raises as `judge`."""
        return tuple(self._judge(prompt, answer, answers, step) for answer in answers)

    def _judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer], step: int) -> Verdict:
        asked = {name: reward for name, reward in self.rewards.items() if reward.asked(prompt, step)}
        if not asked:
            return Verdict(VerdictStatus.UNSCORABLE, reason=f"no reward is for {prompt.domain} at step {step}")
        if answer.truncated and self.truncated == "mask":
            return Verdict(VerdictStatus.UNSCORABLE, reason="cut at the length limit")
        if answer.truncated and self.truncated == "zero":
            return Verdict(VerdictStatus.SCORED, 0.0, dict.fromkeys(asked, 0.0), "cut at the length limit")
        rules = {name: rule for name, rule in asked.items() if isinstance(rule, RuleReward)}
        scores = {name: _score(name, rule, prompt, answer, group) for name, rule in rules.items()}
        return self._with(Verdict(VerdictStatus.SCORED), scores)

    # ---- models ---------------------------------------------------------------------------------------------

    def models(self, step: int) -> dict[str, ModelReward]:
        """The rewards that a model gives after `step` optimiser steps to any question: the same on all ranks."""
        return {n: m for n, m in self.rewards.items() if isinstance(m, ModelReward) and step >= m.from_step}

    def unread(self, name: str, groups: Sequence[Group], step: int) -> dict["Place", Document | Score]:
        """What the model of this name still has to read: of every answer that it is for and that is scored so far."""
        model = self.models(step)[name]
        return {
            (i, j): model.document(group.prompt, completion)
            for i, group in enumerate(groups)
            if model.asked(group.prompt, step)
            for j, (completion, verdict) in enumerate(zip(group.completions, group.verdicts, strict=True))
            if verdict.scored and name not in verdict.parts
        }

    def read(self, name: str, groups: Sequence[Group], scores: Mapping["Place", Score]) -> list[Group]:
        """The groups with a model's scores in their verdicts."""
        return [
            replace(
                group,
                verdicts=tuple(
                    self._with(verdict, {name: scores[i, j]}) if (i, j) in scores else verdict
                    for j, verdict in enumerate(group.verdicts)
                ),
            )
            for i, group in enumerate(groups)
        ]

    def _with(self, verdict: Verdict, scores: Mapping[str, Score]) -> Verdict:
        """A scored verdict and more scores as one."""
        for status in (VerdictStatus.FAILED, VerdictStatus.UNSCORABLE):
            if reasons := [score.reason for score in scores.values() if score.status is status]:
                return Verdict(status, reason="; ".join(reasons))
        parts = {**verdict.parts, **{name: score.value for name, score in scores.items()}}
        reward = sum(self.rewards[name].weight * value for name, value in parts.items())
        reasons = [verdict.reason, *(score.reason for score in scores.values())]
        return Verdict(VerdictStatus.SCORED, reward, parts, "; ".join(filter(None, reasons)))


Place = tuple[int, int]
"""Of an answer: index of its group, index in it."""


def _score(name: str, rule: RuleReward, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
    try:
        return rule.judge(prompt, answer, group if rule.whole_group else ())
    except ConfigError:
        raise
    except Exception as error:  # a verifier is foreign code and may raise anything
        return failed(f"reward {name} of a question of {prompt.verifier} raised {type(error).__name__}: {error}")
