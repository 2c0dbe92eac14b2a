"""The pool of workers: results, deadlines, whose fault a failure is, and what is left behind: nothing."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pool_tasks as tasks
import pytest

from r1mega.rewards.pool import Pool, judged, shared_pool
from r1mega.rewards.worker import Limits

QUICK = Limits(cpu_s=0.5, wall_s=1_200, memory_mib=200)
"""Processor time and memory are the task's own; a wall deadline would be the machine's."""


@pytest.fixture(scope="module")
def pool():
    with Pool(2, QUICK, preloaded=()) as made:
        yield made


def test_results_come_in_order_and_from_two_processes(pool):
    outcomes = pool.map(tasks.double, [(n,) for n in range(500)])
    assert [outcome.value for outcome in outcomes] == [2 * n for n in range(500)]
    assert all(outcome.status == "done" for outcome in outcomes)
    ids = set()
    for _ in range(200):  # one worker may take all that are quick: let them overlap
        futures = [pool.submit(tasks.sleep, 0.02), pool.submit(tasks.own_id), pool.submit(tasks.own_id)]
        ids |= {future.result().value for future in futures[1:]}
        if len(ids) == 2:
            break
    assert len(ids) == 2
    assert os.getpid() not in ids


def test_from_threads(pool):
    found = {}

    def ask(thread):
        found[thread] = [
            outcome.value for outcome in pool.map(tasks.double, [(thread * 100 + n,) for n in range(50)])
        ]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {t: [2 * (t * 100 + n) for n in range(50)] for t in range(4)}


def test_from_asyncio(pool):
    async def ask():
        futures = [asyncio.wrap_future(pool.submit(tasks.double, n)) for n in range(20)]
        return [outcome.value for outcome in await asyncio.gather(*futures)]

    assert asyncio.run(ask()) == [2 * n for n in range(20)]


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (tasks.spin, "0.5 s"),
        (tasks.spin_in_c, "s"),
        (tasks.fill_memory, "200 MiB"),
        (tasks.die, "ended its worker"),
        (tasks.kill_itself, "ended its worker"),
    ],
)
def test_what_an_answer_does_to_its_worker_is_its_own_doing_and_others_go_on(pool, task, reason):
    neighbours = [pool.submit(tasks.double, n) for n in range(10)]
    broken = pool.submit(task)
    more = [pool.submit(tasks.double, n) for n in range(10)]
    outcome = broken.result()
    assert outcome.status == "answer"
    assert reason in outcome.reason
    assert [future.result().value for future in [*neighbours, *more]] == [2 * n for n in [*range(10), *range(10)]]


def test_a_task_that_hangs_without_working_is_killed():
    with Pool(1, Limits(cpu_s=5, wall_s=0.5, memory_mib=200), preloaded=()) as pool:
        pool.submit(tasks.double, 1).result()
        assert pool.submit(tasks.sleep, 1_000).result().status in ("answer", "failed")
        assert pool.counts.killed >= 1


def test_a_task_has_limits_of_its_own(pool):
    """Less than the pool's, more processor time, and more memory than any worker had before."""
    assert pool.submit(tasks.work, 1.0).result().status == "answer"
    assert pool.submit(tasks.work, 1.0, limits=Limits(cpu_s=60.0)).result().value == "done"
    assert "more than 0.1 s" in pool.submit(tasks.work, 0.4, limits=Limits(cpu_s=0.1)).result().reason
    assert pool.submit(tasks.take, 400).result().status == "answer"
    assert pool.submit(tasks.take, 400, limits=Limits(memory_mib=1000)).result().value == 400
    assert "more than 50 MiB" in pool.submit(tasks.take, 100, limits=Limits(memory_mib=50)).result().reason
    assert pool.submit(tasks.take, 100).result().value == 100  # in the same worker, with the pool's again


