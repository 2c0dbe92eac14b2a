"""Reads a config of any section: TOML, then `--set` overrides, then names, types and ranges.

Every fault becomes one ConfigError that lists them all: which key, what was found, what is allowed, and the
nearest valid name of a mistyped key.
"""

import difflib
import tomllib
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import Discriminator, Tag, ValidationError

from r1mega.config.cluster import Cluster
from r1mega.config.scheduled import Scheduled, Since
from r1mega.config.section import FromShell, Section
from r1mega.errors import ConfigError

CLUSTER_DIR = Path("configs/cluster")
CLUSTER = "cluster."
"""Begins the name of a setting of the cluster file, as `--set` spells it."""

Node = dict[str, "Node"] | list["Node"] | str | int | float | bool
"""What TOML can hold, dates aside."""
S = TypeVar("S", bound=Section)


def load_cluster(name: str, overrides: Sequence[str] = ()) -> Cluster:
    """The cluster file `name`: a path, or the stem of a file in configs/cluster."""
    path = Path(name)
    if path.suffix != ".toml":
        path = CLUSTER_DIR / f"{name}.toml"
        if not path.is_file():
            known = sorted(p.stem for p in CLUSTER_DIR.glob("*.toml"))
            raise ConfigError(
                f"cluster {name!r}: no file {path} (run from the repository root, or give a path ending in .toml); "
                f"known: {', '.join(known) or 'none'}{nearest(name, known)}"
            )
    table = read_toml(path)
    apply_overrides(table, overrides)
    return validate(Cluster, table, path)


def cluster_overrides(overrides: Sequence[str]) -> list[str]:
    """Those of `--set` that are the cluster file's, as `load_cluster` takes them."""
    return [override.removeprefix(CLUSTER) for override in overrides if override.startswith(CLUSTER)]


def faulty(path: Path, faults: Sequence[str]) -> ConfigError:
    """The error that lists what is wrong with a config file."""
    return ConfigError("\n  ".join([f"{path}: {len(faults)} fault(s)", *faults]))


def raise_if_any(path: Path, faults: Sequence[str]) -> None:
    """Raises ConfigError naming `path` and every fault, if there is one."""
    if faults:
        raise faulty(path, faults)


def read_toml(path: Path) -> dict[str, Node]:
    """The tables of a config file. Raises ConfigError where it is not there, cannot be read, or is no TOML."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder, not a config file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def apply_overrides(table: dict[str, Any], overrides: Iterable[str]) -> None:
    """Write each "a.b=value" into `table`; a number in the path is an index into a list of tables.

    Relative paths count from an override's `folder` where it has one (`pipeline.overrides.InFile`).
    """
    for override in overrides:
        folder = getattr(override, "folder", Path())
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: expected a.b=value")
        *parents, last = key.strip().split(".")
        place: Node = table
        for part in parents:
            place = _step(place, part, override)
        if isinstance(place, list):
            place[_index(place, last, override)] = _parse_value(text, folder)
        elif isinstance(place, dict):
            place[last] = _parse_value(text, folder)
        else:
            raise ConfigError(f"--set {override}: {'.'.join(parents)} is a value, not a table")


def _step(place: Node, part: str, override: str) -> Node:
    if isinstance(place, list):
        return place[_index(place, part, override)]
    if isinstance(place, dict):
        return place.setdefault(part, {})
    raise ConfigError(f"--set {override}: nothing lies below a plain value at {part!r}")


def _index(place: list[Node], part: str, override: str) -> int:
    if part.isdecimal() and int(part) < len(place):
        return int(part)
    raise ConfigError(f"--set {override}: {part!r} is not an index of a list of {len(place)}")


def _parse_value(text: str, folder: Path) -> Node:
    """A TOML value where it is one, otherwise the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return _from_shell(value, folder)


