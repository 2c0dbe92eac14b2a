"""How the trainer's ranks meet: at MASTER_ADDR:MASTER_PORT, and from there over addresses that all can reach.

Gloo advertises the address that a host's own name resolves to, unless it is told an interface. Here each rank takes
the interface that leads to rank 0; one to which rank 0 is this very host, by a loopback address, asks the store where
others are, and takes the interface that leads to them.
"""

import contextlib
import datetime
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from r1mega.config.cluster import TrainerLayout
from r1mega.errors import ConfigError, RanksLostError
from r1mega.runtime import env, network

RESOLVE_S = 60.0
"""How long the name of rank 0's host may be unknown: some are entered only when that host is up."""
GRACE_S = 5.0
"""What torch's own limits get to speak first."""
PORT_S = 15.0
"""How long the ranks of a run before this one may keep the port."""
_ADDRESS, _ELSEWHERE = "r1mega/address/{}", "r1mega/elsewhere"
"""In the store: a rank's address towards rank 0; the first such address that is not a loopback's, or nothing."""


def meet(layout: TrainerLayout, backend: str) -> None:
    """Form torch's default group of the ranks that the environment tells of; of this process alone without any.

    Raises:
        ConfigError: the environment names no place to meet, or one that cannot be; an interface that is not there.
        RanksLostError: not all ranks came within `layout.collective_timeout_s`.
    """
    launch = env.launch()
    if launch is None or launch.world_size == 1:
        _choose_interface(layout, "127.0.0.1")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return
    if not launch.address or launch.port is None:
        raise ConfigError(
            f"MASTER_ADDR={launch.address!r}, MASTER_PORT={launch.port_said!r} in the environment: they are host and "
            "port (1 to 65535) of rank 0, where all ranks meet, as torchrun and srun's callers set them"
        )
    _Meeting(layout, launch).hold(backend)


class _Meeting:
    """One rank's way into the group."""

    def __init__(self, layout: TrainerLayout, launch: env.Launch) -> None:
        self._layout, self._launch = layout, launch
        self._deadline = time.monotonic() + layout.collective_timeout_s
        assert launch.port is not None
        self._port = launch.port

    def hold(self, backend: str) -> None:
        launch, layout = self._launch, self._layout
        first = self._address_towards_first()
        with forming(layout, "rank 0 and the others, at"):
            store = self._store(first)
            address = self._own_address(store, first)
        _choose_interface(layout, address)
        try:
            with forming(layout):
                dist.init_process_group(
                    backend,
                    store=store,
                    rank=launch.rank,
                    world_size=launch.world_size,
                    timeout=datetime.timedelta(seconds=layout.collective_timeout_s + layout.spoken_first_s),
                )
        except RuntimeError as error:
            raise self._lost("a connection to each of the others, who had all come to", error) from error

    def _address_towards_first(self) -> str:
        """This host's address on the route to rank 0's host."""
        launch, began = self._launch, time.monotonic()
        while True:
            try:
                return network.local_address(launch.address)
            except OSError as error:
                if time.monotonic() - began > RESOLVE_S or time.monotonic() > self._deadline:
                    what = "does not resolve" if isinstance(error, socket.gaierror) else "cannot be reached"
                    raise ConfigError(
                        f"MASTER_ADDR={launch.address!r} in the environment, the host of rank 0, {what} from "
                        f"{socket.gethostname()}, where rank {launch.rank} is: {error.strerror}"
                    ) from None
            time.sleep(0.5)

    def _store(self, towards_first: str) -> dist.TCPStore:
        """The store at the meeting place; rank 0 keeps it, or torchrun's agent does."""
        launch, began = self._launch, time.monotonic()
        keeps = launch.rank == 0 and not launch.agent_keeps_store
        while True:
            try:
                return dist.TCPStore(
                    launch.address,
                    self._port,
                    launch.world_size,
                    is_master=keeps,
                    timeout=self._left(),
                    wait_for_workers=False,
                    multi_tenant=True,
                )
            except RuntimeError as error:
                if keeps and "EADDRINUSE" in str(error):
                    if time.monotonic() - began < PORT_S:
                        time.sleep(0.5)
                        continue
                    raise ConfigError(
                        f"MASTER_PORT={self._port} in the environment, where the ranks are to meet: another process "
                        f"of {socket.gethostname()} listens there; choose another port, or end it"
                    ) from None
                to_itself = network.is_loopback(towards_first) and not keeps
                hint = f", a name that means {socket.gethostname()} itself here" if to_itself else ""
                raise self._lost(f"rank 0{hint}, at", error) from error

    def _own_address(self, store: dist.TCPStore, towards_first: str) -> str:
        """The address at which every other rank reaches this one; all ranks have come when it is known."""
        launch = self._launch
        keys = {rank: _ADDRESS.format(rank) for rank in range(launch.world_size)}
        store.set(keys[launch.rank], towards_first)
        try:
            if launch.rank == 0:
                store.wait(list(keys.values()), self._left())
                found = [address.decode() for address in store.multi_get(list(keys.values()))]
                store.set(_ELSEWHERE, next((a for a in found if not network.is_loopback(a)), ""))
            elsewhere = self._get(store, _ELSEWHERE)
        except RuntimeError as error:
            raise self._lost(f"{self._missing(store, keys)} at", error) from error
        if elsewhere and network.is_loopback(towards_first):
            return network.local_address(elsewhere)
        return towards_first

    def _get(self, store: dist.TCPStore, key: str) -> str:
        store.wait([key], self._left())
        return store.get(key).decode()

    def _missing(self, store: dist.TCPStore, keys: dict[int, str]) -> str:
        """The ranks that have not come."""
        try:
            missing = [str(rank) for rank, key in keys.items() if not store.check([key])]
        except RuntimeError:  # the store is gone
            return "rank 0, which has ended,"
        some = ", ".join(missing[:20]) + (", ..." if len(missing) > 20 else "")
        return f"rank(s) {some} of {len(keys)}" if missing else "rank 0's word"

    def _left(self) -> datetime.timedelta:
        return datetime.timedelta(seconds=max(self._deadline - time.monotonic(), 0.001))

    def _lost(self, for_what: str, error: RuntimeError) -> RanksLostError:
        launch = self._launch
        return RanksLostError(
            f"rank {launch.rank} on {socket.gethostname()} waited for {for_what} {launch.meeting_place}: gone, or "
            f"not there within {_limit(self._layout)} ({str(error).splitlines()[0]})"
        )


