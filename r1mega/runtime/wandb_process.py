"""The one process of a run that imports wandb: `python -m r1mega.runtime.wandb_process`, as mirror.py starts it.

It reads JSON lines from stdin and answers each with one on stdout: {}, {"said": [texts]} or {"error": text}. The
first holds what `wandb.init` is given, and is answered with the mode that it runs in; then {"stands": bytes} of
metrics.jsonl, as it is before this part adds to it, {"row": metrics} each step, and last {"finish": exit code}. What
else is shown it finds in the run directory by itself (wandb_folder.py), between lines as well. What wandb itself
writes goes to stderr. Its errors, its waits, its exit hooks and its service are thus nobody else's.
"""

import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from r1mega.runtime.process import STOP_SIGNALS
from r1mega.runtime.wandb_folder import ShownFolder
from r1mega.runtime.wandb_parts import PartsState, RowNumbers, left_out, parts_of

INIT_TIMEOUT_S = 10.0
"""How long wandb tries to reach its server; only then come the files."""
FINISH_TIMEOUT_S = 40.0
"""How long it goes on uploading when the run is over."""
FLUSH_S = 1.0
"""How often it writes what it was given to its file: what a kill takes, and what a sync beside the run waits for."""
LOOK_EVERY_S = 5.0
"""How often the run directory is looked at."""


class WandbSession:
    """A part of a run at W&B."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        """Begin it.

        Args:
            wanted: as `mirror.Mirror` puts it together.
        """
        self._dir = Path(wanted["dir"])
        self._state = PartsState.of(self._dir)
        self._numbers = RowNumbers(self._state, self._dir)
        self._earlier = parts_of(self._dir, self._state.id)
        self._run, self.mode = _begin(wanted, self._state)
        # Online W&B says at which number it is, which is higher where an earlier part was sent after a later one.
        self._numbers.go_on_from(self._run.starting_step)
        self._sent: int | None = self._run.starting_step if self.mode == "online" else None
        self._state.parts += 1
        self._state.save(self._dir)
        self._folder = ShownFolder(self._dir, self._run, self._state, wanted["settings"], self._numbers.take)
        self._looked = time.monotonic()

    def log(self, row: dict[str, Any]) -> None:
        """A row, with the number of this part."""
        self._folder.step = max(self._folder.step, row["step"] if row.get("kind") == "train" else -1)
        self._run.log(row | {"part": self._state.parts}, step=self._numbers.take(), commit=True)

    def make_up(self, size: int) -> list[str]:
        """Log what earlier parts lack of the first `size` bytes of metrics.jsonl; returns what is to be said."""
        if not size:
            return []
        if (gone := self._state.parts - 1 - len(self._earlier)) > 0:
            return [f"{gone} earlier parts are no longer in wandb/, so nobody can tell whether rows lack there"]
        lines = (self._dir / "metrics.jsonl").read_bytes()[:size].splitlines()
        metrics = [{k: v for k, v in json.loads(line).items() if _is_shown(k, v)} for line in lines]
        self._folder.step = max((row["step"] for row in metrics if row["kind"] == "train"), default=-1)
        rows = left_out(metrics, self._earlier, self._sent)
        for row in rows:
            self.log(row)
        # A part that is sent leaves nothing of an earlier one's summary.
        self._run.summary.update({name: value for row in metrics for name, value in row.items()})
        return [f"{len(rows)} rows that earlier parts lack are logged now"] if rows else []

    def look_if_due(self) -> list[str]:
        if time.monotonic() < self._looked + LOOK_EVERY_S:
            return []
        said = self._folder.look()
        self._looked = time.monotonic()
        return said

    def finish(self, exit_code: int, *, preempted: bool = False) -> list[str]:
        """End it: with 0 where the run is done; `preempted`: it was asked to leave, and will go on."""
        said = self._folder.look(last=exit_code == 0)
        self._numbers.give_back()
        self._state.save(self._dir)
        if preempted:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        import wandb

        wandb.teardown()  # until its service has written what it has
        return said


def _is_shown(name: str, value: Any) -> bool:
    return isinstance(value, int | float) or name == "kind"


def _begin(wanted: dict[str, Any], state: PartsState) -> tuple[Any, str]:
    """The run of W&B, and the mode it is in."""
    import wandb

    mode = wanted["mode"]
    if mode == "auto":
        # Not verified: that would be a request without a limit.
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    given = {
        name: wanted[name] for name in ("project", "entity", "name", "group", "job_type", "tags", "config", "dir")
    }
    run = wandb.init(
        **given,
        id=state.id,
        # Also of the first part, which may be sent when a later one is there; and offline, for whoever sends it.
        resume="allow",
        mode=mode,
        settings=wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            x_transaction_log_flush_interval=FLUSH_S,
            program=wanted["program"],
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
        ),
    )
    # Lines come out of order in steps (an evaluation after its step), so our own step is the axis.
    run.define_metric("*", step_metric="step")
    return run, mode


def _serve(asked: Iterator[Any], answers: IO[str]) -> None:
    """Do what each line asks, and say how that went; where none comes for a while, look at the run directory."""
    session: WandbSession | None = None
    unsaid: list[str] = []
    for line in asked:
        if line is None:
            unsaid += session.look_if_due() if session else []
            continue
        answer: dict[str, Any] = {}
        try:
            if session is None:
                session = WandbSession(line)
                answer["mode"] = session.mode
            elif "finish" in line:
                unsaid += session.finish(line["finish"], preempted=line["preempted"])
            elif "stands" in line:
                unsaid += session.make_up(line["stands"])
            else:
                session.log(line["row"])
            if unsaid:
                answer["said"], unsaid = unsaid, []
        except BaseException as error:  # it raises what it likes, SystemExit among it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "finish" in line or "error" in answer:
            return
        if session is not None:  # behind the answer: a look that takes long is no row that hangs
            unsaid += session.look_if_due()
    if session is not None:  # the trainer is gone
        with suppress(BaseException):
            session.finish(1)


def _lines(source: int, idle_s: float) -> Iterator[Any]:
    """What comes from a file descriptor, a JSON value a line; None wherever nothing has come for a while."""
    held = b""
    while True:
        while b"\n" in held:
            line, _, held = held.partition(b"\n")
            yield json.loads(line)
        if not select.select([source], [], [], idle_s)[0]:
            yield None
        elif more := os.read(source, 1 << 16):
            held += more
        else:
            return


if __name__ == "__main__":
    for _number in STOP_SIGNALS:  # the trainer heeds them, and has rows to log until it ends
        signal.signal(_number, signal.SIG_IGN)
    # Before anything of wandb runs: it would write among the answers, and ask the user on stdin.
    _asked, _answers = os.dup(0), os.fdopen(os.dup(1), "w")
    _null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(_null, 0)
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        _serve(_lines(_asked, LOOK_EVERY_S), _answers)
    sys.stdout.flush()
    os._exit(0)  # exit hooks of wandb would wait for its service, frozen as it may be
