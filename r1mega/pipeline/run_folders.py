"""The stages' run directories under a folder, read as they lie: what each was told to do, and what it read."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.errors import RunDirError
from r1mega.runtime.provenance import RUN

PASSED_OVER = frozenset(
    ("checkpoints", "hf", "hf_steps", "samples", "figures", "wandb", "logs", "journal", "tokenizer", "data")
)
"""Folders of a run directory in which no other run directory lies."""
SUPERSEDED = ".superseded"
"""Where a pipeline keeps what a stage made before its settings or inputs changed."""


@dataclass(frozen=True)
class Named:
    """What a run's config named on disk."""

    setting: str
    path: Path
    """Where it is now, so far as that can be told: as seen from the run directory, or else where it was."""
    digest: str
    """What it held when the run began (`runtime.digests`)."""


@dataclass(frozen=True)
class StageFolder:
    """A run directory."""

    path: Path
    run: Mapping[str, Any]
    """run.json."""
    stage: Mapping[str, Any]
    """The stage's settings, of config.json."""

    @classmethod
    def read(cls, path: Path) -> "StageFolder":
        """
        Raises:
            RunDirError: it is no run directory, or what it says of itself cannot be read.
        """
        if not (path / RUN).is_file():
            raise RunDirError(f"{path}: not a stage's run directory: it has no {RUN}")
        try:
            run, config = (json.loads((path / name).read_text(encoding="utf-8")) for name in (RUN, "config.json"))
            return cls(path, {"inputs": {}, **run}, config["stage"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunDirError(f"{path}: {RUN} and config.json cannot be read ({error})") from None

    @property
    def kind(self) -> str:
        """Its stage: "sft"."""
        return str(self.stage.get("stage", ""))

    @property
    def start(self) -> str:
        """Digest of the model that it began as."""
        return str(self.run.get("start", ""))

    def summary(self) -> Mapping[str, Any]:
        """summary.json; empty where the stage is not done."""
        try:
            return json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def inputs(self) -> Iterator[Named]:
        """Everything that its config named on disk."""
        for setting, places in self.run["inputs"].items():
            for place in places:
                seen, was = (self.path / place["from_run"]).resolve(), Path(place["path"])
                yield Named(setting, was if was.exists() and not seen.exists() else seen, place["digest"])

    def moved(self, was: Path) -> Path:
        """Where a file that the run read is now, of which it wrote down where it was.

        Args:
            was: a path of run.json, of this run or of one that was begun elsewhere and moved.
        """
        places = [place for of in self.run["inputs"].values() for place in of]
        alike = [_alike(Path(place["path"]), was) for place in places]
        best = max(alike, default=0)
        if not best or alike.count(best) > 1:  # named by nothing, or not to be told apart
            return was
        seen = (self.path / places[alike.index(best)]["from_run"]).resolve()
        return seen if seen.exists() else was


def _alike(a: Path, b: Path) -> int:
    """How many parts two paths have in common, from their ends."""
    ends = zip(a.parts[::-1], b.parts[::-1], strict=False)
    return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], ends))


def stage_folders(folder: Path) -> list[StageFolder]:
    """All run directories in a folder and below it, and the folder itself; those that are superseded come last.

    Raises:
        RunDirError: the folder is not there, or a run directory cannot be read.
    """
    if not folder.is_dir():
        raise RunDirError(f"{folder}: no such folder; --in names the one that the run directories lie in")
    found: list[StageFolder] = []
    for path, below, files in os.walk(folder):
        if RUN in files:
            found.append(StageFolder.read(Path(path)))
        below[:] = sorted(
            name for name in below if name not in PASSED_OVER and (name == SUPERSEDED or not name.startswith("."))
        )
    return sorted(found, key=lambda stage: SUPERSEDED in stage.path.relative_to(folder).parts)
