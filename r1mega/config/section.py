"""What a table of a config file is: its names, and the paths in it."""

from pathlib import Path
from typing import Annotated, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo


class Section(BaseModel):
    """A table of a config file: frozen, and strict about names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


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
