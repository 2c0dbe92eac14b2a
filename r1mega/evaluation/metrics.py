"""An evaluation's figures: pass@1 with its interval (report 2.4), and beside it format, length and style.

Each figure with an interval is a mean over questions of the mean over a question's scored answers (intervals.py), the
others are shares of the scored answers. An answer that could not be judged is no wrong one: it is counted apart, and
changes none of them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any, get_args

from r1mega.data.settings import AnswerFormat
from r1mega.errors import ConfigError, DataError, RewardError
from r1mega.evaluation.intervals import Interval, interval_of
from r1mega.evaluation.results import QuestionResult, SampleResult
from r1mega.rewards.accuracy import has_truth, limits_of, right_and_ends_right
from r1mega.rewards.format import Style, is_formatted, is_reasoned, style_of
from r1mega.rewards.gathering import gathered
from r1mega.rewards.pool import Pool, TaskOutcome
from r1mega.rewards.verifiers import verifier
from r1mega.runtime.digests import digest_of
from r1mega.samples import Completion, FinishReason, Prompt, VerdictStatus


@dataclass(frozen=True)
class Graded:
    """One answer to a held-out question."""

    prompt_id: str
    strict: bool
    """Right, in the required format, and ended by the model."""
    lenient: bool
    """The last thing in it that looks like an answer is right. Holds wherever strict does."""
    formatted: bool
    """In the required format and ended by the model."""
    truncated: bool
    style: Style
    num_tokens: int
    """Length, the end token included."""
    answer: str | None = None
    """The final answer that its verifier finds, where it is in the required format: nothing else has a vote in
    cons@k."""
    status: VerdictStatus = VerdictStatus.SCORED
    """Whether strict and lenient say anything."""
    reason: str = ""
    """Why they do not, or why an answer that could not be judged is wrong."""


@dataclass(frozen=True)
class StyleShare:
    """How often a style was used and how often it was right."""

    share: float
    lenient: float
    """Accuracy within the style; 0 where the style does not occur."""


@dataclass(frozen=True)
class EvalResult:
    """One evaluation. All shares are of the scored answers, in [0, 1]."""

    num_questions: int
    """With a scored answer."""
    num_answers: int
    """Scored ones."""
    strict: Interval
    """pass@1: right and in the required format."""
    lenient: Interval
    """pass@1 with the answer taken wherever it stands."""
    format: float
    truncated: float
    mean_tokens: float
    works: float
    """Share of answers with a thought in the format's tags, or with worked steps in prose."""
    by_style: Mapping[str, StyleShare]
    unscorable: int = 0
    """Answers to questions without a truth, which are in no other figure."""
    failed: int = 0
    """Answers at which the verifier broke, which are in no other figure either."""

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "EvalResult":
        """Raises DataError when `row` is not what `to_json` writes."""
        try:
            parts = {name: Interval(**row[name]) for name in ("strict", "lenient")}
            by_style = {style: StyleShare(**share) for style, share in row["by_style"].items()}
            return cls(**{**row, **parts, "by_style": by_style})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not the record of an evaluation: {error!r}") from error

    def metrics(self) -> dict[str, float]:
        """The flat `eval/...` keys of metrics.jsonl."""
        return {
            **_with_ends("eval/strict", self.strict),
            **_with_ends("eval/lenient", self.lenient),
            "eval/unscored": 1 - self.num_answers / (self.num_answers + self.unscorable + self.failed),
            "eval/format": self.format,
            "eval/truncated": self.truncated,
            "eval/works": self.works,
            "eval/mean_tokens": self.mean_tokens,
            **{f"eval/share/{style}": share.share for style, share in self.by_style.items()},
        }


def _with_ends(name: str, of: Interval) -> dict[str, float]:
    return {name: of.mean, f"{name}_low": of.low, f"{name}_high": of.high}


FORMATS: Mapping[AnswerFormat, Callable[[str], bool]] = {
    "r1_zero": is_formatted,
    "r1": is_reasoned,
    "any": lambda text: True,
}
"""What an answer's text has to be like to be in the required format (`data.settings.Evaluation.format`)."""


def grade(prompt: Prompt, completion: Completion, required: AnswerFormat = "r1_zero") -> Graded:
    """Judge one answer here: unscorable without a truth, failed where the verifier breaks, which is no wrong answer.

    Raises ConfigError on an unknown verifier.
    """
    asked = _Asked(prompt, completion, required)
    try:
        outcome = TaskOutcome("done", right_and_ends_right(*asked.arguments))
    except Exception as error:  # a verifier is foreign code and may raise anything
        outcome = TaskOutcome("failed", reason=repr(error))
    return asked.graded(outcome)


