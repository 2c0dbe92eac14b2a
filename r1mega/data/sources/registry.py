"""The table of sources: the kinds that a config's [[questions]] may name."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from r1mega.config.load import nearest
from r1mega.data.sources.constraints import ConstraintPrompts
from r1mega.data.sources.dataset import Dataset
from r1mega.data.sources.jsonl import JSONL
from r1mega.data.sources.parquet import Parquet
from r1mega.data.sources.reasoning_gym import MadeQuestions
from r1mega.data.sources.source import QuestionSource

MEMBERS: tuple[type[QuestionSource], ...] = (
    JSONL,
    Parquet,
    Dataset,
    MadeQuestions,
    ConstraintPrompts,
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
    """A list of tables that say their kinds."""
    if not isinstance(value, list | tuple):
        raise ValueError("should be tables, [[questions]], a source each")
    for source in value:
        kind = _kind(source) if not isinstance(source, dict) else source.get("kind")
        if not isinstance(kind, str) or kind not in SOURCES:
            given = f"there is no source {kind!r}{nearest(str(kind), SOURCES)}" if kind else "a source has a kind"
            raise ValueError(f"{given}: choose of {', '.join(SOURCES)}")
    return value


Sources = Annotated[tuple[AnySource, ...], BeforeValidator(_tables)]
"""A config's questions, source after source:

    [[questions]]
    kind = "jsonl"
    path = "own.jsonl"
    verifier = "math"
"""


def labels(sources: Sequence[QuestionSource]) -> list[str]:
    """A short name of each, different ones: of several with one label the later are numbered."""
    told: list[str] = []
    for source in sources:
        same = sum(source.label == before.label for before in sources[: len(told)])
        told.append(f"{source.label}_{same + 1}" if same else source.label)
    return told
