"""A run in the sandbox: every limit holds, nothing leaks in, nothing stays; whose fault a failure is; slots."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from r1mega.errors import RewardError
from r1mega.rewards.programs import build
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.sandbox import machine, sound, tree
from r1mega.rewards.sandbox import run as running
from r1mega.rewards.sandbox.bounds import SLACK_MIB, Bounds
from r1mega.rewards.sandbox.filter import DENIED, program
from r1mega.rewards.sandbox.run import Ran, run
from r1mega.rewards.sandbox.slots import slot

pytest_plugins = ["sandbox_here"]
MIB = 2**20


def python(source: str, stdin: bytes = b"", stop: threading.Event | None = None, **bounds: Any) -> Ran:
    argv = (machine.tools().python, "-I", "-S", "/code/a.py")
    with slot() as number:
        assert number is not None
        return run(argv, {"a.py": source.encode()}, stdin, Bounds(**bounds), number, stop)


LIMITS = """
import json, os, resource, socket
status = [line.split() for line in open("/proc/self/status")]
names = ("AS", "CPU", "NPROC", "FSIZE", "NOFILE", "STACK", "CORE", "MEMLOCK")
found = {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names}
tmp, shm = os.statvfs("/tmp"), os.statvfs("/dev/shm")
print(json.dumps({
    **found, "tmp": tmp.f_blocks * tmp.f_frsize, "shm": shm.f_blocks * shm.f_frsize, "env": dict(os.environ),
    "fds": [fd for fd in range(256) if os.path.exists(f"/proc/self/fd/{fd}")], "host": socket.gethostname(),
    "root": sorted(os.listdir("/")), "home": os.listdir("/tmp"), "cwd": os.getcwd(), "code": os.listdir("/code"),
    "caps": [line[1] for line in status if line[0] in ("CapEff:", "CapPrm:", "CapBnd:")],
    "seccomp": [line[1] for line in status if line[0] in ("Seccomp:", "NoNewPrivs:")],
    "uid": os.getuid(), "groups": os.getgroups(), "processes": [p for p in os.listdir("/proc") if p.isdigit()],
    "first": open("/proc/1/environ").read(),
}))
"""


@pytest.mark.usefixtures("sandbox")
def test_what_a_program_sees_and_may_use(monkeypatch):
    monkeypatch.setenv("SECRET", "tell nobody")
    bounds: dict[str, Any] = {
        "cpu_s": 3, "memory_mib": 300, "processes": 40, "file_mib": 5, "open_files": 33, "stack_mib": 7,
        "scratch_mib": 9,
    }  # fmt: skip
    seen = json.loads(python(LIMITS, **bounds).output)
    assert seen["AS"] == [(300 + SLACK_MIB) * MIB] * 2 and seen["CPU"] == [3, 4] and seen["NPROC"] == [40] * 2
    assert seen["FSIZE"] == [5 * MIB] * 2 and seen["NOFILE"] == [33] * 2 and seen["STACK"][0] == 7 * MIB
    assert seen["CORE"] == [0, 0] and seen["MEMLOCK"] == [0, 0]
    assert seen["tmp"] == 9 * MIB and seen["shm"] == 4 * MIB
    assert set(seen["env"]) == {"PATH", "HOME", "LANG", "PWD"} and "tell nobody" not in seen["first"]
    assert seen["fds"] == [0, 1, 2] and seen["host"] == "sandbox"
    assert set(seen["root"]) <= {"bin", "code", "dev", "etc", "lib", "lib64", "proc", "sbin", "tmp", "usr"}
    assert seen["home"] == [] and seen["cwd"] == "/tmp" and seen["code"] == ["a.py"]
    assert all(int(mask, 16) == 0 for mask in seen["caps"]) and seen["seccomp"] == ["1", "2"]
    assert seen["uid"] != 0 and seen["processes"][0] == "1" and len(seen["processes"]) <= 4


ENDS = {
    "cpu": ("while True: pass", {"cpu_s": 1}),
    "wall": ("import time; time.sleep(60)", {"wall_s": 0.4}),
    "memory": ("x = bytearray(200 << 20)\nimport time; time.sleep(60)", {"memory_mib": 100}),
    "output": ("print('x' * 5000)", {"output_bytes": 4000}),
    "files": (
        "open('/tmp/x', 'wb').write(bytes(3 << 20))\nimport os, signal\nos.kill(os.getpid(), 25)",
        {"file_mib": 2},
    ),
}


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("end", ENDS)
def test_what_goes_beyond_a_limit_ends_and_within_it_does_not(end):
    source, bounds = ENDS[end]
    if end == "files":
        source = f"import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n{source}"
    assert python(source, **bounds).end == end
    if end in ("memory", "output"):
        larger = {name: 3 * value for name, value in bounds.items()}
        assert python(source.replace("60", "0"), **larger).end == "exit"


@pytest.mark.usefixtures("sandbox")
def test_exit_codes_signals_outputs_and_input_come_through():
    ran = python("import sys\nprint(sys.stdin.read()[::-1])\nprint('e', file=sys.stderr)\nsys.exit(7)", b"abc")
    assert (ran.end, ran.code, ran.output, ran.errors) == ("exit", 7, b"cba\n", b"e\n")
    assert (ran := python("import os\nos.kill(os.getpid(), 11)")).end == "signal" and ran.code == signal.SIGSEGV
    big = os.urandom(3 * MIB)
    assert python("import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", big).output == big


@pytest.mark.usefixtures("sandbox")
def test_a_run_is_stopped_from_outside_and_leaves_nothing_when_it_is_interrupted(monkeypatch):
    def held() -> tuple[set[int], int]:
        return set(tree.processes(os.getpid())), len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    stop = threading.Event()
    stop.set()
    assert python("import time; time.sleep(60)", stop=stop).end == "stopped"

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(tree, "memory_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python("import os, time\nos.fork()\ntime.sleep(60)")
    assert held() == before


@pytest.mark.parametrize(
    ("ends", "wanted"),
    [
        (["exit"], "exit"),
        (["lost", "control", "exit"], "exit"),
        (["lost", "control", "lost", "control"], "lost"),
        (["lost", "broken"], RewardError),
        (["lost", "slow"], RewardError),
        (["lost", "control", "lost", "broken"], RewardError),
        (["idle", "control"], "wall"),
        (["idle", "slow"], RewardError),
        (["busy"], "wall"),
    ],
)
def test_a_control_program_tells_whose_fault_a_failure_is(ends, wanted, monkeypatch):
    """`ends`: of each run in turn, the program's and the control program's."""
    made = {
        "exit": Ran("exit"), "lost": Ran("lost", errors=b"bwrap: no"), "control": Ran("exit", 0, b"169\n"),
        "broken": Ran("lost", errors=b"bwrap: no"), "slow": Ran("exit", 0, b"169\n", wall_s=99.0),
        "idle": Ran("wall", cpu_s=0.1), "busy": Ran("wall", cpu_s=5.9),
    }  # fmt: skip
    left = [made[end] for end in ends]
    monkeypatch.setattr(sound, "run", lambda *_: left.pop(0))
    monkeypatch.setattr(sound, "tools", lambda: machine.Tools("b", "p", "s", "python3", "g++"))
    if wanted is RewardError:
        with pytest.raises(RewardError, match="the sandbox fails: its control program"):
            sound.sound_run((), {}, b"", Bounds(), 0)
    else:
        assert sound.sound_run((), {}, b"", Bounds(), 0).end == wanted
    assert left == []


@pytest.mark.usefixtures("sandbox")
def test_a_sandbox_that_does_not_stand_is_lost_and_says_why(monkeypatch):
    monkeypatch.setattr(running, "command", lambda *a: ["/usr/bin/bwrap", "--no-such-option"])
    ran = python("print(1)")
    assert ran.end == "lost" and b"no-such-option" in ran.errors


@pytest.mark.parametrize("missing", ["bwrap", "prlimit", "python3"])
def test_where_no_sandbox_can_be_had_nothing_runs_and_the_remedy_is_said(missing, monkeypatch):
    def found(name: str) -> str:
        return "" if name.startswith(missing) else f"/usr/bin/{name}"

    monkeypatch.setattr(machine, "_found", found)
    machine.tools.cache_clear()
    try:
        fault = sound.fault_of_this_machine()
        assert fault and missing.replace("bwrap", "bubblewrap (bwrap)") in fault and "`make system-deps`" in fault
        with pytest.raises(RewardError, match="make system-deps"):
            python("print(1)")
    finally:
        machine.tools.cache_clear()


def test_a_compiler_is_asked_for_where_there_is_cpp(monkeypatch):
    monkeypatch.setattr(sound, "tools", lambda: machine.Tools("b", "p", "s", "python3", ""))
    monkeypatch.setattr(sound, "control", lambda number: None)
    assert sound.fault_of_this_machine() is None
    assert "g++ not found; install it with `make system-deps`" in str(sound.fault_of_this_machine(cpp=True))


def test_a_slot_is_one_processs_at_a_time_and_comes_back_when_it_dies(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    holds = "with slot(1): print(1, flush=True); time.sleep(99)"
    script = f"import time\nfrom r1mega.rewards.sandbox.slots import slot\n{holds}"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        with slot(1, wait=False) as number:
            assert number is None
        with slot(2) as one, slot(2, wait=False) as two:
            assert (one, two) == (1, None)
        other.kill()
        other.wait()
        began = time.monotonic()
        with slot(1) as number:
            assert number == 0 and time.monotonic() - began < 5
    (folder,) = tmp_path.iterdir()
    folder.chmod(0o777)
    with pytest.raises(RewardError, match="not this user's alone"), slot(1):
        pass


@pytest.mark.usefixtures("sandbox")
def test_a_compiled_program_is_kept_by_its_content_within_the_room_there_is(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "cache_dir", lambda: tmp_path)
    source, settings = "int main() { return 5; }", CodeSettings()
    compiled = build.cpp_program(source, settings, 0)
    binary = compiled.files["answer"]
    assert binary.startswith(b"\x7fELF")
    monkeypatch.setattr(build, "_compiled", lambda *_: Ran("exit", 0, b"another"))
    assert build.cpp_program(source, settings, 0) == compiled
    assert build.cpp_program(source + " ", settings, 0).files["answer"] == b"another"
    assert len(list((tmp_path / "programs").iterdir())) == 2
    (another,) = (path for path in (tmp_path / "programs").iterdir() if path.stat().st_size == len(b"another"))
    os.utime(another, (1, 1))
    tight = settings.model_copy(update={"cache_mib": (len(binary) + 10) / MIB})
    build.cpp_program(source + "  ", tight, 0)
    assert sorted(path.stat().st_size for path in (tmp_path / "programs").iterdir()) == [7, len(binary)]


def test_the_filter_is_a_program_whose_jumps_stay_within_it():
    """Interpreted here by the rules of classic BPF, on the calls of both machines."""
    import struct

    for column, (name, arch) in enumerate((("x86_64", 0xC000003E), ("aarch64", 0xC00000B7))):
        code = list(struct.iter_unpack("=HBBI", program(name)))

        def verdict(number: int, argument: int = 0, arch: int = arch, code: Any = code, second: int = 0) -> int:
            data = {0: number, 4: arch, 16: argument, 24: second % 2**32, 28: second >> 32}
            accumulator = place = 0
            while True:
                kind, yes, no, k = code[place]
                place += 1
                if kind == 0x20:
                    accumulator = data[k]
                elif kind == 0x06:
                    return k
                else:
                    true = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: accumulator & k != 0}[kind]
                    place += yes if true else no

        allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
        assert verdict((0, 63)[column]) == allow and verdict((1, 64)[column]) == allow
        assert all(verdict(numbers[column]) == refuse for numbers in DENIED.values())
        assert verdict((0, 63)[column], arch=0x40000003) == kill
        assert verdict((56, 220)[column], 17) == allow and verdict((56, 220)[column], 0x10000011) == refuse
        assert verdict((41, 198)[column], 1) == allow and verdict((41, 198)[column], 2) == 0x0005000D
        assert verdict(435) == 0x00050026 and verdict(0x40000000) == 0x00050026
        sigaction = (13, 134)[column]
        assert {verdict(sigaction, 17, second=where) for where in (1, 2**32, 2**47 + 8)} == {0x00050000}
        assert verdict(sigaction, 17) == allow and verdict(sigaction, 2, second=8) == allow


def test_memory_of_a_process_is_what_it_holds():
    """Beside what the kernel says that it has of its own."""
    code = f"held = b'x' * {64 * MIB}; print('up', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as holds:
        assert holds.stdout is not None and holds.stdout.readline() == "up\n"
        anonymous = int(Path(f"/proc/{holds.pid}/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024
        assert 64 * MIB <= anonymous <= tree.memory_bytes(holds.pid, 1 << 50) < anonymous + 32 * MIB
        holds.communicate("\n")


@pytest.mark.usefixtures("sandbox")
def test_time_that_a_busy_machine_takes_is_not_the_programs(monkeypatch):
    """Waiting for a core, standing still, and a first look at a program that has waited and is gone."""
    real = tree.waited_seconds
    looks: list[int] = []

    def waited(root: int) -> float:
        looks.append(root)
        return 50.0 if len(looks) == 1 else real(root)

    monkeypatch.setattr(tree, "waited_seconds", waited)
    ran = python("import time; time.sleep(2)", wall_s=1.0)
    assert ran.end == "exit" and looks
    monkeypatch.setattr(tree, "waited_seconds", real)
    assert python("import time; time.sleep(9)", wall_s=1.0).end == "wall"
    stood = tree.cpu_seconds

    def still(root: int) -> float:
        monkeypatch.setattr(tree, "cpu_seconds", stood)
        time.sleep(1.5)
        return stood(root)

    monkeypatch.setattr(tree, "cpu_seconds", still)
    assert python("import time; time.sleep(1.7)", wall_s=1.3).end == "exit"


IGNORES_ITS_CHILDREN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(60):
    if os.fork() == 0:
        while time.process_time() < 0.1:
            pass
        os._exit(0)
    try:
        os.wait()
    except ChildProcessError:
        pass
"""


@pytest.mark.usefixtures("sandbox")
def test_time_of_children_that_nobody_waited_for_counts():
    assert python(IGNORES_ITS_CHILDREN, cpu_s=1, wall_s=20.0).end == "cpu"
    assert python(IGNORES_ITS_CHILDREN.replace("60", "3"), cpu_s=1, wall_s=20.0).end == "exit"


SHORT_CHILDREN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
end = time.monotonic() + 8
while time.monotonic() < end:
    if os.fork() == 0:
        while time.process_time() < 0.01:
            pass
        os._exit(0)
    time.sleep(0.005)
"""


@pytest.mark.usefixtures("sandbox")
def test_children_too_short_to_be_looked_at_are_seen_where_nobody_waits_for_them():
    """They stay as they ended, each with its time, until there is room for no more."""
    ran = python(SHORT_CHILDREN, cpu_s=1, wall_s=20.0)
    assert ran.end == "cpu" or ((ran.end, ran.code) == ("exit", 1) and b"BlockingIOError" in ran.errors)
    assert python(SHORT_CHILDREN.replace("+ 8", "+ 0.1"), cpu_s=1, wall_s=20.0).end == "exit"
