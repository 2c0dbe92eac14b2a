"""Send what runs without a network leave for W&B, from a machine that has one: beside them, until they are done.

    python -m r1mega.runtime.wandb_sync RUN_DIR [--every S] [--patience S] [--once]

RUN_DIR is a run's or a chain's. Each part of a run (wandb_parts.py) is sent once, by W&B's own `wandb sync`, and
marked by it; the next one only then. The part that a run is writing is followed (`wandb beta sync --live`), so that
its state at W&B is the run's. What cannot be sent is tried again, and said.

Leaves with 0 when all runs are done and sent (with --once: when all that was whole is sent), with 1 when something is
left that nobody adds to any more, with 2 when it cannot begin.
"""

import argparse
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from r1mega.runtime import events, locks, process
from r1mega.runtime.provenance import CHAIN, RUN
from r1mega.runtime.wandb_parts import OFFLINE, has_ended, parts_of

log = logging.getLogger("wandb_sync")

EVERY_S = 60.0
PATIENCE_S = 86400.0
"""How long nothing may change in the run directory until nobody waits for its end any more."""
SEND_TIMEOUT_S = 3600.0
MARK = ".synced"
"""After the name of a .wandb file: all of it is sent. `wandb sync` makes and heeds such files itself."""
TRIES = 3
"""How often a part is tried before later ones of its run no longer wait for it. It is tried again, first, all the
same, and the rows that come late are none the fewer."""
TORN = (b"incomplete record", b"transactionlog")
"""What `wandb sync` says of a file whose writer was killed within a record, once all before that is sent."""
LOCK, LOG = ".wandb_sync.lock", "wandb_sync.log"


@dataclass
class PartFollower:
    """What sends a part while it is being written."""

    part: Path
    child: subprocess.Popen[bytes]
    over_since: float | None = None


