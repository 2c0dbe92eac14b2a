"""Servers that a chain's stages hand on: each finds the one before's running and gives them its own weights.

Who owns what, downwards in time:

    the chain's process            a stage's process                   the server's guard and vLLM
    -------------------            -----------------                   ---------------------------
    keeping(): tells its children
    its own identity, and a folder
    runs stage 1 ----------------> begin(): nothing is recorded
                                    takes the server's lock
                                    spawns ------------------------->  guard watches the CHAIN
                                    records it in server.json
                                   asks; stop(): lets go of the lock   goes on
    runs stage 2 ----------------> begin(): what is recorded runs,
                                    and is laid out as is wanted
                                    takes the lock and the server
                                   gives it its folder's weights,
                                    or pushes its policy's
                                   asks; stop()                        goes on
    runs stage 3 ----------------> begin(): wants another model:
                                    ends it, spawns another -------->  another
    end(): ends it ------------------------------------------------->  ends
    or is gone, however                                                sees that, and ends

Several servers of a stage are handed on together, each with a lock, a record and a log of its own. A later stage that
wants another number of them ends those that it has no place for.

A server is owned by the chain alone, which never speaks to it; a stage has it for as long as it holds the lock,
and may end it and start another in its place, as it does with one that is dead or frozen. What is recorded is no
promise: a stage takes a server whose guard runs and which answers, and its weights are of no version until that stage
has given it its own. So answers are those of a server that was started by the stage.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

import httpx

from r1mega.config.cluster import RolloutLayout
from r1mega.families.registry import read_language_model
from r1mega.rollout.alike import kind_of
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.server import STOP_GRACE_S, Server
from r1mega.rollout.several import begin_all, marked, marks
from r1mega.runtime import env, files, locks, process
from r1mega.runtime.process import Adopted, Identity

log = logging.getLogger(__name__)

RECORD, LOCK, LOG = "server.json", ".lock", "vllm.log"
OF_THE_ASKER = ("servers", "start_timeout_s", "request_timeout_s", "health_timeout_s", "max_restarts")
"""Settings of a layout that a running server knows nothing of."""
NO_VERSION = "left by an earlier stage"
"""Of weights, until the stage that has taken the server has given it its own."""


@dataclass(frozen=True)
class Keeper:
    """On whose behalf servers outlive the stages that start them, and where they are recorded."""

    owner: Identity
    folder: Path
    room: int = 0
    """Tokens of prompt and answer for which a server is laid out at least, as far as its model has positions."""

    def tell(self) -> None:
        """Let the processes that this one starts from here on hand their server on."""
        env.keep_server(json.dumps([*self.owner, str(self.folder), self.room]))

    @classmethod
    def told(cls) -> Self | None:
        """Who has told this process to hand its server on; None where nobody has, or it is gone."""
        if (how := env.kept_server()) is None:
            return None
        pid, started, folder, room = json.loads(how)
        keeper = cls(Identity(pid, started), Path(folder), room)
        return keeper if keeper.owner.runs() else None

    def recorded(self) -> list[str]:
        """The marks of all servers that are recorded (`several.marks`), whether or not they run."""
        first, last = RECORD.split(".")
        return [file.stem.removeprefix(first) for file in sorted(self.folder.glob(f"{first}*.{last}"))]

    def record(self, mark: str = "") -> Mapping[str, Any] | None:
        """What is recorded of the server of a mark, where its guard runs."""
        try:
            found = json.loads(marked(self.folder / RECORD, mark).read_text())
        except (OSError, ValueError):
            return None
        return found if Identity(*found["guard"]).runs() else None

    def end(self, *others_than: str) -> None:
        """End the servers that are recorded, where they run, but for those of these marks."""
        for mark in self.recorded():
            if mark not in others_than:
                self.end_one(mark)

    def end_one(self, mark: str) -> None:
        """End the server that is recorded under a mark, where one runs."""
        found = self.record(mark)
        marked(self.folder / RECORD, mark).unlink(missing_ok=True)
        if found is not None:
            process.stop_group(Adopted(Identity(*found["guard"])), grace_s=STOP_GRACE_S)


def kinds_left() -> frozenset[str]:
    """Of which kinds (`alike.kind_of`) the servers are that an earlier stage of the chain has left running."""
    if (keeper := Keeper.told()) is None:
        return frozenset()
    found = (keeper.record(mark) for mark in keeper.recorded())
    return frozenset(record["kind"] for record in found if record is not None)


def begin_own(
    model_dir: Path,
    layout: RolloutLayout,
    *,
    max_model_len: int,
    seed: int,
    log_file: Path,
    places: Sequence[ServerPlace] = (),
) -> tuple[Server, ...]:
    """`layout.servers` servers that end with the stage, each at its place. Arguments and Raises: see `Server`."""

    def start(mark: str, layout: RolloutLayout, place: ServerPlace) -> Server:
        own = marked(log_file, mark)
        return Server(model_dir, layout, max_model_len=max_model_len, seed=seed, log_file=own, place=place)

    return begin_all(start, layout, places)


def begin(
    model_dir: Path,
    layout: RolloutLayout,
    *,
    max_model_len: int,
    seed: int,
    log_file: Path,
    places: Sequence[ServerPlace] = (),
) -> tuple[Server, ...]:
    """Servers for a stage: those an earlier one has left, where they are laid out as this one asks; else new ones.

    Outside a chain that keeps its servers, while other servers of this stage are the kept ones, and where a launcher
    starts servers elsewhere, they are as of `begin_own`. Arguments and Raises: see there.
    """
    keeper = Keeper.told()
    held = None if keeper is None or layout.launch or layout.attendants else _taken(keeper, layout.servers)
    if keeper is None or held is None:
        sizes = {"max_model_len": max_model_len, "seed": seed}
        return begin_own(model_dir, layout, **sizes, log_file=log_file, places=places)
    keeper.end(*held)

    def start(mark: str, layout: RolloutLayout, place: ServerPlace) -> Server:
        lock, sizes = held[mark], {"max_model_len": max_model_len, "seed": seed}
        return KeptServer(keeper, mark, lock, model_dir, layout, **sizes, place=place)

    return begin_all(start, layout, places, cleanup=lambda: _let_go(held.values()))


def _taken(keeper: Keeper, number: int) -> dict[str, IO[str]] | None:
    """The locks of so many servers, by their marks; None where not all can be had."""
    files.make_folder(keeper.folder)
    locked: dict[str, IO[str]] = {mark: (keeper.folder / f"{LOCK}{mark}").open("w") for mark in marks(number)}
    if all(locks.take(lock) for lock in locked.values()):
        return locked
    _let_go(locked.values())
    return None


def _let_go(locked: Iterable[IO[str]]) -> None:
    for lock in locked:
        locks.release(lock)


class KeptServer(Server):
    """A server that goes on when its stage has ended; see the module."""

    def __init__(
        self,
        keeper: Keeper,
        mark: str,
        lock: IO[str],
        model_dir: Path,
        layout: RolloutLayout,
        *,
        max_model_len: int,
        seed: int,
        place: ServerPlace,
    ) -> None:
        """lock: of the mark's server, which is held."""
        self._keeper, self._mark, self._lock = keeper, mark, lock
        self._file = marked(keeper.folder / RECORD, mark)
        room = max(max_model_len, min(keeper.room, read_language_model(model_dir).max_positions))
        self._wanted = max_model_len
        self._laid_out = {
            "kind": kind_of(model_dir),
            "layout": _seen_by_server(layout),
            "place": json.loads(json.dumps(asdict(place))),
        }
        log_file = marked(keeper.folder / LOG, mark)
        super().__init__(model_dir, layout, max_model_len=room, seed=seed, log_file=log_file, place=place)

    def start(self) -> None:
        """Take the server that was left, at the first start; else start one, and record it."""
        left = self._left() if not self.incarnation else None
        if left is None:
            super().start()
            identity = Identity.of(self.pid)
            if identity is not None:
                files.write_json(self._file, self._record(identity))
            return
        self.port, self.max_model_len = left["port"], left["max_model_len"]
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        self._started, self._process = time.monotonic(), Adopted(Identity(*left["guard"]))
        self.pid = self._process.pid
        self.incarnation, self.foreign = 1, True

    def _left(self) -> Mapping[str, Any] | None:
        """What is recorded of a server that fits; one that does not is ended."""
        found = self._keeper.record(self._mark)
        if found is None:
            return None
        differing = [name for name, value in self._laid_out.items() if found[name] != value]
        if not differing and found["max_model_len"] >= self._wanted:
            return found
        self.max_model_len = max(self.max_model_len, 0 if differing else found["max_model_len"])
        why = (
            " and ".join(differing) if differing else f"room for {found['max_model_len']} tokens, not {self._wanted}"
        )
        log.info("the server of an earlier stage is ended: another %s", why)
        self._keeper.end_one(self._mark)
        return None

    def _record(self, guard: Identity) -> dict[str, Any]:
        return {**self._laid_out, "guard": list(guard), "port": self.port, "max_model_len": self.max_model_len}

    def _spawn(self) -> process.Spawned:
        if not self._keeper.owner.runs():
            return super()._spawn()
        return process.spawn(
            self._command(), environment=self._environment(), log_file=self.log_file, owner=self._keeper.owner
        )

    def wait_ready(self) -> float:
        """See `Server`; one that was left and does not answer any more is started anew."""
        if self._ready or not self.foreign:
            return super().wait_ready()
        if self.healthy(self.layout.health_timeout_s) and self._disowned():
            seconds = 0.0
        else:
            seconds = self.restart("an earlier stage has left it, and it does not answer")
        self._ready = True
        return seconds

    def _disowned(self) -> bool:
        """Whether its weights are of no version from now on; False where it does not answer."""
        try:
            with self._http(self.layout.health_timeout_s) as http:
                body = {"new_version": NO_VERSION}
                return http.post("/update_weight_version", json=body).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def restart(self, reason: str) -> float:
        self._ready = False
        return super().restart(reason)

    def _end(self, *, grace_s: float) -> None:
        self._file.unlink(missing_ok=True)
        if not (isinstance(self._process, Adopted) and self._process.returncode is not None):
            super()._end(grace_s=grace_s)

    def stop(self) -> None:
        """Leave it to the next stage, if it serves and the chain goes on; otherwise end it."""
        if (self._ready or self.foreign) and self.alive() and self._keeper.owner.runs():
            self._ended_for_good = True
        else:
            super().stop()
        locks.release(self._lock)


def _seen_by_server(layout: RolloutLayout) -> dict[str, Any]:
    return json.loads(layout.model_dump_json(exclude=set(OF_THE_ASKER)))
