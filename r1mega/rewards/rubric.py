"""The rubric: which rewards an answer has, what they are worth together, and what becomes of odd cases.

    rubric = Rubric({"accuracy": Accuracy(), "format": Format(weight=0.5)}, truncated="zero")
    verdicts = rubric.judge(prompt, completions, step)      # the rules', here and now; `rewards.judges` asks a pool
    groups, counts = scored_by_models(mesh, groups, rubric, ...)  # the models' (`trainer.scoring`), before the update

A verdict's reward is the sum of weight x value over the rewards asked, weights being those of the step. One that
failed makes the verdict failed, one that cannot judge makes it unscorable: neither is ever a zero, and such an answer
enters no baseline. One of weight 0 is only measured: where it says nothing, its part is not there, and is counted.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from r1mega.errors import ConfigError
from r1mega.rewards.endpoint_reward import EndpointReward
from r1mega.rewards.reward import Answer, ModelReward, Reward, RuleReward, Score, ToRead, Unread, answer_of, failed
from r1mega.samples import Completion, Document, Group, Prompt, Verdict, VerdictStatus

Truncated = Literal["zero", "mask", "judge"]


@dataclass(frozen=True)
class Rubric:
    """Rewards by name, and what an answer cut at the length limit is worth."""

    rewards: Mapping[str, Reward]
    """Of a run (`Reward.of_run`), where any setting counts from its end or follows its length limit."""
    truncated: Truncated
    """zero: it scores 0 throughout; mask: it is unscorable and leaves the group; judge: it is judged as it stands."""

    def judge(self, prompt: Prompt, completions: Sequence[Completion], step: int) -> tuple[Verdict, ...]:
        """The rules' verdicts of all answers to one question, after `step` optimiser steps.

        Where models or endpoints are asked as well, a scored verdict is as yet without their parts.

        Raises:
            ConfigError: the question names something that there is not, such as an unknown verifier.
        """
        return self.judge_answers(prompt, [answer_of(prompt, completion) for completion in completions], step)

    def judge_answers(self, prompt: Prompt, answers: Sequence[Answer], step: int) -> tuple[Verdict, ...]:
        """The rules' verdicts of answers as rules see them. Raises as `judge`."""
        return tuple(self._judge(prompt, answer, answers, step) for answer in answers)

    def _judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer], step: int) -> Verdict:
        if (settled := self.settled(prompt, answer, step)) is not None:
            return settled
        rules = self.rules(prompt, step)
        scores = {name: score_of(name, rule, prompt, answer, group) for name, rule in rules.items()}
        return self.verdict(scores, step)

    def settled(self, prompt: Prompt, answer: Answer, step: int) -> Verdict | None:
        """The verdict of an answer of which no rule is asked."""
        asked = [name for name, reward in self.rewards.items() if reward.asked(prompt, step)]
        if not asked:
            return Verdict(VerdictStatus.UNSCORABLE, reason=f"no reward is for {prompt.domain} at step {step}")
        if answer.truncated and self.truncated == "mask":
            return Verdict(VerdictStatus.UNSCORABLE, reason="cut at the length limit")
        if answer.truncated and self.truncated == "zero":
            return Verdict(VerdictStatus.SCORED, 0.0, dict.fromkeys(asked, 0.0), "cut at the length limit")
        return None

    def rules(self, prompt: Prompt, step: int) -> dict[str, RuleReward]:
        """The rules that are asked of answers to `prompt` after `step` optimiser steps."""
        return {n: r.at(step) for n, r in self.rewards.items() if isinstance(r, RuleReward) and r.asked(prompt, step)}

    def endpoints(self, prompt: Prompt, step: int) -> dict[str, EndpointReward]:
        """The rewards that an endpoint is asked for of answers to `prompt` after `step` optimiser steps."""
        return {n: r for n, r in self.rewards.items() if isinstance(r, EndpointReward) and r.asked(prompt, step)}

    def verdict(self, scores: "Mapping[str, Score | ConfigError]", step: int) -> Verdict:
        """What scores of rules (`score_of`) and endpoints come to with the weights after `step` optimiser steps.

        Raises a ConfigError that is one of them.
        """
        for score in scores.values():
            if isinstance(score, ConfigError):
                raise score
        found = {name: score for name, score in scores.items() if isinstance(score, Score)}
        return self._with(Verdict(VerdictStatus.SCORED), found, step)

    # ---- models ---------------------------------------------------------------------------------------------

    def models(self, step: int) -> dict[str, ModelReward]:
        """The rewards that a model gives after `step` optimiser steps to any question: the same on all ranks."""
        return {n: m for n, m in self.rewards.items() if isinstance(m, ModelReward) and step >= m.begins()}

    def unread(
        self, name: str, groups: Sequence[Group], step: int
    ) -> dict["Place", Document | ToRead | Score | Unread]:
        """What the model of this name has to read: of every answer that it is for and that the rules have scored."""
        model = self.models(step)[name]
        asked = {
            (i, j): (group.prompt, completion)
            for i, group in enumerate(groups)
            if model.asked(group.prompt, step)
            for j, (completion, verdict) in enumerate(zip(group.completions, group.verdicts, strict=True))
            if verdict.scored and name not in verdict.parts
        }
        return dict(zip(asked, model.documents(list(asked.values())), strict=True))

    def read(
        self, groups: Sequence[Group], found: Mapping[str, Mapping["Place", Score | Unread]], step: int
    ) -> list[Group]:
        """The groups with the models' scores, at their weights after `step` optimiser steps, in their verdicts.

        Args:
            found: of every model by name. What an answer without a score is worth is settled here, by the answers
                alone whose verdicts stand: one that failed must change nothing for the others.
        """
        lost = {
            place
            for name, of_model in found.items()
            for place, one in of_model.items()
            if isinstance(one, Score) and one.status is not VerdictStatus.SCORED and self._adds(name, step)
        }
        scores = {name: self._settled_by(name, of_model, lost) for name, of_model in found.items()}
        return [
            replace(
                group,
                verdicts=tuple(
                    self._with(verdict, mine, step)
                    if (mine := {n: of_model[i, j] for n, of_model in scores.items() if (i, j) in of_model})
                    else verdict
                    for j, verdict in enumerate(group.verdicts)
                ),
            )
            for i, group in enumerate(groups)
        ]

    def _settled_by(
        self, name: str, found: Mapping["Place", Score | Unread], lost: Collection["Place"]
    ) -> dict["Place", Score]:
        model = self.rewards[name]
        assert isinstance(model, ModelReward)
        scores = ((place, one) for place, one in found.items() if isinstance(one, Score) and place not in lost)
        values = [score.value for _, score in scores if score.status is VerdictStatus.SCORED]
        return {place: model.unread(one, values) if isinstance(one, Unread) else one for place, one in found.items()}

    def _with(self, verdict: Verdict, scores: Mapping[str, Score], step: int) -> Verdict:
        """A scored verdict and more scores as one."""
        for status in (VerdictStatus.FAILED, VerdictStatus.UNSCORABLE):
            if reasons := [s.reason for name, s in scores.items() if s.status is status and self._adds(name, step)]:
                return Verdict(status, reason="; ".join(reasons))
        parts = {**verdict.parts, **{n: s.value for n, s in scores.items() if s.status is VerdictStatus.SCORED}}
        reward = sum(self.rewards[name].weight.at(step) * value for name, value in parts.items())
        reasons = [verdict.reason, *(score.reason for score in scores.values())]
        unmeasured = (*verdict.unmeasured, *(name for name in scores if name not in parts))
        return Verdict(VerdictStatus.SCORED, reward, parts, "; ".join(filter(None, reasons)), unmeasured)

    def _adds(self, name: str, step: int) -> bool:
        """Whether a reward adds anything; one that is only measured must not cost the answer its verdict."""
        return self.rewards[name].weight.at(step) != 0


Place = tuple[int, int]
"""Of an answer: index of its group, index in it."""


def score_of(
    name: str, rule: RuleReward, prompt: Prompt, answer: Answer, group: Sequence[Answer]
) -> Score | ConfigError:
    """What a rule says of an answer; a rule that raises, or gives no finite number, has failed.

    An error of the config is returned, so that it comes back from another process as it is. Raises MemoryError.
    """
    try:
        score = rule.judge(prompt, answer, group if rule.whole_group else ())
    except ConfigError as error:
        return error
    except MemoryError:
        raise
    except Exception as error:  # a verifier is foreign code and may raise anything
        return failed(f"reward {name} of a question of {prompt.verifier} raised {type(error).__name__}: {error}")
    if score.status is VerdictStatus.SCORED and not math.isfinite(score.value):
        return failed(f"reward {name} of a question of {prompt.verifier} gave {score.value}")
    return score