@dataclass
class OfflineSync:
    """The sending of all runs in a folder."""

    root: Path
    every_s: float
    """Between two turns. A file that has not changed for so long is not being written, and what follows a part that
    was torn off has by then sent what it has read."""
    followers: dict[Path, PartFollower] = field(default_factory=dict[Path, PartFollower])
    failed: dict[Path, tuple[int, str]] = field(default_factory=dict[Path, tuple[int, str]])
    """Part -> how often it could not be sent in a row, and why the last time."""

    def turn(self, *, follow: bool) -> None:
        """Send what is whole, and follow what is being written."""
        for run_dir in self.run_dirs():
            self._turn_of(run_dir, follow=follow)

    def run_dirs(self) -> list[Path]:
        """Of the run, or of all stages of the chain that have begun."""
        return [path for path in (self.root, *sorted(self.root.glob("*/"))) if (path / RUN).is_file()]

    def unsent(self, run_dir: Path) -> list[Path]:
        """A run's offline parts that are not sent yet; online ones send themselves."""
        offline = (part for part in parts_of(run_dir) if part.parent.name.startswith(OFFLINE))
        return [part for part in offline if not part.with_name(part.name + MARK).exists()]

    def done(self) -> bool:
        """Whether nothing is left to send, and nothing will come."""
        runs = self.run_dirs()
        whole = not (self.root / CHAIN).is_file() or (self.root / "summary.json").is_file()
        finished = all(last_word(run_dir) == "finished" for run_dir in runs)
        return bool(runs) and whole and finished and not self.followers and not any(map(self.unsent, runs))

    def changed_at(self) -> float:
        """When any run last wrote anything that would be sent, in seconds since 1970."""
        seen = [self.root, *(file for run in self.run_dirs() for file in (run / events.FILE, *parts_of(run)))]
        return max(file.stat().st_mtime for file in seen if file.exists())

    def stop(self) -> None:
        for follower in self.followers.values():
            process.stop_group(follower.child, grace_s=5.0)
        self.followers.clear()

    def _turn_of(self, run_dir: Path, *, follow: bool) -> None:
        if (follower := self.followers.get(run_dir)) and not self._has_come_to_its_end(run_dir, follower):
            return
        for part in self.unsent(run_dir):
            if self._is_over(run_dir, part):
                if not self._send(part) and self.failed[part][0] < TRIES:
                    return  # in order, so far as that can be
            elif follow:
                log.info("%s: followed, while the run writes it", part.parent)
                child = self._spawn("beta", "sync", "--live", str(part))
                self.followers[run_dir] = PartFollower(part, child)
                return
            else:
                log.info("%s: still being written", part.parent)
                return

    def _has_come_to_its_end(self, run_dir: Path, follower: PartFollower) -> bool:
        """Whether a part is followed no more: it is sent, or will be by `_send`, or its writer was killed."""
        part = follower.part
        if (code := follower.child.poll()) is not None:
            del self.followers[run_dir]
            if part not in self.unsent(run_dir):
                log.info("%s: sent", part.parent)
            else:
                self._fail(part, f"`wandb beta sync --live` left with exit code {code}")
            return True
        if not self._is_over(run_dir, part) or has_ended(part):
            return False
        # Its writer cannot say any more that it is over, and all that there is of it has been read.
        follower.over_since = follower.over_since or time.monotonic()
        if time.monotonic() < follower.over_since + self.every_s:
            return False
        process.stop_group(follower.child, grace_s=5.0)
        del self.followers[run_dir]
        part.with_name(part.name + MARK).touch()
        log.info("%s: sent; its writer was killed", part.parent)
        return True

    def _is_over(self, run_dir: Path, part: Path) -> bool:
        """Whether nobody adds to a part: it says so, a later one has begun, or its run has ended otherwise."""
        if part != parts_of(run_dir)[-1]:
            return True
        if time.time() < part.stat().st_mtime + self.every_s:
            return False
        return has_ended(part) or last_word(run_dir) in events.ENDED

    def _send(self, part: Path) -> bool:
        said = self.root / LOG
        before = said.stat().st_size if said.exists() else 0
        child = self._spawn("sync", str(part))
        try:
            child.wait(SEND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.stop_group(child, grace_s=5.0)
            return self._fail(part, f"not sent within {SEND_TIMEOUT_S:g} s")
        if part.with_name(part.name + MARK).exists():
            log.info("%s: sent", part.parent)
            self.failed.pop(part, None)
            return True
        if any(words in said.read_bytes()[before:] for words in TORN):
            log.warning("%s: sent as far as it can be read; its writer was killed", part.parent)
            part.with_name(part.name + MARK).touch()
            self.failed.pop(part, None)
            return True
        return self._fail(part, "`wandb sync` could not send it")

    def _fail(self, part: Path, why: str) -> bool:
        tries, before = self.failed.get(part, (0, ""))
        if before != why:
            log.warning("%s: %s; tried again. %s says more", part.parent, why, self.root / LOG)
        self.failed[part] = tries + 1, why
        return False

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """wandb's command line, which ends with this process; it asks nobody anything."""
        environment = process.child_environment()
        for name in ("WANDB_MODE", "WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RUN_GROUP"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "wandb", *arguments]
        return process.spawn(command, environment=environment, log_file=self.root / LOG)


def last_word(run_dir: Path) -> str:
    """The kind of the newest event of a run that says that it began or ended; "" where there is none."""
    found = [event.kind for event in events.read(run_dir) if event.kind in events.BEGUN | events.ENDED]
    return found[-1] if found else ""


def run(root: Path, *, every_s: float, patience_s: float, once: bool) -> int:
    """Send until all is done; returns the exit code."""
    sync = OfflineSync(root, every_s)
    try:
        while True:
            sync.turn(follow=not once)
            left = [part for run_dir in sync.run_dirs() for part in sync.unsent(run_dir)]
            if once:
                return 1 if sync.failed else 0
            if sync.done():
                log.info("%s: done, and all of it is sent", root)
                return 0
            if time.time() > sync.changed_at() + patience_s:
                log.warning("%s: nothing has changed for %g s; %d part(s) are left", root, patience_s, len(left))
                return 1
            time.sleep(every_s)
    finally:
        sync.stop()


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[bool]:
    """Whether nobody else sends the same runs; until the end."""
    lock: IO[str]
    with (root / LOCK).open("w") as lock:
        yield locks.take(lock)


def main() -> int:
    parser = argparse.ArgumentParser(prog="wandb_sync", description="Send offline W&B files of a run or a chain.")
    parser.add_argument("run_dir", type=Path, help="run directory, of a stage or of a chain")
    parser.add_argument("--every", type=float, default=EVERY_S, metavar="S", help="seconds between two looks")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE_S, metavar="S", help="without any change, then leave"
    )
    parser.add_argument("--once", action="store_true", help="send what is whole now, and leave")
    asked = parser.parse_args()
    logging.basicConfig(format="%(name)s: %(asctime)s %(message)s", datefmt="%FT%T", level=logging.INFO)
    if not asked.run_dir.is_dir():
        print(f"wandb_sync: {asked.run_dir}: no such folder; name a run directory", file=sys.stderr)
        return 2
    with _alone(asked.run_dir) as alone:
        if not alone:
            print(
                f"wandb_sync: {asked.run_dir}: its runs are being sent already, by another process", file=sys.stderr
            )
            return 2
        return run(asked.run_dir.resolve(), every_s=asked.every, patience_s=asked.patience, once=asked.once)


if __name__ == "__main__":
    process.settle_signals()
    sys.exit(main())