@contextlib.contextmanager
def forming(
    layout: TrainerLayout, for_what: str = "connections of the others, which had all come to"
) -> Iterator[None]:
    """Leave the process with RanksLostError's exit code where groups formed inside are not there in time.

    Gloo has no limit of its own for the connections that others are to make, nor the store for the first answer of
    whatever listens at its port.
    """
    launch = env.launch()
    if launch is None:
        yield
        return

    def leave() -> None:
        where = f"{socket.gethostname()}, interface {', '.join(env.gloo_interfaces()) or 'not yet chosen'},"
        print(
            f"r1mega: rank {launch.rank} on {where} waited for {for_what} {launch.meeting_place}: not there within "
            f"{_limit(layout)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(RanksLostError.exit_code)

    timer = threading.Timer(layout.collective_timeout_s + GRACE_S, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _limit(layout: TrainerLayout) -> str:
    return f"cluster.trainer.collective_timeout_s = {layout.collective_timeout_s:g} s"


def _choose_interface(layout: TrainerLayout, address: str) -> None:
    """Let gloo and NCCL use the layout's interface, or the one that has this host's `address`.

    Raises:
        ConfigError: the interface asked for is not there, or none has the address.
    """
    name = layout.interface
    if not name:
        try:
            name = network.interface_of(address)
        except OSError as error:
            raise ConfigError(
                f"{socket.gethostname()}: {error}, which leads to the other ranks; set cluster.trainer.interface"
            ) from None
    env.use_interface(name)
    there = network.interfaces()
    if layout.interface and layout.interface not in there:
        raise ConfigError(
            f"cluster.trainer.interface = {layout.interface!r}: {socket.gethostname()} has {', '.join(there)}"
        )
    for wanted in env.gloo_interfaces():
        if wanted.partition(":")[0] not in there:
            raise ConfigError(
                f"GLOO_SOCKET_IFNAME={wanted!r} in the environment: {socket.gethostname()} has {', '.join(there)}"
            )
