"""One process of the all-reduce that is done before a stage starts; says on its standard output how far it has come.

    python -m r1mega.runtime.node_warmup HOST PORT RANK WORLD GPU MIB SECONDS NEIGHBOUR...

GPU: its number on this node, over NCCL; -1: none, over gloo. NEIGHBOUR: ranks of other nodes, in an order in which
all nodes can meet them; "" to sit a round out. A line is a word of `node_verdict.PHASES`, or "sum SECONDS",
"link RANK MIB_A_SECOND", "failed TEXT".
"""

import datetime
import sys
import time
from collections.abc import Sequence
from typing import Any

from r1mega.runtime import env, network

LINK_MIB = 8
"""Sent to a neighbour, and back."""


def main(arguments: Sequence[str]) -> int:
    host, port, rank, world, gpu, mib, seconds, *neighbours = arguments
    try:
        _meet(host, int(port), int(rank), int(world), int(gpu), float(mib), float(seconds), neighbours)
    except Exception as error:  # whatever torch, gloo or NCCL raise is what is to be told
        _say(f"failed {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return 1
    _say("done")
    return 0


def _meet(
    host: str, port: int, rank: int, world: int, gpu: int, mib: float, seconds: float, neighbours: Sequence[str]
) -> None:
    import torch
    import torch.distributed as dist

    env.use_interface(network.interface_of(network.local_address(host)))
    limit = datetime.timedelta(seconds=seconds)
    device = torch.device("cpu") if gpu < 0 else torch.device("cuda", gpu)
    if gpu >= 0:
        torch.cuda.set_device(device)
    _say("here")
    store = dist.TCPStore(host, port, world, is_master=rank == 0, timeout=limit, wait_for_workers=False)
    backend = "gloo" if gpu < 0 else "nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    # NCCL makes its connections at the first sum, gloo at the start: so both have met when one number is summed.
    dist.all_reduce(one := torch.ones(1, device=device))
    _expect(one.item(), world)
    _say("met")
    summed = torch.full((max(1, int(mib * 2**18)),), float(rank), device=device)
    began = time.monotonic()
    dist.all_reduce(summed)
    _expect(summed.max().item(), world * (world - 1) / 2)
    _expect(summed.min().item(), world * (world - 1) / 2)
    _say(f"sum {time.monotonic() - began:.6f}")
    piece = torch.ones(LINK_MIB * 2**18, device=device)
    for neighbour in neighbours:
        dist.barrier()
        if neighbour:
            _say(f"link {neighbour} {_rate(piece, rank, int(neighbour)):.1f}")
    dist.barrier()
    dist.destroy_process_group()


def _rate(piece: Any, rank: int, other: int) -> float:
    """MiB a second of a tensor to another rank and back; the lower one of both sends first."""
    import torch.distributed as dist

    turns = (dist.send, dist.recv) if rank < other else (dist.recv, dist.send)
    for turn in turns:  # the first message makes a connection
        turn(piece[:1], other)
    began = time.monotonic()
    for turn in turns:
        turn(piece, other)
    _expect(piece.sum().item(), piece.numel())  # on a GPU it also waits until all is there
    return 2 * LINK_MIB / (time.monotonic() - began)


def _expect(found: float, wanted: float) -> None:
    if found != wanted:
        raise ArithmeticError(f"a sum over all processes is {found!r} and should be {wanted!r}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
