"""The proof of a push: what every worker holds afterwards is what was sent, number by number (`weights.digest`).

    ledger = proof.begin(client)            # asks the workers which boxes of which tensors they will hold
    send(ledger.watch(stream))              # takes the numbers of those boxes as the tensors pass
    proof.check(client, ledger)             # asks the workers for theirs
    proof.again()                           # and later, such as after the engine has slept and woken

Bit for bit, through the layouts of the engine: split and fused matrices, experts spread over ranks, a tied head.
Where the engine computes in another dtype than the tensors are sent in, the numbers are of what rounding them once
gives.

What is read back is what the engine computes with, wherever a kernel gives it back (`weights.read_back`): all on a
CPU, and unquantised weights on CUDA whose experts are Triton's. What a kernel has changed for good (8-bit weights and
their scales, other experts' kernels) is proven as it was loaded, just before: `Result.loaded` counts it. Not proven
are buffers that no push changes (rotary tables, scales of the cache) and the memory between a proof and the next.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from r1mega.rollout.server import Server
from r1mega.weights.digest import digest

log = logging.getLogger(__name__)

SHOWN = 20
"""Differences that an error names; the log has all."""


class BoxPlace(NamedTuple):
    """A box of a tensor, in a dtype."""

    name: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str


class Held(NamedTuple):
    """A box that a worker says it has."""

    place: BoxPlace
    where: str
    """The worker, and the engine's own name of what it is in: `dp0:pp0:pcp0:tp1:model.norm.weight`."""
    number: int | None
    how: str
    """read back, or as it was loaded."""

    @property
    def worker(self) -> str:
        return ":".join(self.where.split(":")[:4])


@dataclass(frozen=True)
class Result:
    """What one proof found, where it found no difference."""

    servers: tuple[Server, ...]
    seconds: float
    """Of asking for and comparing the numbers, and of taking the trainer's."""
    boxes: int
    loaded: int
    """Of `boxes`, those proven as they were loaded and not read back from the kernel."""


class ProofError(RuntimeError):
    """Servers hold something else than was sent: every difference, by server."""

    def __init__(self, faults: Mapping[Server, Sequence[str]]) -> None:
        self.faults = faults
        lines = [f"{server.url}: {fault}" for server, found in faults.items() for fault in found]
        more = f"\n  and {len(lines) - SHOWN} more, which are in the log" if len(lines) > SHOWN else ""
        super().__init__(
            f"the engine does not hold what was sent, at {len(lines)} places:\n  " + "\n  ".join(lines[:SHOWN]) + more
        )