def grade_in(
    pool: Pool, prompt: Prompt, completion: Completion, required: AnswerFormat = "r1_zero"
) -> Future[Graded]:
    """`grade` in a worker of a pool. An answer that uses too much there, or ends its worker, is wrong."""
    asked = _Asked(prompt, completion, required)
    if not has_truth(prompt):
        return gathered([], lambda _: asked.graded(TaskOutcome("done", (False, False))))
    judged = pool.submit(right_and_ends_right, *asked.arguments, limits=limits_of(prompt))
    return gathered([judged], lambda outcomes: asked.graded(outcomes[0]))


class _Asked:
    """An answer whose verdict is asked for."""

    def __init__(self, prompt: Prompt, completion: Completion, required: AnswerFormat) -> None:
        self._prompt, self._completion = prompt, completion
        self._text = prompt.prefill + completion.text
        self._formatted = FORMATS[required](self._text) and not completion.truncated

    @property
    def arguments(self) -> tuple[Prompt, str, bool]:
        """Of `right_and_ends_right`."""
        return self._prompt, self._text, self._formatted

    def graded(self, outcome: TaskOutcome) -> Graded:
        """The answer with what came of judging it. Raises ConfigError where that is what came."""
        prompt, text = self._prompt, self._text
        if isinstance(outcome.value, ConfigError):
            raise outcome.value
        status, reason = VerdictStatus.SCORED, outcome.reason
        strict, lenient = outcome.value if outcome.status == "done" else (False, False)
        if not has_truth(prompt):
            strict, lenient = False, False
            status, reason = VerdictStatus.UNSCORABLE, "the question has no reference answer"
        elif outcome.status == "failed":
            status = VerdictStatus.FAILED
            reason = f"the verifier of {prompt.verifier} broke on question {prompt.id}: {outcome.reason}"
        answer = verifier(prompt.verifier).find_answer(text) if self._formatted else None
        return Graded(
            prompt.id, strict, lenient, self._formatted, self._completion.truncated, style_of(text),
            self._completion.num_tokens, answer, status, reason,
        )  # fmt: skip


def summarise(graded: Sequence[Graded]) -> EvalResult:
    """The figures of one evaluation.

    Raises:
        DataError: there is no answer.
        RewardError: none could be scored; says what became of the first.
    """
    if not graded:
        raise DataError("no answers to evaluate")
    scored = [answer for answer in graded if answer.status is VerdictStatus.SCORED]
    statuses = [answer.status for answer in graded]
    if not scored:
        raise RewardError(f"none of {len(graded)} answers could be scored; the first: {graded[0].reason}")

    def share(holds: Callable[[Graded], float], among: Sequence[Graded] = scored) -> float:
        return sum(map(holds, among)) / len(among) if among else 0.0

    by_style: dict[str, list[Graded]] = {style: [] for style in get_args(Style)}
    for answer in scored:
        by_style[answer.style].append(answer)
    return EvalResult(
        num_questions=len({answer.prompt_id for answer in scored}),
        num_answers=len(scored),
        strict=interval_of(question_means((a.prompt_id, a.strict) for a in scored)),
        lenient=interval_of(question_means((a.prompt_id, a.lenient) for a in scored)),
        format=share(lambda a: a.formatted),
        truncated=share(lambda a: a.truncated),
        mean_tokens=share(lambda a: a.num_tokens),
        works=share(lambda a: a.style in ("think", "steps")),
        by_style={
            style: StyleShare(len(answers) / len(scored), share(lambda a: a.lenient, answers))
            for style, answers in by_style.items()
        },
        unscorable=statuses.count(VerdictStatus.UNSCORABLE),
        failed=statuses.count(VerdictStatus.FAILED),
    )


def question_means(outcomes: Iterable[tuple[str, float]]) -> list[float]:
    """The mean over each question's outcomes, questions in the order of their first ones."""
    by_question: dict[str, list[float]] = {}
    for question, outcome in outcomes:
        by_question.setdefault(question, []).append(outcome)
    return [math.fsum(values) / len(values) for values in by_question.values()]


def results_of(prompts: Sequence[Prompt], graded: Sequence[Graded]) -> list[QuestionResult]:
    """Graded answers as results.jsonl has them, a row a question: a value is 1 where the answer is strictly right."""
    by_question: dict[str, list[SampleResult]] = {prompt.id: [] for prompt in prompts}
    for answer in graded:
        parts = {"lenient": float(answer.lenient), "format": float(answer.formatted)}
        scored = answer.status is VerdictStatus.SCORED
        by_question[answer.prompt_id].append(
            SampleResult(
                status=answer.status,
                value=float(answer.strict),
                parts=parts if scored else {},
                answer=answer.answer,
                tokens=answer.num_tokens,
                finish=FinishReason.LENGTH if answer.truncated else FinishReason.STOP,
                reason=answer.reason,
            )
        )
    return [
        QuestionResult(
            prompt.id,
            digest_of(prompt.question, prompt.truth),
            tuple(by_question[prompt.id]),
            prompt.domain,
            prompt.source,
        )
        for prompt in prompts
    ]
