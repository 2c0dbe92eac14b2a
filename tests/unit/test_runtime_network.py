"""Which address and interface lead to another host, whatever the hosts' names say."""

import os
import socket
import subprocess
import sys
import threading
from typing import Any

import psutil
import pytest

from r1mega.config.cluster import TrainerLayout
from r1mega.errors import ConfigError, RanksLostError
from r1mega.runtime import env, network, process
from r1mega.trainer import meeting


class Kernel:
    """Planted names and routes: what each host's names mean, and the address that it has on the way there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]], routes: dict[str, str]) -> None:
        self.names, self.routes = names, routes
        monkeypatch.setattr(socket, "getaddrinfo", self.resolve)
        monkeypatch.setattr(socket, "socket", lambda *kind: self.Socket(self))

    def resolve(self, name: str, port: int, type: int) -> list[Any]:
        if name not in self.names:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, type, 0, "", (address, port)) for address in self.names[name]]

    class Socket:
        def __init__(self, kernel: "Kernel") -> None:
            self.kernel = kernel

        def __enter__(self) -> "Kernel.Socket":
            return self

        def __exit__(self, *error: object) -> None: ...

        def connect(self, address: tuple[str, int]) -> None:
            if address[0] not in self.kernel.routes:
                raise OSError(101, "Network is unreachable")
            self.own = self.kernel.routes[address[0]]

        def getsockname(self) -> tuple[str, int]:
            return self.own, 40000


def test_the_address_is_the_routes_and_not_the_names(monkeypatch: pytest.MonkeyPatch):
    names = {"node0": ["10.1.0.1"], "both": ["192.168.9.9", "10.2.0.1"], "me": ["127.0.1.1"], "lost": ["203.0.113.1"]}
    routes = {"10.1.0.1": "10.1.0.7", "10.2.0.1": "10.2.0.7", "127.0.1.1": "127.0.0.1", "fe80::1": "fe80::7%eth0"}
    Kernel(monkeypatch, names | {"six": ["fe80::1"]}, routes)
    assert network.local_address("node0") == "10.1.0.7"
    assert network.local_address("both") == "10.2.0.7"  # there is no way to its first address
    assert network.local_address("me") == "127.0.0.1"
    assert network.local_address("six") == "fe80::7"
    with pytest.raises(OSError, match="unreachable"):
        network.local_address("lost")
    with pytest.raises(OSError, match="not known"):
        network.local_address("nobody")


def test_interfaces_are_those_that_psutil_finds():
    families = (socket.AF_INET, socket.AF_INET6)
    found = [
        (name, entry.address.partition("%")[0])
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in families
    ]
    assert found
    for _, address in found:
        assert network.interface_of(address) in [name for name, other in found if other == address]
    assert network.interface_of("127.0.1.1") == network.interface_of("127.0.0.1")
    with pytest.raises(OSError, match=r"has the address 203\.0\.113\.5"):
        network.interface_of("203.0.113.5")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "a.localhost"])
def test_loopbacks(host: str):
    assert network.is_loopback(host)
    assert not any(map(network.is_loopback, ("10.0.0.1", "fd00::1", "node2", "127.node")))


# ---- ranks --------------------------------------------------------------------------------------------------

TABLES = [  # each rank's address towards rank 0; the way from each to the first of another host; what they take
    (["127.0.0.1", "127.0.0.1"], {}, ["127.0.0.1", "127.0.0.1"]),
    (["10.0.0.1", "10.0.0.2"], {}, ["10.0.0.1", "10.0.0.2"]),
    (["127.0.0.1", "10.0.0.2"], {"10.0.0.2": "10.0.0.1"}, ["10.0.0.1", "10.0.0.2"]),
    (["127.0.0.1", "127.0.0.1", "fd00::2", "fd00::3"], {"fd00::2": "fd00::1"},
     ["fd00::1", "fd00::1", "fd00::2", "fd00::3"]),
]  # fmt: skip


@pytest.mark.parametrize(("towards_first", "ways", "taken"), TABLES)
def test_a_rank_beside_rank_0_takes_the_address_that_others_reach(monkeypatch, towards_first, ways, taken):
    """The store is real; the ranks are threads."""
    monkeypatch.setattr(network, "local_address", ways.__getitem__)
    ranks = range(len(towards_first))
    launches = [env.Launch(rank, len(ranks), 0, "127.0.0.1", str(process.free_port())) for rank in ranks]
    launches = [env.Launch(rank, len(ranks), 0, "127.0.0.1", launches[0].port_said) for rank in ranks]
    found: dict[int, str] = {}

    def come(rank: int) -> None:
        ours = meeting._Meeting(TrainerLayout(collective_timeout_s=60), launches[rank])
        stores.append(ours._store(towards_first[rank]))
        found[rank] = ours._own_address(stores[-1], towards_first[rank])

    stores: list[Any] = []  # they last as long as all threads
    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[rank] for rank in ranks] == taken


def test_ranks_that_do_not_come_are_named():
    launch = env.Launch(0, 4, 0, "127.0.0.1", str(process.free_port()))
    alone = meeting._Meeting(TrainerLayout(collective_timeout_s=0.5), launch)
    store = alone._store("127.0.0.1")
    store.set("r1mega/address/2", "10.0.0.2")
    place = f"127.0.0.1:{launch.port}"
    said = rf"rank 0 on {socket.gethostname()} waited for rank\(s\) 1, 3 of 4 at {place}.* = 0\.5 s"
    with pytest.raises(RanksLostError, match=said):
        alone._own_address(store, "127.0.0.1")


def test_a_rank_0_that_does_not_come_is_named():
    launch = env.Launch(1, 2, 0, "127.0.0.1", str(process.free_port()))
    late = meeting._Meeting(TrainerLayout(collective_timeout_s=0.5), launch)
    said = rf"rank 1 on .*for rank 0, a name that means {socket.gethostname()} itself here, at 127.*:{launch.port}"
    with pytest.raises(RanksLostError, match=said):
        late._store("127.0.0.1")


def test_a_port_that_another_process_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meeting, "PORT_S", 0.0)
    with socket.create_server(("", 0)) as taken:
        launch = env.Launch(0, 2, 0, "127.0.0.1", str(taken.getsockname()[1]))
        with pytest.raises(ConfigError, match=f"MASTER_PORT={launch.port} .*another process"):
            meeting._Meeting(TrainerLayout(), launch)._store("127.0.0.1")


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(meeting, "RESOLVE_S", 0.0)
    Kernel(monkeypatch, {"far": ["203.0.113.1"]}, {})
    for name, what in (("nowhere", "does not resolve"), ("far", "cannot be reached")):
        ours = meeting._Meeting(TrainerLayout(), env.Launch(1, 2, 0, name, "29500"))
        with pytest.raises(ConfigError, match=f"MASTER_ADDR='{name}' .*{what} from .*rank 1"):
            ours._address_towards_first()


@pytest.mark.parametrize(
    ("address", "port"),
    [("", "29500"), ("node0", ""), ("node0", "0"), ("node0", "65536"), ("node0", "a"), ("x", "-1")],
)
def test_a_place_to_meet_that_is_none(monkeypatch: pytest.MonkeyPatch, address: str, port: str):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"MASTER_ADDR='{address}', MASTER_PORT='{port}' in the environment"):
        meeting.meet(TrainerLayout(dp=2), "gloo")


def test_groups_that_do_not_form_end_the_process(monkeypatch: pytest.MonkeyPatch, capfd):
    left, codes = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), left.set()))
    monkeypatch.setattr(meeting, "GRACE_S", 0.0)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "7"}.items():
        monkeypatch.setenv(name, value)
    with meeting.forming(TrainerLayout(collective_timeout_s=0.1)):
        assert left.wait(60)
    assert codes == [75] and "rank 1 on" in (said := capfd.readouterr().err) and "node0:7" in said
    with meeting.forming(TrainerLayout(collective_timeout_s=3600)):
        (timer,) = [t for t in threading.enumerate() if isinstance(t, threading.Timer) and not t.finished.is_set()]
    assert timer.finished.is_set()  # called off


def test_a_rank_does_not_wait_for_ever_for_what_listens_at_the_port():
    """It takes every connection and never says a word; in a process of its own, which ends itself."""
    code = (
        "from r1mega.config.cluster import TrainerLayout; from r1mega.trainer import meeting; meeting.GRACE_S = 0.5\n"
        "meeting.meet(TrainerLayout(dp=2, collective_timeout_s=0.5), 'gloo')"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        left = subprocess.run([sys.executable, "-c", code], env=os.environ | place, capture_output=True, text=True)
    assert left.returncode == 75, left.stderr
    assert f"waited for rank 0 and the others, at 127.0.0.1:{port}" in left.stderr


# ---- interfaces ---------------------------------------------------------------------------------------------


def interfaces_set(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str | None, str | None]:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", env.OURS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    env.use_interface("eth1")
    env.use_interface("eth2")  # of a later meeting
    return os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")


def test_the_interface_is_for_gloo_and_nccl_and_not_for_children(monkeypatch: pytest.MonkeyPatch):
    assert interfaces_set(monkeypatch) == ("eth2", "=eth2")
    theirs = process.child_environment(A="b")
    assert theirs["A"] == "b" and not {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", env.OURS} & theirs.keys()


def test_what_the_user_has_chosen_stays_for_children_too(monkeypatch: pytest.MonkeyPatch):
    assert interfaces_set(monkeypatch, NCCL_SOCKET_IFNAME="ib0") == ("eth2", "ib0")
    theirs = process.child_environment()
    assert theirs["NCCL_SOCKET_IFNAME"] == "ib0" and "GLOO_SOCKET_IFNAME" not in theirs


def test_an_interface_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    with pytest.raises(ConfigError, match=r"cluster\.trainer\.interface = 'eth77': .* has .*lo"):
        meeting._choose_interface(TrainerLayout(interface="eth77"), "127.0.0.1")
    monkeypatch.delenv(env.OURS)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth78")
    with pytest.raises(ConfigError, match=r"GLOO_SOCKET_IFNAME='eth78' in the environment: .* has .*lo"):
        meeting._choose_interface(TrainerLayout(), "127.0.0.1")
