"""Every setting of a run beside its default and what its section says of it, from the run's config.json."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_origin

from pydantic.fields import FieldInfo

from r1mega.config.cluster import Cluster
from r1mega.config.scheduled import Scheduled
from r1mega.config.section import Section
from r1mega.recipe.load import RECIPES
from r1mega.report.rows import read_object


@dataclass(frozen=True)
class Setting:
    """One value of config.json."""

    name: str
    value: str
    default: str | None
    """None where the schema has no default: the config had to say."""
    says: str
    """What the schema says of it; empty where it says nothing or does not know the setting."""

    @property
    def changed(self) -> bool:
        return self.default is not None and self.value != self.default


def settings(run_dir: Path) -> dict[str, list[Setting]]:
    """The settings by table, named as `--set` names them, in the order of config.json; "" is the stage itself.

    A setting that the schema does not know (another version wrote it) is shown without default. Empty where there is
    no config.json. Raises DataError when it is no JSON object.
    """
    config = read_object(run_dir / "config.json") or {}
    stage, cluster = config.get("stage") or {}, config.get("cluster") or {}
    tables: dict[str, list[Setting]] = {}
    for table, setting in (
        *_walk(stage, RECIPES.get(str(stage.get("stage"))), ""),
        *_walk(cluster, Cluster, "cluster"),
    ):
        tables.setdefault(table, []).append(setting)
    return tables


def _walk(values: Mapping[str, Any], section: Any, table: str) -> Iterator[tuple[str, Setting]]:
    """(table, setting) of every value; `section` is the Section class or, where one is a default, that one."""
    fields = (section if isinstance(section, type) else type(section)).model_fields if section else {}
    for name, value in values.items():
        field = fields.get(name)
        default = getattr(section, name) if isinstance(section, Section) else _default(field)
        inner = default if isinstance(default, Section) else _inner(field)
        below = f"{table}.{name}".lstrip(".")
        if isinstance(value, dict) and (value or inner):
            yield from _walk(value, inner, below)
        elif (
            isinstance(value, list)
            and value
            and all(isinstance(item, dict) for item in value)
            and not _scheduled(field)
        ):
            for index, item in enumerate(value):
                yield from _walk(item, inner, f"{below}.{index}")
        else:
            says = " ".join((field.description or "").split()) if field else ""
            known = default is not ... and not isinstance(default, Section)
            yield table, Setting(name, _text(value), _text(default) if known else None, says)


def _default(field: FieldInfo | None) -> Any:
    """The field's default; `...` where there is none."""
    return ... if field is None or field.is_required() else field.get_default(call_default_factory=True)


def _inner(field: FieldInfo | None) -> Any:
    """The Section that the field holds, by itself, or one of several."""
    if field is None:
        return None
    options = (field.annotation, *getattr(field.annotation, "__args__", ()))
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def _scheduled(field: FieldInfo | None) -> bool:
    """Whether the setting may be a schedule, whose tables are one value."""
    options = (field.annotation, *get_args(field.annotation)) if field else ()
    return any(get_origin(option) is Scheduled for option in options)


def _text(value: Any) -> str:
    if isinstance(value, Scheduled):
        value = cast("Scheduled[float]", value).plain()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
