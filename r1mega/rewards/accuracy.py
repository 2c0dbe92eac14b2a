"""Accuracy: the answer is right by its question's own verifier (report 2.2.2)."""

from collections.abc import Sequence
from typing import Literal

from r1mega.buffers import Int32s
from r1mega.data.question import NO_VERIFIER, Question
from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN
from r1mega.errors import ConfigError
from r1mega.rewards.code import Code
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.reward import Answer, RuleReward, Score, scored, unscorable
from r1mega.rewards.verifiers import VERIFIERS, verifier
from r1mega.rewards.worker import Limits
from r1mega.samples import Prompt


class Accuracy(RuleReward):
    """1 for the right answer where its verifier looks for it, 0 for any other; unscorable where there is no truth."""

    kind: Literal["accuracy"] = "accuracy"
    code: CodeSettings = CodeSettings()
    """Of answers that are programs: what they have to pass, and what they may use."""

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        judged_by = verifier(prompt.verifier)
        if isinstance(judged_by, Code):
            if (fault := judged_by.fault_of(prompt.entry)) is not None:
                return unscorable(fault)
            passed = judged_by.judge(judged_by.find_answer(answer.text), prompt.entry, self.code)
            return scored(passed.value(self.code), passed.reason)
        if not has_truth(prompt):
            return unscorable("the prompt has no reference answer that a rule can judge by")
        return scored(float(is_right(prompt, answer.text)))

    def needed(self, prompt: Prompt) -> Limits:
        return limits_of(prompt)


def limits_of(prompt: Prompt) -> Limits:
    """What its verifier needs to judge an answer."""
    return getattr(VERIFIERS.get(prompt.verifier), "needs", Limits())


def has_truth(prompt: Prompt) -> bool:
    """Whether a rule can judge an answer at all: by a reference answer, or of code by tests. Raises ConfigError."""
    judged_by = verifier(prompt.verifier)
    if isinstance(judged_by, Code):
        return judged_by.fault_of(prompt.entry) is None
    return prompt.verifier != NO_VERIFIER and bool(prompt.truth.strip())


def is_right(prompt: Prompt, text: str) -> bool:
    """Whether the final answer of `text`, in the answer tags or where its verifier looks for it, is right.

    Raises ConfigError on an unknown verifier, and whatever the verifier raises.
    """
    judged_by = verifier(prompt.verifier)
    answer = judged_by.find_answer(text)
    return answer is not None and judged_by.verify(answer, prompt.truth, prompt.entry)


def ends_right(prompt: Prompt, text: str) -> bool:
    """Whether the last thing in `text` that looks like an answer is right, tags or not. Raises as `is_right`.

    For evaluation alone, to tell skill from format: as a reward it would pay for any number written last.
    """
    judged_by = verifier(prompt.verifier)
    return judged_by.verify(judged_by.last_answer(text), prompt.truth, prompt.entry)


def right_and_ends_right(prompt: Prompt, text: str, formatted: bool) -> tuple[bool, bool] | ConfigError:
    """`is_right`, where the answer is in the format, and `ends_right`: what a held-out answer is asked for.

    An error of the config is returned, so that it comes back from another process as it is. Raises else as they do.
    """
    try:
        return formatted and is_right(prompt, text), ends_right(prompt, text)
    except ConfigError as error:
        return error


def can_be_right(question: Question) -> bool:
    """Whether a question's own truth, given back word for word as the answer, is right: otherwise none ever is.

    Of a question of code: whether its tests can be read; nothing is run. Raises ConfigError on an unknown verifier.
    One that raises has no right answer either.
    """
    judged_by = verifier(question.verifier)
    if isinstance(judged_by, Code):
        return judged_by.fault_of(question.entry) is None
    prompt = Prompt(question.id, question.verifier, question.text, question.truth, Int32s(), "", question.entry)
    try:
        return is_right(prompt, f"{ANSWER_OPEN}{question.truth}{ANSWER_CLOSE}")
    except ConfigError:
        raise
    except Exception:  # foreign code
        return False
