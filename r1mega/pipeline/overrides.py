"""Settings of a chain's stage that are others than its config's: those in the pipeline's file, the user's, and what
earlier stages decide; as `--set` has them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from r1mega.config.section import Section
from r1mega.recipe.recipe import Recipe


class InFile(str):
    """An override whose relative paths count from a folder, and not from the working directory."""

    folder: Path
    setting: str
    value: Any

    @classmethod
    def of(cls, setting: str, value: Any, folder: Path) -> "InFile":
        """
        Args:
            value: as TOML gives it.
        """
        made = cls(f"{setting}={toml(value)}")
        made.folder, made.setting, made.value = folder, setting, value
        return made


def for_shell(overrides: Sequence[str], recipe: Recipe) -> list[str]:
    """The same overrides with full paths, for a process of its own.

    Args:
        recipe: what they make, which alone knows which texts are paths.
    """
    return [
        f"{o.setting}={toml(_resolved(o.value, _at(recipe, o.setting.split('.'))))}" if isinstance(o, InFile) else o
        for o in overrides
    ]


def _at(made: Any, names: Sequence[str]) -> Any:
    """What a recipe has at a place; None where there is nothing (settings of the cluster file)."""
    for name in names:
        if isinstance(made, Section):
            made = getattr(made, name, None)
        elif isinstance(made, Mapping):
            made = cast(Mapping[str, Any], made).get(name)
        elif isinstance(made, tuple | list) and name.isdecimal() and int(name) < len(cast(Sequence[Any], made)):
            made = cast(Sequence[Any], made)[int(name)]
        else:
            return None
    return made


def _resolved(value: Any, made: Any) -> Any:
    if isinstance(value, dict):
        return {k: _resolved(v, _at(made, [k])) for k, v in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_resolved(v, _at(made, [str(number)])) for number, v in enumerate(cast(list[Any], value))]
    is_path = isinstance(made, Path) or (isinstance(made, str) and made.startswith("/"))
    return str(made) if isinstance(value, str) and is_path else value


def toml(value: Any) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return "{" + ", ".join(f"{toml(name)} = {toml(inner)}" for name, inner in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, cast(Sequence[Any], value))) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
