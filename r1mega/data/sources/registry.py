"""The table of sources: the kinds that a config's [[questions]] may name."""

import functools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from r1mega.config.load import nearest
from r1mega.data.sources.jsonl import JSONL
from r1mega.data.sources.reasoning_gym import MadeQuestions
from r1mega.data.sources.source import QuestionSource

MEMBERS: tuple[type[QuestionSource], ...] = (
    JSONL,
    MadeQuestions,
)
"""A row a kind of source."""

SOURCES: Mapping[str, type[QuestionSource]] = {member.model_fields["kind"].default: member for member in MEMBERS}


def _kind(source: Any) -> Any:
    return source["kind"] if isinstance(source, dict) else getattr(source, "kind", None)


if TYPE_CHECKING:
    AnySource = QuestionSource
else:
    _each = (Annotated[member, Tag(kind)] for kind, member in SOURCES.items())
    AnySource = Annotated[functools.reduce(operator.or_, _each), Discriminator(_kind)]


def _tables(value: Any) -> Any:
    """A list of tables that say their kinds; a text alone is the path of a JSONL file."""
    if isinstance(value, str):
        return ({"kind": "jsonl", "path": value},)
    if not isinstance(value, list | tuple):
        raise ValueError("should be the path of a JSONL file, or tables [[questions]]")
    for source in value:
        kind = _kind(source) if not isinstance(source, dict) else source.get("kind")
        if kind not in SOURCES:
            given = f"there is no source {kind!r}{nearest(str(kind), SOURCES)}" if kind else "a source has a kind"
            raise ValueError(f"{given}: choose of {', '.join(SOURCES)}")
    return value


Sources = Annotated[tuple[AnySource, ...], BeforeValidator(_tables)]
"""A config's questions, source after source; one JSONL file may be named alone, questions = "own.jsonl":

    [[questions]]
    kind = "jsonl"
    path = "own.jsonl"
    domain = "stem"
"""
