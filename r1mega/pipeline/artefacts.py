"""What of a stage is there, by content: done, half done, of another config or other inputs, or not begun.

outputs.json   {"outputs": {name: {"digest": ..., "files": [...]}}}, of what later stages may read (`Recipe.leaves`),
               written when a stage has ended

A stage is done when its summary.json stands, its settings and all that they name are what it began with, and its
outputs are what it left. Nothing is told by time or place: a moved checkout, weights, data or chain is the same one.
"""

import enum
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.config.section import OnResume
from r1mega.errors import RunDirError
from r1mega.recipe.recipe import Recipe
from r1mega.runtime import files, locks
from r1mega.runtime.digests import Digests, NotHashed
from r1mega.runtime.provenance import inputs_of
from r1mega.runtime.resume import Change, changed
from r1mega.runtime.run_dir import LOCK_TIMEOUT_S, checkpoint_step

OUTPUTS = "outputs.json"
SUPERSEDED = ".superseded"
"""Folder in a chain's run directory: what was there of stages that were begun anew, as NAME.1, NAME.2, ..."""
UNKNOWN = "not hashed yet"
"""In place of a digest that takes more than a glance."""
MOST_SAID = 4
"""Reasons that are told; a stage of another kind differs in all its settings."""


class State(enum.StrEnum):
    """What of a stage is there, and so what a chain does with it."""

    DONE = "done"
    HALF_DONE = "goes on"
    ABSENT = "begins"
    CHANGED = "begins anew"
    UNKNOWN = "is looked at"


@dataclass(frozen=True)
class Standing:
    """A stage's state, and why."""

    state: State
    why: tuple[str, ...] = ()

    @property
    def reasons(self) -> str:
        """For people, on one line."""
        more = len(self.why) - MOST_SAID
        return "; ".join([*self.why[:MOST_SAID], *([f"and {more} more"] if more > 0 else [])])


class Glance(Digests):
    """Digests as far as they are remembered or taken at once; `UNKNOWN` in place of others."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, glance=True)
        self.unknown: list[str] = []
        """Files too large for it."""

    def of(self, path: Path) -> str:
        try:
            return super().of(path)
        except NotHashed as large:
            self.unknown.append(str(large))
            return UNKNOWN


def standing(
    folder: Path, recipe: Recipe, machine: Cluster, digests: Digests, *, to_come: Collection[str] = ()
) -> Standing:
    """What of a stage is there.

    Args:
        folder: the stage's run directory.
        to_come: settings that name what an earlier stage has yet to make, or to make anew; they are not compared.

    Raises:
        RunDirError: what is there was made by a version of other settings, or is no run.
        DataError: an input cannot be read.
    """
    if not (folder / "config.json").is_file():
        return Standing(State.ABSENT)
    found = inputs_of(recipe, folder, digests)
    unsure = {setting for setting, places in found.items() if UNKNOWN in [place["digest"] for place in places]}
    told = [c for c in changed(folder, recipe, machine, found) if c.setting not in {*to_come, *unsure}]
    if anew := [c.said for c in told if c.mark not in (OnResume.LENGTH, OnResume.ROUNDING) or _shorter(c)]:
        return Standing(State.CHANGED, tuple(anew))
    longer = [c.said for c in told if c.mark is OnResume.LENGTH]
    done = (folder / "summary.json").is_file()
    lost = _lost(folder, recipe.leaves(), digests) if done else []
    unknown = [f"{UNKNOWN}: {file}" for file in getattr(digests, "unknown", ())]
    if done and not longer and not lost:
        return Standing(State.UNKNOWN, tuple(unknown)) if unknown else Standing(State.DONE)
    return Standing(State.HALF_DONE, (*longer, *lost, *([] if done else [_how_far(folder)]), *unknown))


def _shorter(change: Change) -> bool:
    """Whether a run that may go on has possibly gone too far; a bound of 0 is none."""
    if change.mark is not OnResume.LENGTH:
        return False
    before, after = (value or float("inf") for value in (change.before, change.after))
    return after < before


def _how_far(folder: Path) -> str:
    steps = [checkpoint_step(p) for p in (folder / "checkpoints").glob("step_*") if p.name[5:].isdecimal()]
    return f"half done: step {max(steps)} is saved" if steps else "half done"


def _lost(folder: Path, leaves: Sequence[str], digests: Digests) -> list[str]:
    """Which of a finished stage's outputs are not there, or not what it left."""
    recorded = _recorded(folder)
    lost: list[str] = []
    for name in dict.fromkeys([*leaves, *recorded]):
        if not (folder / name).exists():
            lost.append(f"{name}: is not there")
            continue
        was = recorded.get(name)
        if was is None:
            continue
        if gone := [file for file in was["files"] if not (folder / name / file).is_file()]:
            lost.append(f"{name}/{gone[0]}: is not there")
        elif (now := digests.of(folder / name)) not in (was["digest"], UNKNOWN):
            lost.append(f"{name}: other content than the stage left (digest {was['digest'][:12]} -> {now[:12]})")
    return lost


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / OUTPUTS).read_text())["outputs"]
    except FileNotFoundError:  # ended under a chain that was killed at this very moment, or by itself
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise RunDirError(f"{folder / OUTPUTS}: cannot be read: {error}; remove it") from None


def is_recorded(folder: Path) -> bool:
    """Whether it is written down what a stage left behind."""
    return (folder / OUTPUTS).is_file()


def record_outputs(folder: Path, recipe: Recipe, digests: Digests) -> None:
    """Write down what a stage that has ended leaves behind."""
    outputs = {name: _output(folder / name, digests) for name in recipe.leaves() if (folder / name).exists()}
    files.write_json(folder / OUTPUTS, {"outputs": outputs})


def _output(path: Path, digests: Digests) -> dict[str, Any]:
    inside = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return {"digest": digests.of(path), "files": inside}


def reopen(folder: Path) -> None:
    """Let a stage that goes on count as half done until it has ended, whatever becomes of this process."""
    for name in ("summary.json", OUTPUTS):  # in this order: without a record, outputs count as what the stage left
        (folder / name).unlink(missing_ok=True)


def set_aside(folder: Path) -> Path:
    """Move what is there of a stage out of its way, whole; where it is now.

    Raises:
        RunDirError: a process still runs in it.
    """
    with (folder / ".lock").open("w") as lock:
        deadline = time.monotonic() + LOCK_TIMEOUT_S  # what a chain that was killed had started ends within seconds
        while not locks.take(lock):
            if time.monotonic() > deadline:
                raise RunDirError(f"{folder}: another process is running in this directory; wait for it")
            time.sleep(0.2)
        aside = folder.parent / SUPERSEDED
        files.make_folder(aside)
        taken = [p.name.rpartition(".")[2] for p in aside.glob(f"{folder.name}.*")]
        number = 1 + max((int(n) for n in taken if n.isdecimal()), default=0)
        target = aside / f"{folder.name}.{number}"
        folder.rename(target)
        files.sync(folder.parent)
        files.sync(aside)
    return target
