"""Text for a tiny base model: answers in four styles, of which RL asks for one.

A base model that writes all four at random gives GRPO its contrast: answers that think first are right more often
than answers at once, and only two styles carry the tags. The shares are settings. Every document is correct, unless
slips in the worked steps are asked for.
"""

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from r1mega.buffers import Int32s
from r1mega.data.question import Question
from r1mega.data.settings import AnswerStyles
from r1mega.data.sources.reasoning_gym import Task, apportion, draw, family
from r1mega.data.special_tokens import begin
from r1mega.data.template import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    END,
    THINK_CLOSE,
    THINK_OPEN,
    TINY,
    Template,
    render_prompt,
)
from r1mega.data.worked_steps import StepLanguage, in_words, with_slips
from r1mega.errors import ConfigError
from r1mega.samples import Document

Style = Literal["think", "tags", "steps", "plain"]
STYLES: tuple[Style, ...] = get_args(Style)
MOST_EXAMPLES = 2
"""Before a question."""


@dataclass(frozen=True)
class TextDocument:
    """One question and one answer to it."""

    question: str
    prompt: str
    """The question as the template writes it, behind its examples; no bos."""
    answer: str
    """No eos."""
    style: Style
    task: str
    shown: tuple[str, ...] = ()
    """The questions of its examples."""


def write_answer(
    question: Question,
    style: Style,
    languages: Sequence[StepLanguage] = (),
    choose: random.Random | None = None,
    slips: float = 0.0,
) -> str:
    """The answer to `question` in `style`; the styles are those of `AnswerStyles`.

    Args:
        languages: of the words of the steps, drawn for each step by `choose`; none: steps in signs.
        slips: the share of the worked steps that slip, drawn by `choose`; the answer is what they come to.
    """
    steps = family(question.verifier).steps(question.entry["metadata"]) if style in ("think", "steps") else ""
    answer = question.truth
    if steps and slips:
        assert choose is not None, "it is drawn which steps slip"
        steps, end = with_slips(steps, slips, choose)
        answer = str(end)
    if languages:
        assert choose is not None, "a language is drawn for each step"
        steps = in_words(steps, languages, choose)
    if style in ("think", "tags"):
        return f"{THINK_OPEN}{steps}{THINK_CLOSE}{ANSWER_OPEN}{answer}{ANSWER_CLOSE}"
    return f"{steps}. So it is {answer}." if steps else f"The answer is {answer}."


def documents(
    tasks: Sequence[Task],
    styles: AnswerStyles,
    n: int,
    seed: int,
    exclude: Container[str] = frozenset(),
    template: Template = TINY,
    languages: Sequence[StepLanguage] = (),
    slips: float = 0.0,
    examples: float = 0.0,
) -> list[TextDocument]:
    """`n` documents in shuffled order; shares of tasks and of styles are exact up to rounding.

    With `languages`, the worked steps are in words, each step in one of them; `slips` is the share of the steps whose
    result is wrong. `examples` is the share of the documents whose question stands behind one or two others with
    right answers in its style, all of them in one language of `languages`, or all in all of them.

    No question text of `exclude` (the held-out ones) occurs; others may repeat. Deterministic.
    Raises ConfigError when the style shares do not sum to 1, and as `tasks.questions` does.
    """
    shares = [getattr(styles, style) for style in STYLES]
    if abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"the shares of the answer styles sum to {sum(shares):g}, not 1")
    chosen: list[Style] = [style for style, num in zip(STYLES, apportion(n, shares), strict=True) for _ in range(num)]
    random.Random(f"{seed}/styles").shuffle(chosen)
    words = random.Random(f"{seed}/words")
    asked = draw(tasks, n, seed, exclude, distinct=False)
    made: list[TextDocument] = []
    for q, style in zip(asked, chosen, strict=True):
        said, shown = languages, list[Question]()
        if examples and words.random() < examples:
            ways: list[Sequence[StepLanguage]] = [*([one] for one in languages), languages]
            said = words.choice(ways) if languages else languages
            shown = words.choices(asked, k=words.randint(1, MOST_EXAMPLES))
        before = [render_prompt(template, e.text) + write_answer(e, style, said, words) + END for e in shown]
        made.append(
            TextDocument(
                q.text,
                "".join([*before, render_prompt(template, q.text)]),
                write_answer(q, style, said, words, slips),
                style,
                q.verifier,
                tuple(e.text for e in shown),
            )
        )
    return made


def tokenize(docs: Sequence[TextDocument], tokenizer: Any, learn: Literal["all", "answers"]) -> list[Document]:
    """bos where the tokenizer begins with it, prompt, answer, eos as one token sequence each.

    Args:
        learn: whether every token but bos is a target, or only what stands after the prompt.
    """
    bos = begin(tokenizer)
    encoded = tokenizer([doc.prompt + doc.answer for doc in docs], add_special_tokens=False)["input_ids"]
    sequences = [Int32s([*bos, *ids, tokenizer.eos_token_id]) for ids in encoded]
    if learn == "all":
        return [Document(ids) for ids in sequences]
    # The prompt ends in a special token, so no merge crosses its end.
    ends = [len(ids) for ids in tokenizer([doc.prompt for doc in docs], add_special_tokens=False)["input_ids"]]
    return [Document(ids, len(bos) + end) for ids, end in zip(sequences, ends, strict=True)]
