"""Whether a run goes on as it began: its settings, what they name by content, and its layout."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r1mega.config.cluster import Cluster, TrainerLayout
from r1mega.config.section import OnResume, RunSettings, marked
from r1mega.errors import RunDirError, listed
from r1mega.runtime.digests import digest_of
from r1mega.runtime.provenance import RUN, Inputs

log = logging.getLogger(__name__)

SCHEDULED = re.compile(r"(.+)\.(\d+)\.(value|from_step|last_steps|over_steps)")
"""A part of a schedule (`config.scheduled`) by its flat name."""


def recipe_digest(recipe: RunSettings, inputs: Inputs) -> str:
    """Digest of what a stage does to the model it begins as: settings that a resumed run may not change, and data.

    What settings name on disk counts by content, so that a moved checkout has the same recipes.
    """
    settings = flat(recipe.model_dump(mode="json"))
    may_change = _may_change(recipe, settings)
    for setting, places in inputs.items():
        settings[setting] = [place["digest"] for place in places]
    begun_as = ("model.path", "model.config")
    return digest_of({k: v for k, v in settings.items() if k not in begun_as and not _is_of(k, may_change)})


@dataclass(frozen=True)
class Change:
    """A setting that is not as it was when a run began, or that names something of other content now."""

    setting: str
    """As `--set` spells it, those of the cluster file below "cluster."."""
    said: str
    """Setting, what it was and what it is, for people."""
    mark: OnResume | None
    """What becomes of a run that goes on with it; None: it cannot."""
    before: Any = None
    after: Any = None


def changes(path: Path, recipe: RunSettings, cluster: Cluster, inputs: Inputs) -> list[str]:
    """What differs between a run and a config that is to go on with it, and may not; a line each.

    Raises:
        RunDirError: as `changed`.
    """
    found = changed(path, recipe, cluster, inputs)
    refused = [change.said for change in found if change.mark is None]
    moved = [change for change in found if change.mark is OnResume.ROUNDING]
    if not refused and moved:
        relaid = ", ".join(c.said.removeprefix("cluster.trainer.").replace(": ", " ", 1) for c in moved)
        log.warning("%s: goes on at another layout, equal up to rounding: %s", path, relaid)
    return refused


def changed(path: Path, recipe: RunSettings, cluster: Cluster, inputs: Inputs) -> list[Change]:
    """What differs between a run and a config in what its results depend on, rounding included.

    Files and folders are compared by content, so that a run whose inputs were moved goes on, and one whose inputs
    were exchanged does not. What is not there any more must be where it was, as seen from the run or as its full
    path; the stage decides whether it needs it.

    Raises:
        RunDirError: config.json is missing or cannot be read.
    """
    try:
        found = json.loads((path / "config.json").read_text())
        then_stage: dict[str, Any] = found["stage"]
        if then_stage["stage"] == recipe.stage:  # another stage's settings are named among the changes
            then_stage = type(recipe).model_validate(then_stage).model_dump(mode="json")
        then_layout = TrainerLayout.model_validate(found["cluster"]["trainer"]).model_dump()
    except ValidationError as error:
        raise RunDirError(_of_another_version(path, error)) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunDirError(f"{path}/config.json: cannot be read: {error}") from None
    recorded: Inputs = _recorded_inputs(path)
    before, after = flat(then_stage), flat(recipe.model_dump(mode="json"))
    free, length = (marked(type(recipe), mark) for mark in (OnResume.FREE, OnResume.LENGTH))
    by_tokens, fixed = marked(type(recipe), OnResume.FILES_BY_TOKENS), _counts_from_the_end(before)
    told: list[Change] = []
    then, now = _schedules_whole(before, after), _schedules_whole(after, before)
    for key in dict.fromkeys([*now, *then]):
        if _is_of(key, free):
            continue
        if key in recorded and key in inputs:
            mark = OnResume.FILES_BY_TOKENS if _is_of(key, by_tokens) else None
            told += [Change(key, said, mark) for said in _changed_content(key, recorded, inputs)]
        elif then.get(key) != now.get(key):
            mark = OnResume.LENGTH if _is_of(key, length) and not fixed else None
            said = f"{key}: {then.get(key)!r} -> {now.get(key)!r}{_why(key, recipe, before) if mark is None else ''}"
            told.append(Change(key, said, mark, then.get(key), now.get(key)))
    return told + _changed_layout(then_layout, cluster.trainer.model_dump())


def _changed_layout(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    free, rounding = (marked(TrainerLayout, mark) for mark in (OnResume.FREE, OnResume.ROUNDING))
    return [
        Change(
            f"cluster.trainer.{key}", f"cluster.trainer.{key}: {then[key]!r} -> {now[key]!r}",
            OnResume.ROUNDING if key in rounding else None, then[key], now[key],
        )
        for key in sorted(now.keys() - free)
        if then[key] != now[key]
    ]  # fmt: skip


def _may_change(recipe: RunSettings, settings: dict[str, Any]) -> frozenset[str]:
    free = marked(type(recipe), OnResume.FREE)
    return free if _counts_from_the_end(settings) else free | marked(type(recipe), OnResume.LENGTH)


def counts_from_the_end(recipe: RunSettings) -> list[str]:
    """The settings that count steps from the run's last one."""
    return _last_steps(flat(recipe.model_dump(mode="json")))


