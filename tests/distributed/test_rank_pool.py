"""The pool of ranks that the tests of this folder share: what goes wrong in one task is that task's alone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_pool import STRAGGLER_S, Pool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    pool = Pool(tmp_path)
    yield pool
    pool.close()


def parents(pool: Pool, folder: Path, num_ranks: int) -> set[int]:
    """The process that the ranks of two tasks were forked from."""
    pool.run(num_ranks, "rank_faults.task", folder, ["", ""])
    names = map(str, range(num_ranks)) if num_ranks > 1 else ["alone"]
    return {int((folder / f"{name}.ppid").read_text()) for name in names}


def test_one_process_serves_any_number_of_ranks_and_tasks(pool: Pool, tmp_path: Path):
    first = parents(pool, tmp_path, 2)
    assert len(first) == 1
    assert parents(pool, tmp_path, 3) == parents(pool, tmp_path, 1) == first


@pytest.mark.parametrize(("what", "said"), [
    ("die:1", r"rank 0 ended with 0:(?s:.)*rank 1 ended with -9:\nrank 1 is going to die"),
    ("fail:0", r"rank 0 ended with 1:(?s:.)*ValueError: rank 0 has failed(?s:.)*rank 1 ended with 0:"),
    ("hang:1", r"rank 0 ended with 0:(?s:.)*rank 1 did not end:\nrank 1 is going to hang"),
])  # fmt: skip
def test_a_rank_that_is_lost_is_one_failure_with_its_output(pool: Pool, tmp_path: Path, what: str, said: str):
    if what.startswith("hang"):
        pool.straggler_s = 0.5  # nothing would come of waiting
    with pytest.raises(AssertionError, match=said):
        pool.run(2, "rank_faults.task", tmp_path, [what])
    pool.straggler_s = STRAGGLER_S
    parents(pool, tmp_path, 2)


def test_a_pool_whose_process_was_killed_makes_another(pool: Pool, tmp_path: Path):
    (before,) = parents(pool, tmp_path, 2)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(AssertionError, match="what forks ranks has ended"):
        parents(pool, tmp_path, 2)
    assert parents(pool, tmp_path, 2) != {before}
