""".ci/run with a make that only writes down what it was asked for: what fails, fails the run, and all is timed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / ".ci/run"
MAKE = """#!/usr/bin/env bash
echo "$*" >>asked.txt
echo "output of $1"
[[ $1 != "$BREAK" ]]
"""
APT = """#!/usr/bin/env bash
exit 1
"""


def run(folder: Path, broken: str = "") -> tuple[int, str, list[str]]:
    """Exit code, what is printed, and what make was asked for."""
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(RUN, folder / ".ci")
    for name, script in (("make", MAKE), ("apt-get", APT)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "BREAK": broken}
    run = [folder / ".ci/run"]
    done = subprocess.run(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout, (folder / "asked.txt").read_text().splitlines()


def test_every_part_is_run_and_timed(tmp_path: Path):
    code, printed, asked = run(tmp_path)
    system = ["system-deps"] if os.geteuid() == 0 else []
    assert code == 0
    assert asked[0] == "env" and asked[-1] == "test"
    assert sorted(asked[1:-1]) == sorted(["lint", "smollm2", "env-launch", *system])
    table = printed.partition("---- seconds of each part")[2].splitlines()[1:]
    assert {line.partition("  ")[0] for line in table} == {"env", "lint", "smollm2", "nemo-run", "tests"} | (
        {"system deps"} if system else set()
    )
    assert all(f"output of {name}\n" in printed for name in asked)


@pytest.mark.parametrize("broken", ["env", "lint", "smollm2", "env-launch", "test"])
def test_a_part_that_fails_fails_the_run(tmp_path: Path, broken: str):
    code, printed, asked = run(tmp_path, broken)
    assert code != 0
    assert printed.count("exit code 1\n") == 1
    if broken != "test":
        assert "test" not in asked
    if broken == "lint":
        assert "output of lint\n" in printed
