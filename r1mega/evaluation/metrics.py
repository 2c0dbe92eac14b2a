"""pass@1 and what stands beside it: format, length, style, and the interval (report 2.4: pass@1 over k answers).

pass@1 is the mean over all k answers to all questions. Its standard error is clustered by question, since k
answers to one question are not k questions: with r the deviations from the mean and Q questions,
SE^2 = Q / (Q - 1) * sum_q (sum_{i in q} r_i)^2 / N^2, which for equal k is the standard error of Q means.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from r1mega.errors import DataError, RewardError
from r1mega.rewards.accuracy import ends_right, is_right
from r1mega.rewards.format import Style, is_formatted, style_of
from r1mega.samples import Completion, Prompt


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


@dataclass(frozen=True)
class Rate:
    """A share of answers with its clustered standard error and 95% interval (normal, cut to [0, 1])."""

    mean: float
    se: float
    low: float
    high: float


@dataclass(frozen=True)
class StyleShare:
    """How often a style was used and how often it was right."""

    share: float
    lenient: float
    """Accuracy within the style; 0 where the style does not occur."""


@dataclass(frozen=True)
class EvalResult:
    """One evaluation. All shares are of the answers, in [0, 1]."""

    num_questions: int
    num_answers: int
    strict: Rate
    """pass@1: right and in the required format."""
    lenient: Rate
    """pass@1 with the answer taken wherever it stands."""
    format: float
    truncated: float
    mean_tokens: float
    works: float
    """Share of answers with a thought in the format's tags, or with worked steps in prose."""
    by_style: Mapping[str, StyleShare]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "EvalResult":
        """Raises DataError when `row` is not what `to_json` writes."""
        try:
            parts = {name: Rate(**row[name]) for name in ("strict", "lenient")}
            by_style = {style: StyleShare(**share) for style, share in row["by_style"].items()}
            return cls(**{**row, **parts, "by_style": by_style})
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not the record of an evaluation: {error!r}") from error

    def metrics(self) -> dict[str, float]:
        """The flat `eval/...` keys of metrics.jsonl."""
        return {
            "eval/strict": self.strict.mean,
            "eval/strict_se": self.strict.se,
            "eval/lenient": self.lenient.mean,
            "eval/lenient_se": self.lenient.se,
            "eval/format": self.format,
            "eval/truncated": self.truncated,
            "eval/works": self.works,
            "eval/mean_tokens": self.mean_tokens,
            **{f"eval/share/{style}": share.share for style, share in self.by_style.items()},
        }


def evaluate(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> EvalResult:
    """Grade `completions` (any number a prompt, any order) and sum them up. Raises as `grade` and `summarise`."""
    by_id = {prompt.id: prompt for prompt in prompts}
    return summarise([grade(by_id[completion.prompt_id], completion) for completion in completions])


def grade(prompt: Prompt, completion: Completion) -> Graded:
    """Judge one answer. Raises RewardError when the verifier breaks: a broken verifier is no wrong answer."""
    text = prompt.prefill + completion.text
    formatted = is_formatted(text) and not completion.truncated
    try:
        strict, lenient = formatted and is_right(prompt, text), ends_right(prompt, text)
    except Exception as error:
        raise RewardError(f"the verifier of {prompt.verifier} broke on question {prompt.id}: {error!r}") from error
    tokens = len(completion.token_ids)
    return Graded(prompt.id, strict, lenient, formatted, completion.truncated, style_of(text), tokens)


def summarise(graded: Sequence[Graded]) -> EvalResult:
    """The figures of one evaluation. Raises DataError when there is no answer."""
    if not graded:
        raise DataError("no answers to evaluate")

    def share(holds: Callable[[Graded], float], among: Sequence[Graded] = graded) -> float:
        return sum(map(holds, among)) / len(among) if among else 0.0

    by_style: dict[str, list[Graded]] = {style: [] for style in get_args(Style)}
    for answer in graded:
        by_style[answer.style].append(answer)
    return EvalResult(
        num_questions=len({answer.prompt_id for answer in graded}),
        num_answers=len(graded),
        strict=clustered_rate([(a.prompt_id, a.strict) for a in graded]),
        lenient=clustered_rate([(a.prompt_id, a.lenient) for a in graded]),
        format=share(lambda a: a.formatted),
        truncated=share(lambda a: a.truncated),
        mean_tokens=share(lambda a: a.num_tokens),
        works=share(lambda a: a.style in ("think", "steps")),
        by_style={
            style: StyleShare(len(answers) / len(graded), share(lambda a: a.lenient, answers))
            for style, answers in by_style.items()
        },
    )


def clustered_rate(outcomes: Sequence[tuple[str, bool]]) -> Rate:
    """Mean of the outcomes with the standard error clustered by question (see the module).

    With one question nothing is known of the spread between questions: se is 0.5, the most that a share can have.
    """
    num = len(outcomes)
    mean = sum(right for _, right in outcomes) / num
    deviation: dict[str, float] = defaultdict(float)
    for question, right in outcomes:
        deviation[question] += right - mean
    clusters = len(deviation)
    if clusters < 2:
        return Rate(mean, 0.5, 0.0, 1.0)
    se = math.sqrt(clusters / (clusters - 1) * sum(d * d for d in deviation.values())) / num
    return Rate(mean, se, max(0.0, mean - 1.96 * se), min(1.0, mean + 1.96 * se))