def _last_steps(settings: Mapping[str, Any]) -> list[str]:
    return [key for key, value in settings.items() if key.endswith(".last_steps") and value is not None]


def _counts_from_the_end(settings: Mapping[str, Any]) -> list[str]:
    """The settings by which what was done so far depends on how long the run is."""
    counting = _last_steps(settings)
    return counting if settings.get("optimizer.schedule") == "constant" else ["optimizer.schedule", *counting]


def _schedules_whole(settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Flat settings, in which a schedule is one value where the other ones have a number in its place: one line says
    what has changed."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        part = SCHEDULED.fullmatch(key)
        if part is None or part[1] not in other:
            found[key] = value
            continue
        tables = found.setdefault(part[1], [])
        tables += [{}] * (int(part[2]) == len(tables))
        tables[-1] = {**tables[-1], part[3]: value}
    return found


def _why(key: str, recipe: RunSettings, settings: dict[str, Any]) -> str:
    """Of a setting that may change in other runs."""
    if not _is_of(key, marked(type(recipe), OnResume.LENGTH)):
        return ""
    return f" ({', '.join(_counts_from_the_end(settings))}: counts from the run's end)"


def _is_of(key: str, settings: frozenset[str]) -> bool:
    if {key, key.partition(".")[0]} & settings:
        return True
    parts = key.split(".")
    return any(
        len(parts) == len(names) and all(name in ("*", part) for name, part in zip(names, parts, strict=True))
        for names in (setting.split(".") for setting in settings if "*" in setting)
    )


def _changed_content(key: str, recorded: Inputs, inputs: Inputs) -> list[str]:
    """What a setting named then and names now, where it is not the same."""
    then, now = recorded[key], inputs[key]
    if len(then) != len(now):
        return [f"{key}: {[p['path'] for p in then]!r} -> {[p['path'] for p in now]!r}"]
    told: list[str] = []
    for was, is_now in zip(then, now, strict=True):
        if not is_now["digest"] and (was["path"] == is_now["path"] or was["from_run"] == is_now["from_run"]):
            continue
        if was["digest"] != is_now["digest"]:
            place = is_now["path"] if was["path"] == is_now["path"] else f"{is_now['path']}, then {was['path']}"
            holds = f"digest {was['digest'][:12] or 'none'} -> {is_now['digest'][:12] or 'not there'}"
            told.append(f"{key}: other content than the run began with ({holds}): {place}")
    return told


def _recorded_inputs(path: Path) -> Inputs:
    """Of run.json; none of a run of an older version, whose paths are compared instead."""
    try:
        return json.loads((path / RUN).read_text()).get("inputs", {})
    except (OSError, ValueError, AttributeError):
        return {}


def _of_another_version(path: Path, error: ValidationError) -> str:
    """What to do about recorded settings that this version does not take. Newer settings than they have defaults."""
    try:
        commit = str(json.loads((path / RUN).read_text())["parts"][-1]["commit"])[:12]
    except (OSError, ValueError, LookupError, TypeError):
        commit = "unknown"
    wrong = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    return listed(
        f"{path}/config.json: of a version of r1mega (commit {commit}) whose settings this one does not take: go on "
        "with that version, or begin anew with another --run-dir",
        wrong,
    )


def flat(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Settings by their names as `--set` spells them."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        tables = dict(enumerate(value)) if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(tables, dict):
            found |= {f"{key}.{inner}": v for inner, v in flat(tables).items()}
        else:
            found[key] = value
    return found
