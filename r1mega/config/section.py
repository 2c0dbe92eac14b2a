"""What a table of a config file is: its names, its values as they are written, and the paths in it."""

import enum
import functools
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator


class Section(BaseModel):
    """A table of a config file: frozen, strict about names and about values.

    A number is not read from a truth value or a text, nor a truth value from a number or a text. An empty text would
    pass for a setting that was left out; `config.load` refuses it where a file or the shell gives it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_given(cls, value: object, info: ValidationInfo) -> object:
        kinds = _kinds_of(cls, str(info.field_name))
        if kinds <= {int, float, types.NoneType} and isinstance(value, bool | str):
            raise ValueError("should be a number, written without quotes")
        if kinds <= {bool, types.NoneType} and not isinstance(value, bool | None):
            raise ValueError("should be true or false")
        return value

    def beside(self) -> Mapping[str, Sequence[Path]]:
        """Setting that names a folder -> files in it that matter as well, where a folder's digest says nothing of
        them."""
        return {}


@functools.cache
def _kinds_of(section: type[Section], field: str) -> set[Any]:
    return _kinds(section.model_fields[field].annotation)


def _kinds(annotation: Any) -> set[Any]:
    """The types of which a value may be; those of a Literal or a list are no plain type."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


class OnResume(enum.Enum):
    """What becomes of a run that resumes with another value of a setting, in the field's `Annotated`.

    A setting without one must have the value that the run began with. A mark on a table is all its settings'.
    """

    FREE = "goes on: nothing learnt so far depends on it"
    LENGTH = "goes on where nothing depends on how long the run is: the learning rate is constant, no last_steps"
    ROUNDING = "goes on, equal up to rounding, and is told so"
    FILES_BY_TOKENS = "goes on if its files and datasets give the same tokens, which the stage compares; else refused"


@functools.cache
def marked(section: type[Section], mark: OnResume) -> frozenset[str]:
    """Names of the settings and tables of a section that have a mark, spelt as `--set` does; `*` stands for any name
    of tables whose names are the user's own."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        if mark in field.metadata:
            found.add(name)
        annotation, above = field.annotation, name
        if get_origin(annotation) is dict:
            annotation, above = get_args(annotation)[1], f"{name}.*"
        inner = (kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section))
        found |= {f"{above}.{below}" for kind in inner for below in marked(kind, mark)}
    return frozenset(found)


class RunSettings(Section):
    """What a run directory knows of whatever runs in it: settings, of which two have their names here."""

    stage: str
    seed: int = Field(default=0, ge=0, lt=2**31)

    def begins_as(self) -> tuple[Any, ...]:
        """By which JSON values the model that a run begins as is known, where it is nothing on disk; else none."""
        return ()


class FromShell(str):
    """A value given with `--set`: its relative paths count from the working directory, not from the file."""

    folder: Path = Path()
    """Where they count from; another one where a pipeline's file has given the value."""


def anchored(value: object, info: ValidationInfo) -> object:
    """A relative path counts from the folder of the config file that states it."""
    if isinstance(value, str) and not Path(value).is_absolute():
        context = cast(dict[str, str], info.context or {})
        base = value.folder if isinstance(value, FromShell) else Path(context.get("folder", "."))
        return (base / value).resolve()
    return value


AnchoredPath = Annotated[Path, BeforeValidator(anchored)]


def anchor_if_path(value: object, info: ValidationInfo) -> object:
    """A name as it is; what begins as a path does is one (`AnchoredPath`)."""
    return str(anchored(value, info)) if isinstance(value, str) and value.startswith((".", "/")) else value
