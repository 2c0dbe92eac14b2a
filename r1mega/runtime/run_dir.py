"""The directory of a run: what it holds, who may write to it, and how a resumed run finds its place.

config.json   the resolved stage config and cluster        run.json      commit, versions, device, seeds, environment
metrics.jsonl one line a step                              summary.json  written once, when the stage is done
experts.jsonl every expert's load, each few steps              events.jsonl  what happened to the run
checkpoints/step_N/   hf/   hf_steps/step_N/   samples/   figures/   wandb/   logs/
"""

import json
import re
import shutil
import socket
import time
from pathlib import Path
from typing import IO, Any, Self

from r1mega.config.cluster import Cluster
from r1mega.config.section import RunSettings
from r1mega.errors import CheckpointError, RanksLostError, RunDirError
from r1mega.runtime import environment, files, heartbeat, incidents, locks, provenance
from r1mega.runtime.digests import Digests, digest_of
from r1mega.runtime.mirror import Mirror
from r1mega.runtime.provenance import RUN, Inputs, Lineage
from r1mega.runtime.resume import changes, recipe_digest

LOCK_TIMEOUT_S = 15.0
"""How long a run waits for the one before it to let go of its directory."""
LEASE_S = 150.0
"""How long where that one gives no sign of life: its host may be gone, whose locks a file server gives back later."""

BEAT_S = 2.0
"""How often rank 0 lets the others know that it is still opening the run directory."""

STEP = re.compile(r"step_(0|[1-9][0-9]*)", re.ASCII)
"""A step's folder, and its file but for the ending. Whatever else lies beside is a user's own, and left alone."""
LEFT_OVER = re.compile(r"\.step_[0-9]+\..*tmp", re.ASCII)
"""What a step's folder is called while it is written, replaced or removed."""

OPENING = ".opening"
"""A file that is there while rank 0 opens a run directory, which takes minutes where much is to be hashed."""


