"""Programs that attack: each is scored 0, nothing of it remains, and the next program scores right.

A program prints the right answer where its attack succeeds, so that success would be seen. This process adopts
orphans: whatever outlives its sandbox is found among its descendants.
"""

import ctypes
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import rotation
from code_programs import Row, rows

from r1mega.rewards.code import Code
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.sandbox import tree
from r1mega.rewards.sandbox.bounds import Bounds

pytest_plugins = ["sandbox_here"]
pytestmark = pytest.mark.usefixtures("sandbox")

HOSTILE = rows("hostile.txt")
ALWAYS = (
    "fork_bomb",
    "prints_every_value",
    "memory_of_children",
    "daemon",
    "reads_all_environments",
    "equals_everything",
    "disk_elsewhere",
)
NAMED = [row for row in HOSTILE if row.name in ALWAYS]
REST = [row for row in HOSTILE if row.name not in ALWAYS]
SETTINGS = CodeSettings(
    run=Bounds(cpu_s=2, wall_s=2.0),
    compiler=Bounds(
        cpu_s=4, wall_s=8.0, memory_mib=1024, processes=32, file_mib=64, scratch_mib=256, output_bytes=64 * 2**20
    ),
    slots=2,
)
PLACES = ("/", "/usr", "/usr/local/lib", "/dev", "/etc", "/var/tmp", "/root", "/home", "/tmp")
PR_SET_CHILD_SUBREAPER = 36


class Host:
    """What an attack is after."""

    def __init__(self, folder: Path) -> None:
        self.secret = secrets.token_hex(16)
        self.file = folder / "secret.txt"
        self.file.write_text(self.secret)
        self.abstract = f"r1mega-{secrets.token_hex(8)}"
        self.path = folder / "socket"
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        for server, name in zip(self.unix, ("\0" + self.abstract, str(self.path)), strict=True):
            server.bind(name)
            server.listen()
        folder.chmod(0o755)
        self.path.chmod(0o777)

    def told(self, source: str) -> str:
        for name, value in {
            "SECRET_FILE": self.file, "SECRET_FOLDER": self.file.parent, "SECRET_NAME": self.file.name,
            "SECRET": self.secret, "PORT": self.tcp.getsockname()[1], "ABSTRACT": self.abstract, "SOCKET": self.path,
        }.items():  # fmt: skip
            source = source.replace(f"@{name}@", str(value))
        return source

    @property
    def reached(self) -> bool:
        """Whether anybody has come to one of the sockets."""
        for server in (self.tcp, *self.unix):
            server.setblocking(False)
            try:
                server.accept()[0].close()
            except BlockingIOError:
                continue
            return True
        return False


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    made = Host(tmp_path_factory.mktemp("host"))
    yield made
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    for server in (made.tcp, *made.unix):
        server.close()


def left_behind() -> dict[str, object]:
    """Processes, mounts, descriptors and files that a program could have left."""
    return {
        "processes": set(tree.processes(os.getpid())),
        "mounts": Path("/proc/self/mounts").read_text(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "files": [place for place in PLACES if (Path(place) / "planted").exists()],
    }


def test_there_are_as_many_as_are_promised():
    assert len(HOSTILE) >= 50 and len(NAMED) == len(ALWAYS)


@pytest.mark.parametrize("row", rotation.rows("hostile programs", always=NAMED, rotating=REST, take=7), ids=str)
def test_an_attack_scores_0_and_is_contained(row: Row, host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("R1MEGA_TEST_SECRET", host.secret)
    before = left_behind()
    passed = Code().judge(Code().find_answer(host.told(row.response)), row.entry, SETTINGS)
    assert passed.value(SETTINGS) == 0.0 and passed.value(CodeSettings(counts="share")) < 1
    assert row.gives(passed.reason)
    assert left_behind() == before
    assert not host.reached
    assert host.secret not in passed.reason
    with_sums = {"tests": [{"stdin": "2 3", "stdout": "5"}]}
    right = Code().judge("```python\nprint(sum(map(int, input().split())))\n```", with_sums, SETTINGS)
    assert (right.passed, right.reason) == (1, "")
