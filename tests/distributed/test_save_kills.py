"""SIGKILL in the middle of saves, of all ranks or of one: what a fresh group finds, at another layout each time.

Some of the kills come at random moments; the others at each phase of a save and of a Hugging Face export, so that
none depends on luck (`save_kills.MOMENTS`).
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import rotation

from r1mega.errors import RanksLostError

EP2 = "dp=2,ep=2"
CHOSEN = (
    "dp=2:1:part", f"{EP2}:all:metadata", "tp=2:0:name", "pp=2:all:removal", "tp=2:all:export",
    "dp=2:0:export's name", f"{EP2}:1:metadata", "tp=2:all:part", "dp=2:all:name", "pp=2:1:removal",
)  # fmt: skip
_moments = random.Random(0)
ALL_AT_RANDOM = [
    f"{who}:{_moments.uniform(0.1, 2.0):.2f}"
    for who in ("dp=2:all", f"{EP2}:0", ":all", "tp=2:1", "pp=2:all", "dp=2:0", f"{EP2}:all", "tp=2:all", "pp=2:0")
]
AT_RANDOM = rotation.rows("kills of saving ranks at random moments", rotating=ALL_AT_RANDOM, take=3)
OF_A_RUN = {".lock", "checkpoints", "config.json", "hf_steps", "logs", "run.json", "samples"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def rounds() -> list[str]:
    mixed = [*CHOSEN, *AT_RANDOM]
    random.Random(0).shuffle(mixed)
    return [*mixed, ":all:0"]  # the last one only looks


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("kills")
    command = [sys.executable, str(Path(__file__).parent / "save_kills.py"), str(out), *rounds()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    played = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [row["round"] for row in played] == rounds()
    assert all(code == -signal.SIGKILL for row in played for code in row["killed"].values())
    return played


def test_the_newest_checkpoint_is_whole_of_one_step_and_no_older_than_reported(played: list[dict]):
    for before, after in itertools.pairwise(played):
        step = after["found"]["step"]
        assert step >= max([before["found"]["step"], *before["reported"]["checkpoint"]]), (before, after)
        for rank in after["found"]["loaded"]:
            assert rank == {"step": step, "numbers": [step]}, (before, after)
    steps = [row["found"]["step"] for row in played]
    assert sum(before < after for before, after in itertools.pairwise(steps)) > len(CHOSEN) // 2


def test_what_was_left_half_done_is_cleared_and_nothing_else(played: list[dict]):
    for before, after in itertools.pairwise(played):
        step, there = after["found"]["step"], set(after["found"]["on_disk"])
        exported = {name for name in there if name.startswith("hf_steps/")}
        kept = {f"checkpoints/step_{s}" for s in (step, step - 1, step - 2)}  # of three, one was about to go
        assert there - exported <= OF_A_RUN | kept, (before, after)
        assert exported <= {f"hf_steps/step_{s}" for s in range(2, step + 1, 2)}
        assert exported >= {f"hf_steps/step_{s}" for s in before["reported"]["export"] if s <= step}, (before, after)


def test_an_exported_folder_is_there_only_when_it_is_whole(played: list[dict]):
    exports = [(name, found) for row in played for name, found in row["exports"].items()]
    assert len({name for name, _ in exports}) >= 4
    assert all(found == [float(name.removeprefix("step_"))] for name, found in exports)


def test_ranks_that_were_not_killed_end_by_themselves_and_say_why(played: list[dict]):
    survivors = [survivor for row in played for survivor in row["survivors"]]
    assert {rank for rank, *_ in survivors} == {0, 1}
    for rank, seconds, code, said in survivors:
        assert code == RanksLostError.exit_code, f"rank {rank} after {seconds:.0f} s: {said}"
        assert f"rank {rank} waited for" in said and "Traceback" not in said, said


def test_the_kills_fell_in_the_middle_of_every_phase(played: list[dict]):
    assert {phase for row in played for phase in row["midway"]} == {"parts", "metadata", "name", "removal", "export"}
    at_random = [row for row in played if row["round"] in AT_RANDOM]
    assert len(at_random) == len(AT_RANDOM)
    if len(AT_RANDOM) == len(ALL_AT_RANDOM):  # of a few, all may fall beside
        assert sum(bool(row["midway"]) for row in at_random) >= 2
