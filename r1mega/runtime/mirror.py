"""Metrics on their way to Weights & Biases: beside the run, in a process of their own, and at no cost to it.

Whatever W&B does (raises, hangs, dies), the run goes on. What was not logged there is counted and said; it stands in
metrics.jsonl.
"""

import importlib.util
import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from r1mega.config.watching import Wandb
from r1mega.runtime import process
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.provenance import CHAIN

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]

START_TIMEOUT_S = 120.0
"""For the import of wandb and its first answer; the run does not wait for it."""
ROW_TIMEOUT_S = 60.0
CLOSE_TIMEOUT_S = 60.0
"""How long a run that is over waits for what is still to be logged and uploaded."""
_SPELLINGS: dict[str, Mode] = {
    "online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled",
}  # fmt: skip
"""Of WANDB_MODE, as wandb itself reads it."""
_OPEN: tuple[Mode, ...] = ("disabled", "offline", "online")
"""From the most reserved."""


def choose_mode(setting: Mode, environment: Mapping[str, str]) -> tuple[Mode, str]:
    """The mode of `wandb.mode` and of WANDB_MODE together, and what is to be said about it, or "".

    `auto` leaves it to WANDB_MODE. Where they differ, the one that shows less to others holds: disabled before
    offline before online, so that neither sends what the other forbids. A WANDB_MODE that is none counts as offline.
    """
    said = environment.get("WANDB_MODE", "").strip()
    if not said:
        return setting, ""
    theirs: Mode | None = _SPELLINGS.get(said.lower())
    if theirs is None:
        known = ", ".join(_OPEN)
        reserved: Mode = "disabled" if setting == "disabled" else "offline"
        return reserved, f"W&B is {reserved}: WANDB_MODE={said!r} in the environment is none of {known}"
    if setting in ("auto", theirs):
        return theirs, "" if setting == theirs else f"W&B is {theirs}: WANDB_MODE={said} in the environment"
    held = _OPEN[min(map(_OPEN.index, (setting, theirs)))]
    return held, (
        f"W&B is {held}: wandb.mode is {setting!r} and WANDB_MODE in the environment {said!r}, and of two the "
        "one that shows less to others holds"
    )


@contextmanager
def mirrored(run_dir: Path, settings: Wandb, config: Mapping[str, Any]) -> Iterator["Mirror | None"]:
    """W&B beside the run inside, which it learns the end of; None where it is disabled.

    Args:
        config: config.json's, {"stage", "cluster"}; the stage's name is the run's type there.
    """
    mode, said = choose_mode(settings.mode, os.environ)
    if said:
        log.warning("%s", said)
    if mode == "disabled":
        yield None
        return
    mirror = Mirror(run_dir, settings, mode, config)
    try:
        yield mirror
    except Interrupted as error:
        mirror.close(128 + error.signum, preempted=True)
        raise
    except BaseException:
        mirror.close(1)
        raise
    mirror.close(0)