class RunDir:
    """An open run directory; one process at a time may hold it, and others may read along (`join`).

    Raises:
        RunDirError: cannot be created or written; already holds a run and `resume` is off; holds a run of another
            config; is in use by another process.
    """

    def __init__(
        self, path: Path, recipe: RunSettings, cluster: Cluster, *, resume: bool, verify_inputs: bool = False
    ) -> None:
        """
        Args:
            verify_inputs: hash anew what the config names, also where size, time and inode say that it is unchanged.
        """
        self.path = path
        self.resumed = exists = holds_work(path)
        """Whether it had work in it. On ranks that `join`, where nobody asks, False."""
        self.mirror: Mirror | None = None
        """What shows the run elsewhere, on rank 0."""
        if exists and not resume:
            raise RunDirError(f"{path}: already holds a run; pass --resume to continue it, or another --run-dir")
        create(path)
        self._lock: IO[str] | None = self._take_lock()
        files.remove(path / heartbeat.FOLDER)  # of the start before
        try:
            digests = Digests(path, verify=verify_inputs, beat=self._beat)
            self._open(recipe, cluster, provenance.inputs_of(recipe, path, digests), exists=exists)
        except BaseException:
            self._lock.close()
            raise
        finally:
            (path / OPENING).unlink(missing_ok=True)

    def _open(self, recipe: RunSettings, cluster: Cluster, inputs: Inputs, *, exists: bool) -> None:
        path = self.path
        if exists and (changed := changes(path, recipe, cluster, inputs)):
            raise RunDirError(
                "\n  ".join([f"{path}: --resume with another config than the run's own; changed:", *changed])
            )
        for folder in (path, self.checkpoints, self._hf_steps):
            files.put_back(folder)
        record: dict[str, Any] = {"parts": []}
        if exists and (path / RUN).is_file():
            record = json.loads((path / RUN).read_text())
        if not {"start", "recipe", "run", "earlier", "inode"} <= record.keys():  # new, or of an older version
            known_by = recipe.begins_as()
            start = digest_of(*known_by) if known_by else provenance.start_of(inputs)
            begun = start, recipe_digest(recipe, inputs), (provenance.new_run_id(),)
            record = {**Lineage(*begun).record(), "inputs": inputs, "parts": record["parts"]}
        elif record["inode"] != path.stat().st_ino:  # a copy: it and the one it was made of go different ways
            record["earlier"] = [record["run"], *record["earlier"]]
            record["run"] = provenance.new_run_id()
        for setting, places in record["inputs"].items():  # what it holds stays as it was begun with
            for place, now in zip(places, inputs.get(setting, []), strict=False):
                place |= {name: now[name] for name in ("path", "from_run")}
        part = {**provenance.part(recipe.seed), "environment": environment.in_force(cluster.environment)}
        record |= {"inode": path.stat().st_ino, "parts": [*record["parts"], part]}
        files.write_json(path / RUN, record)
        files.write_json(path / "config.json", config_of(recipe, cluster))

    def _beat(self) -> None:
        file = self.path / OPENING
        if not file.exists() or time.time() - file.stat().st_mtime > BEAT_S:
            file.touch()

    @classmethod
    def join(cls, path: Path, timeout_s: float) -> Self:
        """The directory that rank 0 has opened or is about to open, for another rank: to read, without the lock.

        Raises:
            RanksLostError: it holds no config.json after `timeout_s` seconds in which rank 0 gave no sign of life.
        """
        deadline, beat = time.monotonic() + timeout_s, 0
        while (opening := _mtime_ns(path / OPENING)) or not (path / "config.json").is_file():
            if opening != beat:
                deadline, beat = time.monotonic() + timeout_s, opening
            if time.monotonic() > deadline:
                raise RanksLostError(
                    f"{path}: rank 0 did not open this run directory within {timeout_s:g} s "
                    "(cluster.trainer.collective_timeout_s). It has ended or did not start, or its host does not "
                    f"share this file system with {socket.gethostname()}"
                )
            time.sleep(0.05)
        joined = cls.__new__(cls)
        joined.path, joined._lock, joined.resumed, joined.mirror = path, None, False, None
        return joined

    @property
    def lineage(self) -> Lineage:
        """Whose policies this run's are."""
        return Lineage.read(json.loads((self.path / RUN).read_text()))

    def repeat(self, other: Lineage) -> None:
        """Know another run's policies for this one's, which repeats it: it has that one's answers, from the start."""
        assert self._lock is not None, "rank 0 alone writes"
        record = json.loads((self.path / RUN).read_text())
        known = (record["run"], *record["earlier"])
        record["earlier"] += [run for run in other.runs if run not in known]
        files.write_json(self.path / RUN, record)

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
    def questions(self) -> Path:
        """How many questions an RL stage has read, and how many it left out, and why."""
        return self.path / "questions.json"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer that the exports have, with the chat template that the stage trains on."""
        return self.path / "tokenizer"

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
        left_overs = [
            path
            for folder in (self.path, self._hf_steps, self.checkpoints)
            for path in folder.glob(".*.tmp")
            if folder == self.path or LEFT_OVER.fullmatch(path.name)
        ]
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
        if (before := incidents.read(self.path)) != (kept := incidents.kept_at(before, step)):
            incidents.write(self.path, kept)
        for file in self.samples.glob("step_*.jsonl"):
            if (of := STEP.fullmatch(file.stem)) and int(of[1]) > step:
                file.unlink()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> IO[str]:
        lock = (self.path / ".lock").open("w")
        # The ranks of a run whose parent was killed end within seconds.
        began, sign = time.monotonic(), heartbeat.beat_file(self.path, 0)
        first = _mtime_ns(sign)
        while not locks.take(lock):
            waited, holder = time.monotonic() - began, heartbeat.read_beat(sign)
            silent = holder is not None and holder.phase != heartbeat.ENDED and _mtime_ns(sign) == first
            if waited > (LEASE_S if silent else LOCK_TIMEOUT_S):
                lock.close()
                who = f"another process, {holder}," if holder else "another process"
                since = f"; it gave no sign of life for {waited:.0f} s: end it" if silent else "; wait for it"
                raise RunDirError(f"{self.path}: {who} is running in this directory{since}")
            time.sleep(0.2)
        return lock


def config_of(recipe: RunSettings, cluster: Cluster) -> dict[str, Any]:
    """What config.json holds."""
    return {"stage": recipe.model_dump(mode="json"), "cluster": cluster.model_dump(mode="json")}


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


def _mtime_ns(file: Path) -> int:
    """0 where it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def checkpoint_step(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step_"))


def _steps(folder: Path) -> list[int]:
    names = (STEP.fullmatch(p.name) for p in folder.glob("step_*") if p.is_dir())
    return sorted(int(name[1]) for name in names if name)


def holds_work(path: Path) -> bool:
    """Whether a run directory holds anything to continue or to lose: metrics, a checkpoint or a summary.

    A run that failed before its first line of metrics has left nothing; the next one starts over in its place.
    """
    metrics = path / "metrics.jsonl"
    return (
        (metrics.is_file() and metrics.stat().st_size > 0)
        or (path / "summary.json").exists()
        or bool(_steps(path / "checkpoints"))
    )


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
