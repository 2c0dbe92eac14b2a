"""Ranks that save on and on until they are killed: `save_kills.py OUT ROUND...`, a line of OUT/rounds.jsonl for each.

A round LAYOUT:VICTIMS:MOMENT forks a fresh group of ranks, which resumes OUT/run at that layout, says what it has
found, and saves a state that is all of one step, step after step: checkpoints and, every second step, Hugging Face
folders. VICTIMS ("all", or a rank's number) get SIGKILL at MOMENT: after so many seconds of saving, or at one of
`MOMENTS`, where the rank that has come there is held until the signal is sent. Ranks that were not killed must end by
themselves.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from layouts import parse
from resumes import build

from r1mega.config.training import Save
from r1mega.errors import R1MegaError, RanksLostError
from r1mega.recipe.load import load
from r1mega.runtime import process, shims
from r1mega.runtime.run_dir import RunDir, checkpoint_step

BASE = Path(__file__).parents[2] / "configs/tiny/r1_zero/0_base.toml"
SAVE = Save(every_steps=1, keep_last=2, hf_every=2)
LIMITS = "collective_timeout_s=30,first_rank_timeout_s=60"
STEP_S = 0.1
"""What stands for a step of training between two saves: a rank is met in a collective, or waiting for a save."""
HOLD_S = 0.4
"""From MOMENT to the signal: the training loops go on meanwhile, up to where they must wait."""
START_S, END_S = 300.0, 150.0
"""Limits of a group's start, and of the end of ranks that were not killed; far above what either takes."""

MOMENTS = {
    "part": ("open", r"/\.step_\d+\.\w+\.tmp/random_1\.pkl "),  # rank 1 has written its tensors, not yet its part
    "metadata": ("open", r"/\.step_\d+\.\w+\.tmp/policy\.json "),  # what makes one checkpoint of the parts is there
    "name": ("os.rename", r"\.tmp .*/checkpoints/step_\d+$"),
    "removal": ("os.remove", r"^common\.pt \d"),  # of an old checkpoint, by its name in an open folder
    "export": ("open", r"/hf_steps/\.step_\d+\.\d+\.tmp/config\.json "),
    "export's name": ("os.rename", r"\.tmp .*/hf_steps/step_\d+$"),
}
"""Python's audit event and its arguments, just before which a rank is held."""


# ---- a rank -------------------------------------------------------------------------------------------------


def set_all(policy, step: int) -> None:
    """The number of the step stands in every weight, moment and weight of the reference, on every rank."""
    with torch.no_grad():
        for box in everything(policy):
            box.values.fill_(step)
    policy.refresh_reference()


def everything(policy) -> list:
    from r1mega.trainer.checkpoint.slices import find_slices

    found = find_slices(policy)
    return [*found.weights(policy), *found.moments()]


def numbers(policy) -> list[float]:
    """Every number that stands anywhere in a rank's state."""
    tensors = [box.values for box in everything(policy)] + list((policy.reference or {}).values())
    return sorted({float(x) for t in tensors for x in t.unique()})


def save_on_and_on(out: Path, layout: str, moment: str) -> None:
    """What a stage does, without the training."""
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer
    from r1mega.weights.saves import Saves, last_checkpoint

    policy = build(parse(",".join(filter(None, (layout, LIMITS)))), seed=5)
    mesh = policy.mesh
    stage, cluster = load(BASE, "laptop")
    cluster = cluster.model_copy(update={"trainer": mesh.layout})
    run = RunDir(out / "run", stage, cluster, resume=True) if mesh.first else RunDir.join(out / "run", 600.0)
    latest = last_checkpoint(mesh, run)
    step = checkpoint_step(latest) if latest else 0
    if mesh.first:
        run.rewind(step if latest else -1)
    state = Checkpointer(policy).load(latest, verified=True) if latest else {"step": 0}
    loaded = mesh.gather({"step": state["step"], "numbers": numbers(policy) if latest else [0.0]})
    if mesh.first:
        found = {"step": step, "loaded": loaded, "on_disk": on_disk(run.path)}
        (out / "found.tmp").write_text(json.dumps(found))
        (out / "found.tmp").rename(out / "found")
    hold = hold_at(out, *MOMENTS[moment]) if moment in MOMENTS else []
    first = step + 1
    with Saves(policy, run, SAVE, None) as saves:
        saves.make_up(step)
        while True:
            step += 1
            set_all(policy, step)
            time.sleep(STEP_S)
            assert mesh.from_first(lambda: True)  # as stages ask the first rank whether to go on
            saves.check()
            saves.checkpoint(step, {"step": step})
            hold[:] = [True] * (step > first)  # the first one stands
            saves.export_if_due(step)
            if mesh.first and step > first:
                with (out / "reported").open("a") as file:
                    file.write(f"checkpoint {step - 1}\n")
                    # The export before this one has been waited for.
                    file.write(f"export {step - 2}\n" * (step % 2 == 0 and step - 2 >= max(first - 1, 2)))


def hold_at(out: Path, event: str, arguments: str) -> list[bool]:
    """Stop a thread of this process at an event, once the list that is returned has something in it."""
    armed: list[bool] = []
    pattern = re.compile(arguments)

    def hook(name: str, given: tuple) -> None:
        if name != event or not armed or not pattern.search(" ".join(map(str, given[:2]))):
            return
        if not (out / "moment").exists():
            (out / "moment").touch()
            while not (out / "signalled").exists():
                time.sleep(0.01)

    sys.addaudithook(hook)
    return armed


