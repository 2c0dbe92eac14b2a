"""SIGKILL at random moments of saves: what is left is always a whole checkpoint, and never mistaken for another."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import rotation
import torch
from kills import killed_at

from r1mega.config.training import Save
from r1mega.recipe.load import load
from r1mega.runtime.run_dir import RunDir, checkpoint_step

_draw = random.Random(0)
KILLS = rotation.rows(
    "kills of saves at random moments",
    rotating=[(_draw.random() < 0.75, round(_draw.uniform(0, 2), 2)) for _ in range(60)],
    take=15,
)
"""Whether once a checkpoint has come to stand, as three in four do, or at any moment of the first save; and how long
after that, in the seconds that a save takes."""
BASE = Path(__file__).parents[2] / "configs/tiny/r1_zero/0_base.toml"


def set_all(policy, step: int) -> None:
    """A state that is all of one step: the number stands in every weight and moment."""
    from r1mega.trainer.checkpoint.slices import find_slices

    with torch.no_grad():
        for box in find_slices(policy).live:
            box.values.fill_(step)


def only_number(policy) -> float:
    from r1mega.trainer.checkpoint.slices import find_slices

    found = {float(t) for box in find_slices(policy).live for t in (box.values.min(), box.values.max())}
    assert len(found) == 1, found
    return found.pop()


def save_on_and_on(policy, run: RunDir, step: int) -> None:
    """What a stage does, as fast as it can, in a process that is going to be killed."""
    from r1mega.weights.saves import Saves

    saves = Saves(policy, run, Save(every_steps=1, keep_last=2), None)
    while True:
        step += 1
        set_all(policy, step)
        saves.check()
        saves.checkpoint(step, {"step": step})


def seconds_a_save(checkpointer, folder: Path) -> float:
    """Of the machine as it is; the least of three, as it may pause in one."""
    seconds = []
    for attempt in range(3):
        begin = time.perf_counter()
        checkpointer.save(folder / f"step_{attempt}", {"step": 0})
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_whole_checkpoint_each_time(make_policy, mesh, tmp_path: Path):
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.weights.saves import last_checkpoint

    policy = make_policy(mtp="joint")
    checkpointer = Checkpointer(policy)
    run = RunDir(tmp_path / "run", *load(BASE, "laptop"), resume=False)
    save_s = seconds_a_save(checkpointer, tmp_path / "measured")
    step = further = midway = 0
    run.rewind(-1)
    for later, num_saves in KILLS:
        child = os.fork()
        if not child:
            try:
                save_on_and_on(policy, run, step)
            finally:
                os._exit(1)
        while later and not run.saved_steps()[-1:] > [step] and not ended(child):
            time.sleep(0.002)
        time.sleep(num_saves * save_s)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        midway += any(run.checkpoints.glob(".step_*"))
        latest = last_checkpoint(mesh, run)
        if latest is None:
            assert step == 0
            continue
        found = checkpointer.load(latest)["step"]
        assert found == checkpoint_step(latest) == only_number(policy) >= step
        assert found == run.saved_steps()[-1]  # none of them was damaged
        further += found > step
        step = found
        run.rewind(step)
        assert {p.name for p in run.checkpoints.iterdir()} <= {f"step_{s}" for s in (step, step - 1, step - 2)}
    run.close()
    print(f"{further} kills had a new checkpoint, {midway} came while one was being written")
    assert further >= sum(later for later, _ in KILLS) > len(KILLS) // 4 and midway > len(KILLS) // 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_before_any_change_of_a_save_the_old_or_the_new_checkpoint_is_the_newest(make_policy, mesh, tmp_path):
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.weights.saves import Saves, last_checkpoint

    policy = make_policy(mtp="joint")
    checkpointer = Checkpointer(policy)
    run = RunDir(tmp_path / "run", *load(BASE, "laptop"), resume=False)
    saves = Saves(policy, run, Save(every_steps=1, keep_last=2), None)

    def save(step: int) -> None:
        set_all(policy, step)
        saves.checkpoint(step, {"step": step})
        saves.wait()

    newest = []
    for number in range(200):
        for step in (1, 2):
            if not run.checkpoint(step).exists():
                save(step)
        cut = killed_at(number, lambda: save(3))
        latest = last_checkpoint(mesh, run)
        assert latest is not None
        newest.append(checkpointer.load(latest)["step"])
        assert newest[-1] == checkpoint_step(latest) == only_number(policy) == run.saved_steps()[-1]
        run.rewind(2)
        assert {p.name for p in run.checkpoints.iterdir()} <= {"step_1", "step_2", "step_3.damaged"}
        if not cut:
            break
    run.close()
    assert newest == sorted(newest) and newest[0] == 2 and newest[-1] == 3
    assert newest.count(2) > 10 and newest.count(3) > 5
