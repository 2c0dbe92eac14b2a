"""Where the final answer of a response stands.

In the answer tags (boxes inside them win), or else in the last `\\boxed{}`; both after the thinking alone. Without
either there is no answer. Linear in the response's length.
"""

import re

from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def find_answer(response: str) -> str | None:
    """The text of the final answer, or None. Of several boxes in the answer tags, all, as a list of candidates.

    >>> find_answer("<think>\\\\boxed{1}</think> It is \\\\boxed{2}.")
    '2'
    """
    text = after_thinking(response)
    opened, closed = text.count(ANSWER_OPEN), text.count(ANSWER_CLOSE)
    if opened > 1 and closed > 1:
        return None  # two answers are none: nobody is paid for listing guesses
    if opened == 1 and closed == 1:
        inside = text.partition(ANSWER_OPEN)[2]
        inside, found, _ = inside.partition(ANSWER_CLOSE)
        if found:
            boxes = list(dict.fromkeys(find_boxes(inside)))
            return ", ".join(boxes) if boxes else inside.strip() or None
    boxes = find_boxes(text)
    return (boxes[-1] or None) if boxes else None


def after_thinking(response: str) -> str:
    """What of a response is no thinking: after the last closing tag, up to a tag that opens another thought."""
    return response.rpartition(THINK_CLOSE)[2].partition(THINK_OPEN)[0]


def find_boxes(text: str) -> list[str]:
    """The contents of all outermost boxes, in order, stripped; a box that is not closed ends the search."""
    found, position = [], 0
    while (opening := _BOX.search(text, position)) is not None:
        depth, end = 0, None
        for brace in _BRACES.finditer(text, opening.end()):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0 and brace.group() == "}":
                end = brace.start()
                break
        if end is None:
            return [*found, ""]
        found.append(text[opening.end() + 1 : end].strip())
        position = end + 1
    return found
