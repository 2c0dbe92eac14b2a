"""The texts of a data row that decontamination looks at: its prompts and its answers, under the names they go by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PROMPTS = (
    "question", "problem", "prompt", "instruction", "input", "query", "messages", "conversations", "conversation",
    "prompts",
)  # fmt: skip
ANSWERS = (
    "answer", "answers", "truth", "solution", "solutions", "response", "responses", "output", "completion", "target",
    "chosen", "rejected", "generation", "generations",
)  # fmt: skip
NAMED = (*PROMPTS, *ANSWERS)
"""Fields that are looked at where no others are named: at the top of a row, whatever lies in them."""
SAID = ("content", "value", "text")
"""Of a message, what is said in it."""

Text = tuple[str, str]
"""Field, and what stands in it."""


def texts_of(row: Any, fields: Sequence[str] = ()) -> list[Text]:
    """The texts of a row, a message or an element of a list as one each: "messages[2]".

    Args:
        fields: names that are looked at instead of `NAMED`.

    Raises:
        ValueError: the row is no object, or has none of these fields.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a row is a JSON object, not {type(row).__name__}")
    found = [name for name in (fields or NAMED) if name in row]
    if not found:
        looked_for = ", ".join(fields or NAMED)
        raise ValueError(f"no field to look at: the row has {', '.join(row) or 'none'}; looked for: {looked_for}")
    return [text for name in found for text in _texts(row[name], name)]


def is_prompt(field: str) -> bool:
    """Whether a text's field, as `texts_of` gives it, holds what is asked; a field of another name may."""
    return field.split("[")[0] not in ANSWERS


def _texts(value: Any, place: str) -> Iterator[Text]:
    if isinstance(value, str):
        if value:
            yield place, value
    elif isinstance(value, Mapping):
        said = [name for name in SAID if name in value]
        for name in said or value:
            yield from _texts(value[name], place if said else f"{place}.{name}")
    elif isinstance(value, Sequence):
        for i, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{i}]")