def test_what_is_loaded_once_every_worker_has(tmp_path):
    loads = [(tasks.note, (str(tmp_path / "loads"),)), (tasks.fail, ("one that fails is passed over",))]
    with Pool(2, QUICK, preloaded=(), loads=loads) as made:
        assert made.submit(tasks.noted).result().value == 1
        made.submit(tasks.die).result()
        assert made.submit(tasks.noted).result().value == 1
    assert (tmp_path / "loads").read_text() == "once\n"


def test_what_a_function_raises_is_no_answers_doing(pool):
    outcome = pool.submit(tasks.fail, "a fault of the rule").result()
    assert (outcome.status, outcome.reason) == ("failed", "ValueError: a fault of the rule")
    assert pool.submit(tasks.unpicklable).result().status == "failed"
    assert pool.submit(lambda: 0).result().status == "failed"
    assert pool.submit(tasks.double, 4).result().value == 8


def test_a_worker_that_dies_once_is_not_the_answers_doing(pool, tmp_path):
    before = pool.counts.retried
    outcome = pool.submit(tasks.die_once, str(tmp_path / "mark")).result()
    assert (outcome.status, outcome.value) == ("done", "well")
    assert pool.counts.retried == before + 1


def test_where_the_control_task_fails_too_it_is_the_infrastructure():
    with Pool(1, QUICK, control=tasks.broken_control, preloaded=()) as pool:
        outcome = pool.submit(tasks.double, 1).result()
    assert outcome.status == "failed"
    assert "control task" in outcome.reason
    assert pool.counts.answer == 0


def test_a_nursery_that_is_killed_is_replaced(pool):
    assert pool.submit(tasks.double, 1).result().value == 2
    os.kill(pool._nursery._process.pid, signal.SIGKILL)
    assert [outcome.value for outcome in pool.map(tasks.double, [(n,) for n in range(100)])] == [
        2 * n for n in range(100)
    ]


def test_workers_hold_no_torch():
    with Pool(1) as pool:
        assert pool.submit(tasks.modules).result().value == ["sympy"]


def test_a_forked_child_has_a_pool_of_its_own(pool):
    shared_pool()
    assert judged(tasks.double, 3).value == 6
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                pool.submit(tasks.double, 1)
            except RuntimeError:
                code = int(judged(tasks.double, 4).value != 8)
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert judged(tasks.double, 5).value == 10


def test_after_close_nothing_is_taken_and_nothing_runs():
    pool = Pool(2, QUICK, preloaded=())
    worker = pool.submit(tasks.own_id).result().value
    nursery = pool._nursery._process.pid
    pool.close()
    with pytest.raises(RuntimeError):
        pool.submit(tasks.double, 1)
    _gone([worker, nursery])


def test_an_abandoned_pool_ends_at_once():
    with pytest.raises(KeyboardInterrupt), Pool(1, QUICK, preloaded=()) as pool:
        worker = pool.submit(tasks.own_id).result().value
        futures = [pool.submit(tasks.sleep, 1_000), pool.submit(tasks.double, 1)]
        time.sleep(0.1)
        raise KeyboardInterrupt
    assert {future.result().status for future in futures} <= {"failed", "answer"}
    _gone([worker])


CALLER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import pool_tasks as tasks
from r1mega.rewards.pool import Pool
from r1mega.rewards.worker import Limits
pool = Pool(1, Limits(), preloaded=())
print(pool.submit(tasks.own_id).result().value, pool._nursery._process.pid, flush=True)
pool.submit(tasks.spin if sys.argv[2] == "busy" else tasks.double, *([] if sys.argv[2] == "busy" else [1]))
time.sleep(1000)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_callers_death_leaves_no_worker_behind(state):
    folder = Path(__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", CALLER, str(folder), state], stdout=subprocess.PIPE, text=True, cwd=folder.parents[1]
    ) as caller:
        pids = [int(word) for word in caller.stdout.readline().split()]
        assert all(_runs(pid) for pid in pids)
        caller.kill()
    _gone(pids)


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone(pids):
    deadline = time.monotonic() + 600
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process is left behind"
        time.sleep(0.05)