def on_disk(run: Path) -> list[str]:
    folders = (run, run / "checkpoints", run / "hf_steps")
    return sorted(str(p.relative_to(run)) for folder in folders if folder.is_dir() for p in folder.iterdir())


# ---- who starts and kills them ------------------------------------------------------------------------------


def start(out: Path, layout: str, moment: str) -> list[int]:
    """Fork the ranks, which have everything imported already; their process ids."""
    num_ranks, port, parent = parse(layout).ranks, process.free_port(), os.getpid()
    ranks = []
    for rank in range(num_ranks):
        if child := os.fork():
            ranks.append(child)
            continue
        process.die_with_parent(parent)
        log = os.open(log_of(out, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if num_ranks > 1:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            save_on_and_on(out, layout, moment)
        except (R1MegaError, RanksLostError) as error:  # as the command line ends
            print(error)
            sys.exit(getattr(error, "exit_code", 2))
    return ranks


def log_of(out: Path, rank: int) -> Path:
    return out / f"rank_{rank}.log"


def wait_for(out: Path, name: str, ranks: list[int]) -> None:
    deadline = time.monotonic() + START_S
    while not (out / name).exists():
        ended = [rank for rank, child in enumerate(ranks) if os.waitpid(child, os.WNOHANG)[0]]
        if ended or time.monotonic() > deadline:
            for rank, child in enumerate(ranks):
                if rank not in ended:
                    os.kill(child, signal.SIGKILL)
            logs = "\n".join(log_of(out, rank).read_text() for rank in range(len(ranks)))
            sys.exit(f"ranks {ended} ended, and nobody came to {name!r}:\n{logs}")
        time.sleep(0.005)


def end_of(child: int) -> tuple[float, int | None]:
    """How many seconds a rank took to end by itself, and its exit code; None where it had to be killed."""
    began = time.monotonic()
    while time.monotonic() < began + END_S:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return time.monotonic() - began, os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.monotonic() - began, None


def play(out: Path, layout: str, victims: str, moment: str) -> dict[str, Any]:
    began = time.monotonic()
    for name in ("found", "moment", "signalled", "reported"):
        (out / name).unlink(missing_ok=True)
    ranks = start(out, layout, moment)
    wait_for(out, "found", ranks)
    started = time.monotonic()
    if moment in MOMENTS:
        wait_for(out, "moment", ranks)
        time.sleep(HOLD_S)
    else:
        time.sleep(float(moment))
    chosen = range(len(ranks)) if victims == "all" else [int(victims)]
    for rank in chosen:
        os.kill(ranks[rank], signal.SIGKILL)
    (out / "signalled").touch()
    ended = {rank: end_of(child) for rank, child in enumerate(ranks)}
    said = {rank: log_of(out, rank).read_text() for rank in ended}
    lines = (out / "reported").read_text().splitlines() if (out / "reported").exists() else []
    return {
        "found": json.loads((out / "found").read_text()),
        "killed": {rank: ended[rank][1] for rank in chosen},
        "survivors": [(rank, *ended[rank], said[rank]) for rank in ended if rank not in chosen],
        "reported": {kind: _numbers_after(kind, lines) for kind in ("checkpoint", "export")},
        "midway": midway(out / "run"),
        "exports": exports(out / "run"),
        "seconds": {"start": started - began, "all": time.monotonic() - began},
    }


def _numbers_after(kind: str, lines: list[str]) -> list[int]:
    return [int(line.removeprefix(kind)) for line in lines if line.startswith(kind)]


def midway(run: Path) -> list[str]:
    """In the middle of what the group was killed, by what it has left."""
    found = set()
    for folder in (run / "checkpoints").glob(".step_*"):
        names = {p.name for p in folder.iterdir()}
        if folder.name.endswith(".removed.tmp"):
            found.add("removal")
        elif "policy.json" in names:
            found.add("name")
        else:
            found.add("metadata" if names & {".metadata", "common.pt", "metadata.json"} else "parts")
    return sorted(found | {"export" for _ in (run / "hf_steps").glob(".*")})


def exports(run: Path) -> dict[str, list[float]]:
    """Every Hugging Face folder that has its name, and the numbers that stand in its tensors.

    Raises:
        R1MegaError: one is not whole.
    """
    from r1mega.formats.hf_folder import HFFolder

    found = {}
    for path in sorted((run / "hf_steps").glob("step_*")):
        assert {p.name for p in path.iterdir()} >= {"config.json", "generation_config.json", "README.md"}, path
        folder = HFFolder(path)
        assert not folder.repetition_faults()
        tensors = [folder.stored(entry.name) for _, entry in folder.entries]
        found[path.name] = sorted({float(x) for t in tensors for x in t.unique()})
        folder.release()
    return found


def main(out: Path, rounds: list[str]) -> None:
    torch.set_num_threads(1)
    torch._dynamo.config.disable = True
    shims.install_megatron_cpu()
    import r1mega.weights.saves  # noqa: F401 (what the ranks will need, imported once)

    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork"
    for text in rounds:
        row = play(out, *text.split(":"))
        with (out / "rounds.jsonl").open("a") as file:
            file.write(json.dumps({"round": text} | row) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
