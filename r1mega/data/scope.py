"""What of an answer a preference reward looks at: the final summary alone, or the whole response.

The report's helpfulness reward model scores the final summary only, its harmlessness reward model the whole response.
Where the thinking ends is said by the marks of the model's own template: `<think>` and `</think>`, or others, such as
the cold start's `|special_token|`, which opens and closes.
"""

from typing import Literal

from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

Scope = Literal["summary", "response"]
"""summary: what stands behind the thinking; response: thinking and summary."""
Marks = tuple[str, str]
"""What opens the thinking, and what closes it; they may be the same."""
THOUGHT: Marks = (THINK_OPEN, THINK_CLOSE)


def scoped(text: str, scope: Scope, marks: Marks = THOUGHT) -> str | None:
    """The part of an answer that a scope names; None where there is none of it.

    >>> scoped("<think>2 + 2 is 4</think> It is 4. ", "summary")
    'It is 4.'
    >>> scoped("<think>2 + 2 is 4", "summary") is None
    True

    Args:
        text: the whole answer, the template's prefill included. Untrusted; the time is linear in it.
        scope: of "response" the text as it is, None where it is blank. Of "summary" what stands behind the last
            closing mark, stripped, and of one pair of answer tags around all of it the inside; a text with neither
            mark is all summary. There is none where the thought is still open at the end, or nothing is behind it.
    """
    if scope == "response":
        return text if text.strip() else None
    opening, closing = marks
    if opening == closing:
        *_, summary = text.split(closing)
        still_open = text.count(closing) % 2 == 1
    else:
        _, _, summary = text.rpartition(closing)
        still_open = opening in summary
    if still_open:
        return None
    return _inside_tags(summary.strip()) or None


def parted(text: str, marks: Marks = THOUGHT) -> tuple[str, str, str] | None:
    """What opens an answer's thinking, the thinking, and what closes it with all that is behind; None where the text
    has no closing mark. The three together are the text.

    >>> parted("<think>2 + 2 is 4</think> It is 4.")
    ('<think>', '2 + 2 is 4', '</think> It is 4.')

    Args:
        text: a whole answer that has a summary (`scoped`). Untrusted; the time is linear in it.
        marks: where the opening one is not in the text, its thinking begins with the text.
    """
    opening, closing = marks
    end = text.rfind(closing)
    if end < 0:
        return None
    begin = text.find(opening, 0, end)
    begin = 0 if begin < 0 else begin + len(opening)
    return text[:begin], text[begin:end], text[end:]


def without_thought(text: str, marks: Marks = THOUGHT, empty: str = "") -> str:
    """An answer with its thinking left out.

    >>> without_thought("<think>\\n2 + 2 is 4\\n</think>\\n\\nIt is 4.")
    '<think>\\n\\n</think>\\n\\nIt is 4.'

    Args:
        empty: what stands in the place of the thinking, both marks included, and of the white space behind it; "":
            the marks, with the white space that the answer itself has at the ends of its thinking and behind it.
    """
    opening, closing = marks
    if (parts := parted(text, marks)) is None:
        return (empty or opening + closing) + text
    opened, thought, behind = parts
    if empty:
        return empty + behind[len(closing) :].lstrip()
    bare = thought.strip()
    before, _, after = thought.partition(bare) if bare else (thought, "", "")
    return (opened or opening) + before + after + behind


def _inside_tags(text: str) -> str:
    if not (text.startswith(ANSWER_OPEN) and text.endswith(ANSWER_CLOSE)):
        return text
    inside = text[len(ANSWER_OPEN) : -len(ANSWER_CLOSE)]
    return text if ANSWER_OPEN in inside or ANSWER_CLOSE in inside else inside.strip()
