"""The tests side by side: exit codes, what is shown, and how they are interrupted."""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lanes
import pytest

SHELL = ["/bin/sh", "-c"]


def _start(tmp_path: Path, *scripts: str) -> subprocess.Popen[str]:
    """Lanes that are shell scripts in place of pytest."""
    code = f"import sys; sys.path.insert(0, {str(Path(lanes.__file__).parent)!r}); import lanes; "
    code += f"sys.exit(lanes.run({[[s] for s in scripts]!r}, {SHELL!r}))"
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize(
    ("first", "second", "code"), [(0, 0, 0), (1, 0, 1), (0, 1, 1), (0, 5, 0), (5, 0, 0), (5, 5, 5), (5, 2, 2)]
)
def test_a_failure_of_either_lane_is_the_exit_code(tmp_path, first, second, code):
    process = _start(tmp_path, f"echo one; exit {first}", f"echo two; exit {second}")
    shown, _ = process.communicate()
    assert process.returncode == code
    assert shown.split()[:2] == ["one", "two"]


def test_the_lanes_run_at_the_same_time(tmp_path):
    meet = "touch {mine}; while [ ! -e {other} ]; do sleep 0.05; done"
    process = _start(tmp_path, meet.format(mine="a", other="b"), meet.format(mine="b", other="a"))
    assert process.wait(600) == 0


def test_an_interrupt_from_the_terminal_ends_both(tmp_path):
    waits = "trap 'echo ended; exit 2' INT; touch {}; while :; do sleep 0.05; done"
    process = _start(tmp_path, waits.format("a"), waits.format("b"))
    while not ((tmp_path / "a").exists() and (tmp_path / "b").exists()):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate()
    assert process.returncode == 2
    assert shown.count("ended") == 2


def test_every_folder_of_tests_is_in_one_lane():
    root = Path(lanes.__file__).parent
    folders = {f"tests/{file.parent.relative_to(root)}" for file in root.rglob("test_*.py")}
    assert sorted(folders) == sorted(name for lane in lanes.LANES for name in lane)


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by it alone, and a lane in which two meet runs no test at all."""
    counted = Counter(file.name for file in Path(lanes.__file__).parent.rglob("test_*.py"))
    assert [name for name, num in counted.items() if num > 1] == []


def test_named_files_and_debuggers_have_one_pytest():
    assert lanes.lanes_of([__file__, "-x"]) == [[__file__, "-x"]]
    assert lanes.lanes_of([f"{__file__}::test_x"]) == [[f"{__file__}::test_x"]]
    assert lanes.lanes_of(["--pdb"]) == [["--pdb"]]
    assert [lane[-2:] for lane in lanes.lanes_of(["-m", "not slow"])] == [["-m", "not slow"]] * 2
