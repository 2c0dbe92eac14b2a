"""What a table of a config file is: its names, its values as they are written, and the paths in it."""

import types
from pathlib import Path
from typing import Annotated, Any, Union, cast, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator


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
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if kinds <= {int, float, types.NoneType} and isinstance(value, bool | str):
            raise ValueError("should be a number, written without quotes")
        if kinds <= {bool, types.NoneType} and not isinstance(value, bool | None):
            raise ValueError("should be true or false")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types of which a value may be; those of a Literal or a list are no plain type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


class FromShell(str):
    """A value given with `--set`: its relative paths count from the working directory, not from the file."""


def _anchor(value: object, info: ValidationInfo) -> object:
    """A relative path counts from the folder of the config file that states it."""
    if isinstance(value, str) and not Path(value).is_absolute():
        context = cast(dict[str, str], info.context or {})
        base = Path() if isinstance(value, FromShell) else Path(context.get("folder", "."))
        return (base / value).resolve()
    return value


AnchoredPath = Annotated[Path, BeforeValidator(_anchor)]


def anchor_if_path(value: object, info: ValidationInfo) -> object:
    """A name as it is; what begins as a path does is one (`AnchoredPath`)."""
    return str(_anchor(value, info)) if isinstance(value, str) and value.startswith((".", "/")) else value