class Ledger:
    """The trainer's numbers of one push, of the boxes that the workers hold."""

    def __init__(self, plan: Mapping[Server, Sequence[Held]]) -> None:
        self.shapes = dict[str, tuple[int, ...]]()
        """Of the tensors that have passed."""
        self.seconds = 0.0
        boxes = dict.fromkeys(held.place for found in plan.values() for held in found)
        self._boxes = dict[str, list[BoxPlace]]()
        for place in boxes:
            self._boxes.setdefault(place.name, []).append(place)
        self._numbers = dict[str, Tensor]()
        self._done: dict[BoxPlace, int] | None = None

    def watch(self, stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The stream, its tensors unchanged; each is looked at before it is handed on."""
        for name, tensor in stream:
            begin = time.perf_counter()
            self.shapes[name] = tuple(tensor.shape)
            if found := [_number(tensor, place) for place in self._boxes.get(name, ())]:
                self._numbers[name] = torch.stack(found)
            self.seconds += time.perf_counter() - begin
            yield name, tensor

    @property
    def numbers(self) -> dict[BoxPlace, int]:
        """Of every box of a tensor that has passed."""
        if self._done is None:
            values = {name: numbers.tolist() for name, numbers in self._numbers.items()}
            self._done = {p: v for name, vs in values.items() for p, v in zip(self._boxes[name], vs, strict=True)}
        return self._done


def _number(tensor: Tensor, place: BoxPlace) -> Tensor:
    """The number that a worker's box must have; of what is not there, one that none has by accident."""
    if tensor.ndim != len(place.start):
        return torch.full((), -1, dtype=torch.int64, device=tensor.device)
    box = tensor[tuple(slice(s, s + n) for s, n in zip(place.start, place.shape, strict=True))]
    return digest(box.to(getattr(torch, place.dtype)), place.start)


class Proof:
    """When pushes are proven, and the last proof."""

    def __init__(self, every: int) -> None:
        """every: the first push and each so-manieth are proven, and the first to each start of a server; 0: none."""
        self._every, self._pushes = every, 0
        self._proven = dict[Server, int]()
        """Server -> its start that has been proven."""
        self._found: Result | None = None
        self._last: tuple[Any, Ledger] | None = None

    def due(self, servers: Sequence[Server]) -> bool:
        """Whether the push that begins now is to be proven."""
        new = any(self._proven.get(server) != server.incarnation for server in servers)
        return self._every > 0 and (new or self._pushes % self._every == 0)

    def begin(self, client: Any) -> Ledger:
        """The ledger of a push that is about to be sent to the client's servers."""
        return Ledger({server: _held(lines) for server, lines in client.prove("plan").items()})

    def check(self, client: Any, ledger: Ledger) -> None:
        """Compare what all workers hold with what was sent.

        Raises:
            ProofError: at every difference of every worker, with the tensors of which no worker has a part.
        """
        self._found = _compared(client, ledger, "held")
        self._proven |= {server: server.incarnation for server in self._found.servers}
        self._last = client, ledger

    def again(self) -> Result | None:
        """Compare once more what all workers hold with what the last push has sent, where that was proven.

        Raises:
            ProofError: as `check`.
        """
        return None if self._last is None else _compared(*self._last, "again")

    def succeeded(self) -> Result | None:
        """The push has come to its end; what its proof has found, where there was one."""
        self._pushes += 1
        found, self._found = self._found, None
        self._last = self._last if found is not None else None
        return found


def _compared(client: Any, ledger: Ledger, action: str) -> Result:
    begin = time.perf_counter()
    found = {server: _held(lines) for server, lines in client.prove(action).items()}
    faults = {server: differences(held, ledger, server.world_size) for server, held in found.items()}
    if wrong := {server: lines for server, lines in faults.items() if lines}:
        for server, lines in wrong.items():
            for line in lines:
                log.error("%s: %s", server.url, line)
        raise ProofError(wrong)
    every = [held for of_server in found.values() for held in of_server]
    taken_s, ledger.seconds = ledger.seconds, 0.0
    seconds = time.perf_counter() - begin + taken_s
    return Result(tuple(found), seconds, len(every), sum(held.how != "read back" for held in every))


def _held(lines: Mapping[str, str]) -> list[Held]:
    """What one server's workers said (`weights.proof_worker`)."""
    found = []
    for key, line in lines.items():
        name, start, shape, dtype, number, how = json.loads(line)
        found.append(Held(BoxPlace(name, tuple(start), tuple(shape), dtype), key.partition("|")[0], number, how))
    return found


def differences(found: Sequence[Held], ledger: Ledger, world_size: int) -> list[str]:
    """What one server's workers hold that was not sent so, and what of the tensors none of them has."""
    lines = list[str]()
    if (workers := len({held.worker for held in found})) != world_size:
        lines.append(f"{workers} workers have answered of {world_size}")
    for held in found:
        if fault := _difference(held, ledger):
            place = held.place
            box = ", ".join(f"{s}:{s + n}" for s, n in zip(place.start, place.shape, strict=True))
            lines.append(f"{held.where}: {place.name}[{box}] {place.dtype} {fault}")
    by_name = dict[str, set[BoxPlace]]()
    for held in found:
        by_name.setdefault(held.place.name, set()).add(held.place)
    for name, shape in ledger.shapes.items():
        if missing := _missing(shape, by_name.get(name, set())):
            lines.append(f"{name} {list(shape)}: {missing}")
    return lines


def _difference(held: Held, ledger: Ledger) -> str:
    if held.place.name not in ledger.shapes:
        return "was not sent, and is what it was before"
    sent = ledger.numbers.get(held.place)
    if sent is None:
        return "was not announced before the push"
    if held.number is None:
        return "cannot be read back from its kernel, and was not loaded"
    return "" if held.number == sent else f"is not what was sent ({held.how})"


def _missing(shape: tuple[int, ...], places: set[BoxPlace]) -> str:
    """What the boxes leave out of a tensor, if anything. Equal boxes are copies; others must not overlap."""
    boxes = {(place.start, place.shape) for place in places}
    if not boxes:
        return "no worker has any of it"
    covered, whole = sum(math.prod(size) for _, size in boxes), math.prod(shape)
    return "" if covered == whole else f"the workers have {covered} of its {whole} elements"
