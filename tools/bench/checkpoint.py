"""How long a save stops training (r1mega/trainer/checkpoint/checkpointer.py) against a plain copy of the same state.

In turn in one process: `copy` clones every tensor that is saved, `save` is an asynchronous `Checkpointer.save` until
it returns. Also measured, not as ratios to it: the whole of the writing, and an update step alone and while a
checkpoint is being written. The model is a DeepSeek-V3 of two layers whose vocabulary makes up the size asked for.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import read_model
from r1mega.runtime import openmp
from r1mega.runtime.files import write_json
from r1mega.samples import Document
from r1mega.trainer import mesh as meshes

MODEL = harness.ROOT / "configs/tiny/deepseek_v3.json"
BYTES_PER_ROW = 2 * 128 * 3 * 4
"""Of vocabulary: a row of embedding and of head, each with its two moments, in fp32."""


def build(mib: int, threads: int) -> Any:
    mesh = meshes.start(TrainerLayout(threads=threads), device="cpu", seed=0)
    from r1mega.trainer.policy import Policy

    vocabulary = mib * 2**20 // BYTES_PER_ROW // 64 * 64
    spec = read_model(MODEL).with_vocab(vocabulary, bos=1, eos=2, pad=0)
    optimizer, batch = Optimizer(lr=1e-3), Batch(chunk_tokens=64, chunks_per_micro_batch=8)
    return Policy.build(
        spec, mesh, optimizer, batch, mtp="off", mtp_loss_weight=0.3, expert_bias_rate=1e-3, seed=0
    )  # fmt: skip


def update(policy: Any) -> float:
    """Seconds of an optimiser step on 8 documents of 40 tokens."""
    rng = random.Random(0)
    documents = [
        Document(Int32s(rng.randrange(3, 384) for _ in range(40)), 1, {"weight": Float32s.repeated(1 / 312, 39)})
        for _ in range(8)
    ]
    start = time.perf_counter()
    policy.forward_backward(documents, lambda logp, fields, _: (-(fields["weight"] * logp).sum(), {}))
    policy.optim_step(1e-3)
    return time.perf_counter() - start


def measure(mib: int, threads: int, repetitions: int, folder: Path) -> dict[str, Any]:
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer

    policy = build(mib, threads)
    checkpointer = Checkpointer(policy)
    tensors = [box.values for box in checkpointer.slices().live]
    writing: list[float] = []
    beside: list[float] = []
    alone: list[float] = []

    def copy(lap: Callable[[str], None]) -> None:
        copies = [t.clone() for t in tensors]
        lap("stall")
        del copies

    def save(lap: Callable[[str], None]) -> None:
        start = time.perf_counter()
        checkpointer.save(folder / "step_1", {}, asynchronous=True)
        lap("stall")
        beside.append(update(policy))
        checkpointer.wait()
        writing.append(time.perf_counter() - start)
        alone.append(update(policy))

    load = os.getloadavg()[0]
    stalls = harness.compare({"copy": copy, "save": save}, baseline="copy", repetitions=repetitions)
    size = sum(file.stat().st_size for file in (folder / "step_1").iterdir())
    return {
        "state_bytes": sum(t.nbytes for t in tensors),
        "tensors": len(tensors),
        "checkpoint_bytes": size,
        "threads": threads,
        "repetitions": repetitions,
        "load_1min": [round(load, 1), round(os.getloadavg()[0], 1)],
        "stall": stalls,
        "until_written_s": harness.spread(writing[1:]),
        "step_alone_s": harness.spread(alone[1:]),
        "step_while_writing_s": harness.spread(beside[1:]),
        "step_ratio": harness.spread([b / a for b, a in zip(beside[1:], alone[1:], strict=True)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write, whole again after every case")
    parser.add_argument("--mib", type=int, nargs="+", default=[64, 256, 1024], help="of the state that is saved")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where checkpoints go; a temporary folder by default")
    options = parser.parse_args()
    preload = openmp.preload()
    if preload:  # as the trainer does it
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **preload})
    trainer = harness.ROOT / "r1mega/trainer/checkpoint"
    sources = [
        Path(__file__).resolve(),
        *(trainer / n for n in ("checkpointer.py", "slices.py", "writing.py", "publishing.py")),
    ]
    about = {"about": " ".join((__doc__ or "").split())}
    about |= harness.provenance(["torch", "megatron-core", "r1mega"], sources)
    cases: list[dict[str, Any]] = []
    for mib in options.mib:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            cases.append(measure(mib, options.threads, options.repetitions, folder))
        finally:
            shutil.rmtree(folder)
        print(summary(cases[-1]), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, {**about, "cases": cases})
    meshes.stop()


def summary(found: dict[str, Any]) -> str:
    stall, copy = found["stall"]["save"]["stall"], found["stall"]["copy"]["stall"]["wall_s"]["median"]
    return (
        f"{found['state_bytes'] / 2**20:.0f} MiB in {found['tensors']} tensors: a save stops training for "
        f"{stall['wall_ratio']['median']:.2f} times the copy ({copy:.3f} s), written after "
        f"{found['until_written_s']['median']:.2f} s; a step meanwhile takes {found['step_ratio']['median']:.2f} "
        f"times as long; load {found['load_1min']}"
    )


if __name__ == "__main__":
    main()