def group_of(run_dir: Path, settings: Wandb) -> str | None:
    """The group of a run: as the settings or WANDB_RUN_GROUP say, or that of the chain whose stage it is."""
    if given := settings.group or os.environ.get("WANDB_RUN_GROUP"):
        return given
    try:
        chain = json.loads((run_dir.parent / CHAIN).read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"{run_dir.resolve().parent.name}-{chain}"


class Mirror:
    """Logs rows to W&B from a thread; no method raises for what W&B does, and only `close` waits."""

    def __init__(self, run_dir: Path, settings: Wandb, mode: Mode, config: Mapping[str, Any]) -> None:
        """Begins to start W&B, in any `mode` but disabled; `config` as in `mirrored`."""
        self._run_dir, self._log_file = run_dir, run_dir / "logs/wandb.log"
        stage: Mapping[str, Any] = config["stage"]
        self._wanted: dict[str, Any] = {
            "project": settings.project,
            "entity": settings.entity,
            "name": f"{run_dir.parent.name}-{run_dir.name}",
            "group": group_of(run_dir, settings),
            "job_type": stage.get("stage"),
            "tags": list(settings.tags),
            "dir": str(run_dir),
            "mode": mode,
            "config": {**stage, **{name: of for name, of in config.items() if name != "stage"}},
            "program": sys.argv[0],
            "settings": settings.model_dump(mode="json"),
        }
        self._asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._given = self._logged = 0
        self._ended_with: dict[str, Any] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def stands(self, size: int) -> None:
        """Before any row: so many bytes of metrics.jsonl are of earlier parts, which may lack some of them at W&B."""
        if self._thread.is_alive():
            self._asked.put({"stands": size})

    def log(self, row: dict[str, Any]) -> None:
        """Hand on one row of numbers, with its kind."""
        self._given += 1
        if self._thread.is_alive():
            self._asked.put({"row": row})

    def close(self, exit_code: int = 0, *, preempted: bool = False) -> None:
        """Wait for what is still to be logged, within `CLOSE_TIMEOUT_S`, and say what was not.

        Args:
            exit_code, preempted: as `wandb_process.WandbSession.finish`.
        """
        self._ended_with = {"finish": exit_code, "preempted": preempted}
        self._asked.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning(
                "W&B has not ended within %g s and is left behind, maybe lacking rows; %s/metrics.jsonl has all",
                CLOSE_TIMEOUT_S, self._run_dir,
            )  # fmt: skip
        with self._lock:
            self._closed = True
        self._end()
        if self._logged < self._given:
            log.warning(
                "W&B: %d of %d rows were not logged there; %s/metrics.jsonl has them all, and a resumed run makes up "
                "for them",
                self._given - self._logged, self._given, self._run_dir,
            )  # fmt: skip

    def _run(self) -> None:
        """The thread."""
        try:
            self._start()
            while (asked := self._asked.get()) is not None:
                self._ask(asked, ROW_TIMEOUT_S if "row" in asked else START_TIMEOUT_S)
                self._logged += "row" in asked
            try:
                self._ask(self._ended_with, CLOSE_TIMEOUT_S)
            except _MirrorFailed as error:
                log.warning(
                    "W&B: the run's end failed there (%s); `wandb sync` sends what stands in %s/wandb",
                    error, self._run_dir,
                )  # fmt: skip
        except Exception as error:
            if not self._closed:
                log.warning("W&B: %s. Metrics go to %s/metrics.jsonl alone", error, self._run_dir)
        finally:
            self._end()

    def _start(self) -> None:
        """Start W&B as wanted, or with files in the run directory where its server is not to be had.

        Raises:
            _MirrorFailed, OSError: it does not start.
        """
        if importlib.util.find_spec("wandb") is None:
            raise _MirrorFailed(f"it is not installed in {sys.prefix}")
        (self._run_dir / "wandb").mkdir(exist_ok=True)
        try:
            self._spawn()
            self._ask(self._wanted, START_TIMEOUT_S)
        except _MirrorFailed as error:
            if self._wanted["mode"] == "offline":
                raise
            self._end()
            log.warning(
                "W&B is offline: it does not start online (%s). Its files are in %s/wandb, `wandb sync` sends them",
                error, self._run_dir,
            )  # fmt: skip
            self._wanted["mode"] = "offline"
            self._spawn()  # a service that has failed with a run keeps its id
            self._ask(self._wanted, START_TIMEOUT_S)

    def _spawn(self) -> None:
        # WANDB_SERVICE is set where a process that uses W&B has started this one: its service ends with it, and would
        # not let a run that was killed begin again ("run ID ... is in use"). The mode is ours, see `choose_mode`.
        environment = process.child_environment(WANDB_DISABLE_WEAVE="true")  # it advertises itself on every start
        environment = {k: v for k, v in environment.items() if k not in ("WANDB_SERVICE", "WANDB_MODE")}
        # Where files of artifacts wait to be sent: another host that sees the run directory may send them.
        environment.setdefault("WANDB_DATA_DIR", str(self._run_dir.resolve() / "wandb"))
        with self._lock:
            if self._closed:
                raise _MirrorFailed("the run is over")
            self._child = process.spawn(
                [sys.executable, "-m", "r1mega.runtime.wandb_process"],
                environment=environment,
                log_file=self._log_file,
                talk=True,
            )

    def _ask(self, line: Any, timeout_s: float) -> dict[str, Any]:
        """What W&B's process answers.

        Raises:
            _MirrorFailed: an error, no answer in time, or no process.
        """
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        gone = f"its process has ended; see {self._log_file}"
        try:
            os.write(child.stdin.fileno(), json.dumps(line).encode() + b"\n")
        except OSError:
            raise _MirrorFailed(gone) from None
        deadline, answer = time.monotonic() + timeout_s, b""
        while not answer.endswith(b"\n"):
            if not select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _MirrorFailed(f"no answer within {timeout_s:g} s")
            more = os.read(child.stdout.fileno(), 1 << 16)
            if not more:
                raise _MirrorFailed(gone)
            answer += more
        told = json.loads(answer)
        if "error" in told:
            raise _MirrorFailed(" ".join(told["error"].split())[:500])
        for said in told.get("said", ()):
            log.warning("W&B: %s", " ".join(said.split())[:500])
        return told

    def _end(self) -> None:
        """End W&B's process, and all it started."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            process.stop_group(child, grace_s=0.0)


class _MirrorFailed(Exception):
    """W&B does not do what it was asked."""