def _from_shell(value: Node, folder: Path) -> Node:
    """The same value, every string in it marked."""
    if isinstance(value, dict):
        return {name: _from_shell(inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_from_shell(inner, folder) for inner in value]
    if not isinstance(value, str):
        return value
    marked = FromShell(value)
    marked.folder = folder
    return marked


def validate(section: type[S], table: dict[str, Node], path: Path) -> S:
    """A file's tables as a section. Raises ConfigError with everything that is unknown, missing or out of range."""
    lines = list(_empty(table))
    try:
        made = section.model_validate(table, context={"folder": str(path.resolve().parent)})
    except ValidationError as error:
        found: list[dict[str, Any]] = [dict(item) for item in error.errors()]
        deeper: set[tuple[Any, ...]] = {item["loc"][:cut] for item in found for cut in (-1, -2, -3)}
        # A list counts its valid items only, so one fault inside makes it "too short" as well.
        found = [item for item in found if not (item["type"] == "too_short" and item["loc"] in deeper)]
        lines += [_describe(section, item) for item in found if item["input"] != ""]
    else:
        if not lines:
            return made
    raise faulty(path, lines)


def _empty(node: Node, where: str = "") -> Iterator[str]:
    """One line for each text that is given and empty: it would pass for a setting that was left out."""
    if isinstance(node, dict | list):
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for name, inner in pairs:
            yield from _empty(inner, f"{where}.{name}" if where else str(name))
    elif isinstance(node, str) and not node.strip():
        yield f"{where}: is empty: give a value, or leave the setting out"


def _describe(section: type[Section], item: dict[str, Any]) -> str:
    """One line for one pydantic error: key, what is wrong, what was found, the nearest valid name."""
    names, above = _names(section, item["loc"])
    where = ".".join(names)
    if item["type"] == "extra_forbidden":
        fields = [field.alias or name for name, field in above.model_fields.items()]
        return f"{where}: unknown key{nearest(names[-1], fields)}; valid: {', '.join(fields)}"
    if item["type"] == "missing":
        return f"{where}: missing"
    if item["type"] == "tuple_type":
        return f"{where}: should be a list: write [...] around it (got {item['input']!r})"
    said = item["msg"].removeprefix("Value error, ")
    return f"{where}: {said[0].lower()}{said[1:]} (got {item['input']!r})"


def _names(section: type[Section], loc: tuple[Any, ...]) -> tuple[list[str], Any]:
    """A fault's place as `--set` spells it, and the section that its last name is looked for in.

    pydantic's place names the member of a union as well, which no config file does.
    """
    names: list[str] = []
    here: Any = section
    above: Any = section
    for part in loc:
        if get_origin(here) is Scheduled:
            here = tuple[Since, ...]
        if members := _members(here):
            here = members.get(part, Section)
            continue
        if part == "[key]":  # the name itself is at fault, which stands before
            continue
        names.append(str(part))
        if isinstance(here, type) and issubclass(here, Section):
            above = here
            here = _one(here.model_fields[part].annotation) if part in here.model_fields else None
        else:  # an item of a list, or a table's entry under a free name
            here = _one(next((arg for arg in reversed(get_args(here)) if arg is not ...), None))
    return names, above


def _members(kind: Any) -> dict[Any, Any]:
    """The sections of a union whose member is told by a tag; none of anything else."""
    if not any(isinstance(mark, Discriminator) for mark in getattr(kind, "__metadata__", ())):
        return {}
    tagged = [get_args(member) for member in get_args(get_args(kind)[0]) if get_origin(member) is Annotated]
    return {mark.tag: member for member, *marks in tagged for mark in marks if isinstance(mark, Tag)}


def _one(annotation: Any) -> Any:
    """The section among the alternatives of a setting, or the setting's kind."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    scheduled = next((kind for kind in kinds if get_origin(kind) is Scheduled), annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), scheduled)


def nearest(name: str, names: Iterable[str]) -> str:
    """ " (did you mean ...?)" where one of `names` is nearly `name`."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
