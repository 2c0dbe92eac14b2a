"""The rubric of R1-Zero: weighted sum of accuracy and format (report 2.2.2), and what becomes of odd cases."""

from typing import Literal

from r1mega.config import schema
from r1mega.data.tasks import family
from r1mega.rewards.accuracy import is_right
from r1mega.rewards.format import is_formatted
from r1mega.samples import Completion, Prompt, Verdict, VerdictStatus

Truncated = Literal["zero", "mask", "judge"]


def judge(prompt: Prompt, completion: Completion, rewards: schema.Rewards, truncated: Truncated) -> Verdict:
    """Judge one answer: `reward` = sum of weight x part, where accuracy and format are each 0 or 1.

    An answer cut at the length limit scores 0 (`zero`), leaves the group (`mask`: unscorable), or is judged as
    it stands (`judge`). A prompt without a truth is unscorable. A verifier that raises makes the verdict failed,
    never a zero: its fault must not train the model. Raises ConfigError on an unknown task.
    """
    family(prompt.task)
    if completion.truncated and truncated == "mask":
        return Verdict(VerdictStatus.UNSCORABLE, reason="cut at the length limit")
    if completion.truncated and truncated == "zero":
        parts = {"accuracy": 0.0, "format": 0.0}
        return Verdict(VerdictStatus.SCORED, 0.0, parts, "cut at the length limit")
    if not prompt.truth.strip():
        return Verdict(VerdictStatus.UNSCORABLE, reason="the prompt has no reference answer")
    text = prompt.prefill + completion.text
    try:
        accuracy = float(is_right(prompt, text))
    except Exception as error:  # a verifier is foreign code and may raise anything
        reason = f"the verifier of {prompt.task} raised {type(error).__name__}: {error}"
        return Verdict(VerdictStatus.FAILED, reason=reason)
    parts = {"accuracy": accuracy, "format": float(is_formatted(text))}
    reward = rewards.accuracy * parts["accuracy"] + rewards.format * parts["format"]
    return Verdict(VerdictStatus.SCORED, reward, parts)
