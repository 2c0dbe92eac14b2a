"""Which weights a digest names: the run directory that made them, or a folder outside of any, or an endpoint's model.

Weights are looked for by content, so that a folder that was renamed or moved is found, and one with other weights in
it is not taken for what it was.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mega.errors import RunDirError
from r1mega.pipeline.run_folders import Named, StageFolder
from r1mega.runtime.digests import Digests


@dataclass(frozen=True)
class Checkpoint:
    """A model that answered, or that a stage began as."""

    digest: str
    folder: Path | None = None
    """Where its weights are, or the config.json that random ones were drawn for."""
    made_by: StageFolder | None = None
    """The run whose final weights they are, or those of a step of it."""
    endpoint: str = ""
    """Who answered, where that is a server: its address and its model's name there."""
    gone: Path | None = None
    """Where the weights were, as a run wrote down; nothing is there any more."""
    fault: str = ""
    """Why nobody knows whose these are."""
    started_from: "Checkpoint | None" = None
    """What the run that made it began as; None where no run is known."""

    def told(self) -> str:
        """In one line, for people."""
        if self.fault:
            return f"unknown weights {self.digest[:12]}: {self.fault}"
        if self.endpoint:
            return self.endpoint
        if self.made_by is not None:
            gone = ", whose folder is gone" if self.gone else ""
            return f"{self.made_by.path.name} ({self.made_by.kind}){_steps(self)}{gone}"
        if self.gone is not None:
            return f"{self.gone}, which is gone"
        random = ", random weights" if self.folder is not None and self.folder.is_file() else ""
        return f"{self.folder}{random}"

    def to_json(self) -> dict[str, Any]:
        """The whole line back to the first model."""
        made, found = self.made_by, dataclasses.replace(self, made_by=None, started_from=None)
        plain: dict[str, Any] = {name: str(of) for name, of in dataclasses.asdict(found).items() if of}
        plain["who"] = self.told()
        if made is not None:
            commit = [part.get("commit", "unknown") for part in made.run.get("parts", [])][-1:]
            plain["made_by"] = {
                "run_dir": str(made.path), "stage": made.kind, "run": made.run.get("run"),
                "recipe": made.run.get("recipe"), "steps": made.summary().get("steps"), "commit": "".join(commit),
            }  # fmt: skip
        return plain | ({"started_from": self.started_from.to_json()} if self.started_from else {})


class Checkpoints:
    """Models by their digests (`runtime.digests.Digests.of`)."""

    def __init__(self, stages: Sequence[StageFolder], digests: Digests) -> None:
        """Nothing is hashed yet: weights are when somebody asks for them, and large files once."""
        self._stages, self._digests = stages, digests
        self._hashed: dict[Path, str] = {}
        self._known: dict[str, Checkpoint] = {}

    def of(self, digest: str) -> Checkpoint:
        """What a digest names; of an unknown one the `fault` says what was looked at."""
        if digest not in self._known:
            self._known[digest] = Checkpoint(digest, fault="they come from themselves")  # of a circle, meanwhile
            found = self._find(digest)
            made = found.made_by
            before = self.of(made.start) if made is not None and made.start else None
            self._known[digest] = dataclasses.replace(found, started_from=before)
        return self._known[digest]

    def _find(self, digest: str) -> Checkpoint:
        named = [of for stage in self._stages for of in stage.inputs() if of.digest == digest and digest]
        for of in named:
            if self._content(of.path) == digest:
                return Checkpoint(digest, of.path, self._maker(of.path))
        for folder in self._exported():
            if self._content(folder) == digest:
                return Checkpoint(digest, folder, self._maker(folder))
        asked = (stage for stage in self._stages if stage.start == digest and stage.stage.get("endpoint"))
        if (stage := next(asked, None)) is not None:
            endpoint = stage.stage["endpoint"]
            return Checkpoint(digest, endpoint=f"{endpoint['model']} at {endpoint['url']}")
        if not named:
            return Checkpoint(digest, fault="no run directory here has or names them")
        return self._not_there(digest, named)

    def _not_there(self, digest: str, named: Sequence[Named]) -> Checkpoint:
        if there := next((of for of in named if of.path.exists()), None):
            holds = self._content(there.path)[:12]
            return Checkpoint(digest, fault=f"{there.path} had them, and has other content now ({holds})")
        return Checkpoint(digest, made_by=self._maker(named[0].path), gone=named[0].path)

    def _exported(self) -> Iterator[Path]:
        for stage in self._stages:
            for folder in (stage.path / "hf", *sorted((stage.path / "hf_steps").glob("step_*"))):
                if folder.is_dir():
                    yield folder

    def _content(self, path: Path) -> str:
        if path not in self._hashed:
            self._hashed[path] = self._digests.of(path)
        return self._hashed[path]

    def _maker(self, folder: Path) -> StageFolder | None:
        """The run directory that a folder of weights was written into."""
        run_dir = folder.parent.parent if folder.parent.name == "hf_steps" else folder.parent
        if folder.name != "hf" and folder.parent.name != "hf_steps":
            return None
        known = [stage for stage in self._stages if stage.path.resolve() == run_dir.resolve()]
        try:
            return known[0] if known else StageFolder.read(run_dir)
        except RunDirError:
            return None


def _steps(found: Checkpoint) -> str:
    """After how many optimiser steps."""
    if found.folder is not None and found.folder.name.startswith("step_"):
        return f", after step {found.folder.name.removeprefix('step_')}"
    steps = found.made_by.summary().get("steps") if found.made_by is not None else None
    return "" if steps is None else f", after {steps:,} steps"
