"""The nccl transport up to NCCL's own functions, which a C file stands in for: what they are told, and who waits how.

The C file follows nccl.h; where this machine has no C compiler these tests are skipped.
"""

import base64
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from r1mega.errors import RolloutError
from r1mega.weights.libnccl import Library, NcclError
from r1mega.weights.nccl import NcclGroup, NcclMeeting
from r1mega.weights.push import BACKENDS
from r1mega.weights.sender import Link

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler here")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("nccl") / "libnccl.so.2"
    source = Path(__file__).with_name("stand_in_nccl.c")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    return library


class Timeline:
    """A stream on which all that is begun is done at once, unless it `waits`."""

    stream = 77
    waits = False

    def follow(self) -> None: ...

    def mark(self) -> Any:
        return lambda: not self.waits


class Nccl:
    """The stand-in, loaded, and what it was told."""

    def __init__(self, library: Path, log: Path) -> None:
        self.library, self.log, self.timeline = Library(str(library)), log, Timeline()

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def meeting(self, timeout_s: float = 60.0) -> NcclMeeting:
        return NcclMeeting(timeout_s, self.library, lambda: self.timeline)

    def group(self, timeout_s: float = 60.0) -> NcclGroup:
        return self.meeting(timeout_s).join(5, lambda: False, device="cpu")


@pytest.fixture
def nccl(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nccl:
    monkeypatch.setenv("STAND_IN_NCCL", str(tmp_path / "calls"))
    return Nccl(built, tmp_path / "calls")


UNIQUE_ID = bytes((200 - i) % 256 if i % 7 else 0 for i in range(128))
JOINED = [
    f"init 0 of 5, id {sum(UNIQUE_ID)}, config 24 cafebeef 21400 blocking 0",
    "sum of 1, type 7, op 0, stream 77",  # one fp32 number: vLLM's communicators wait for it
]


def test_the_group_is_formed_as_vllms_workers_form_it(nccl: Nccl) -> None:
    assert nccl.library.version() == 22907 and nccl.library.unique_id() == UNIQUE_ID
    assert base64.b64decode(nccl.meeting().told["nccl_unique_id_b64"], validate=True) == UNIQUE_ID
    nccl.group()
    assert nccl.calls() == JOINED


def test_a_buffer_is_sent_in_place_from_rank_0(nccl: Nccl) -> None:
    group = nccl.group()
    begun = group.begin(torch.full((1000,), 9, dtype=torch.uint8))
    group.wait(begun, lambda: False)
    group.abort()
    group.abort()  # the second time there is nothing left
    sent = "broadcast 1000, type 1, root 0, in place 1, first byte 9, stream 77"
    assert nccl.calls() == [*JOINED, sent, "abort"]
    with pytest.raises(NcclError, match="aborted"):
        group.begin(torch.zeros(1, dtype=torch.uint8))


@pytest.mark.parametrize("what", ["init", "sum", "later"])
def test_a_group_that_cannot_be_formed_leaves_nothing(nccl: Nccl, monkeypatch, what: str) -> None:
    monkeypatch.setenv("FAILS", what)
    with pytest.raises(NcclError, match="internal error"):
        nccl.group()
    assert nccl.calls()[-1] == ("abort" if what != "init" else JOINED[0])


def test_workers_that_never_join_are_waited_for_no_longer_than_that(nccl: Nccl, monkeypatch) -> None:
    monkeypatch.setenv("STUCK", "init")
    with pytest.raises(TimeoutError, match=r"the sender waited 0\.3 s for the workers to join"):
        nccl.group(timeout_s=0.3)
    assert nccl.calls()[-1] == "abort"


def test_a_worker_that_refuses_ends_the_wait_for_it(nccl: Nccl, monkeypatch) -> None:
    monkeypatch.setenv("STUCK", "init")
    refused = threading.Event()
    threading.Timer(0.2, refused.set).start()
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="gave up while the sender waited for the workers to join"):
        nccl.meeting().join(5, refused.is_set, device="cpu")
    assert time.monotonic() - begin < 30 and nccl.calls()[-1] == "abort"


def test_a_buffer_that_nobody_takes_is_given_up_and_the_group_ends_in_another_thread(nccl: Nccl) -> None:
    group = nccl.group()
    nccl.timeline.waits = True
    begun = group.begin(torch.zeros(8, dtype=torch.uint8))
    threading.Timer(0.2, group.abort).start()
    with pytest.raises(NcclError, match="aborted"):
        group.wait(begun, lambda: False)
    assert nccl.calls()[-1] == "abort"


def client_of(*versions: tuple[str, ...]) -> Any:
    said = {Named(f"http://s{i}"): list(found) for i, found in enumerate(versions)}
    return SimpleNamespace(on_workers=lambda method: said if method == "r1mega_nccl" else None)


class Named:
    """A server, of which its URL is told."""

    def __init__(self, url: str) -> None:
        self.url = url


def test_another_nccl_is_refused_before_anything_is_formed(nccl: Nccl) -> None:
    nccl.meeting().check(client_of(("22907", "22907"), ("22907",)))
    said = r"trainer 22907; http://s1: 22809, 22907\. .*VLLM_NCCL_SO_PATH .*libnccl\.so\.2"
    with pytest.raises(RolloutError, match=said):
        nccl.meeting().check(client_of(("22907",), ("22907", "22809")))
    assert nccl.calls() == []


def test_a_library_that_lacks_a_function_is_none(tmp_path: Path) -> None:
    (tmp_path / "old.c").write_text("int ncclGetVersion(int *v) { return 0; }\n")
    library = tmp_path / "old.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(library), str(tmp_path / "old.c")], check=True)
    with pytest.raises(OSError, match="ncclGetUniqueId"):
        Library(str(library))


def test_a_process_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RolloutError, match=r"weights\.transport = 'nccl' sends from a GPU"):
        BACKENDS["nccl"].connect(Link("127.0.0.1", "127.0.0.1", 1, 60.0, 2**20), client_of(()), [])
