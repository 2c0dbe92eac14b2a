"""Ranks whose collectives are watched: `play(folder, "hang:1")` on every rank; see test_watched_ranks.py."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from unittest import mock

import torch
from layouts import parse
from resumes import build, train

from r1mega.config.watchdog import Watchdog
from r1mega.runtime import env, heartbeat, watchdog
from r1mega.trainer import mesh as meshes

WATCHDOG = Watchdog(beat_s=0.25, silence_s=5.0, straggler_steps=2)
LIMIT_S = 4.0
"""Of a collective, on a machine whose cores others use as well."""
WAKES_S = 10.0
"""After which a rank that was stopped goes on: the others have long left."""
SLOW_S = 0.25
"""By which a slow rank's micro-batch takes longer."""
STEPS = 4


def watched(folder: Path, settings: Watchdog = WATCHDOG):
    here = env.launch()
    assert here is not None
    return watchdog.guarded(folder, here.rank, here.world_size, settings)


def hang() -> None:
    while True:
        time.sleep(0.1)


def stop() -> None:
    subprocess.Popen(["sh", "-c", f"sleep {WAKES_S}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def play(folder: Path, fault: str) -> None:
    """Collectives of all ranks, step after step, until a rank does what the fault says."""
    what, _, where = fault.partition(":")
    folder = folder / what
    with watched(folder):
        layout = parse("dp=2").model_copy(update={"collective_timeout_s": LIMIT_S, "watchdog": WATCHDOG})
        mesh = meshes.start(layout, device="cpu", seed=0)
        for step in range(1000):
            heartbeat.phase("update", step)
            if step == 3 and str(mesh.rank) == where:
                {"hang": hang, "stop": stop}[what]()
            mesh.sum_over_data(torch.ones(3))
            (folder / f"step_{mesh.rank}").write_text(str(step))


def learn(folder: Path, how: str) -> None:
    """Training of two copies of the model, by `how`: bare, watched, or watched and slow on rank 1."""
    policy = build(parse("dp=2"), seed=0)
    policy.refresh_reference()
    from r1mega.trainer import forward

    compute = forward._forward

    def slowly(*given, **options):
        time.sleep(SLOW_S)
        return compute(*given, **options)

    slow = mock.patch.object(forward, "_forward", slowly if how == "slow" and policy.mesh.rank == 1 else compute)
    # Where nobody is slow on purpose, this machine may have one core less for a rank and a step all the same.
    settings = WATCHDOG if how == "slow" else WATCHDOG.model_copy(update={"straggler_steps": 100})
    guard = watched(folder / how, settings) if how != "bare" else mock.MagicMock()
    with guard, slow:
        began, found = time.perf_counter(), []
        for step in range(STEPS):
            heartbeat.phase("update", step)
            found.append(train(policy, range(step, step + 1)))
        heartbeat.phase("update", STEPS)
        seconds, deadline = time.perf_counter() - began, time.monotonic() + 20 * WATCHDOG.beat_s
        while how == "slow" and not heartbeat.figures() and time.monotonic() < deadline and policy.mesh.first:
            time.sleep(0.05)
        policy.mesh.barrier()
        if policy.mesh.first:
            torch.save(found, folder / f"{how}.pt")
            (folder / f"{how}.json").write_text(json.dumps({"seconds": seconds, "figures": heartbeat.figures()}))
