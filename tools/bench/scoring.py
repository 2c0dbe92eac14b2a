"""A reward model's scores against a reference's log-probabilities of the same answers: time, and memory of one more.

Both are a forward pass of one trunk over the same packed rows. The reference takes the policy's place for the while
(its weights are copied in and out) and multiplies every token of an answer with the vocabulary; the reward model has
its own weights and reads the last token. What is read is its time over the reference's, in one run.
Memory: bytes of all tensors that a reward model adds, over the bytes of its weights in the table.
"""

import argparse
import gc
import json
import math
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import torch

from r1mega.buffers import Int32s
from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.families.registry import model_of
from r1mega.families.score_head import with_score_head
from r1mega.families.spec import Kind, ModelSpec
from r1mega.runtime import openmp
from r1mega.runtime.files import write_json
from r1mega.samples import Document
from r1mega.trainer import mesh as meshes

PROMPT = 0.2
"""Share of a text that is the prompt, of which the reference computes no log-probabilities."""


def model(family: str, vocabulary: int, hidden: int) -> ModelSpec:
    """A tiny model's layers, wider, and with a vocabulary of its own."""
    file = harness.ROOT / f"configs/tiny/{family}.json"
    fields = json.loads(file.read_text())
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 3 * hidden}
    return model_of({**fields, **sizes, "max_position_embeddings": 4096}, file)


def texts(num_tokens: int, chunk: int, vocabulary: int) -> list[Int32s]:
    """Of an eighth of a chunk to a whole one, random."""
    rng, drawn, left = random.Random(0), list[Int32s](), num_tokens
    while left > 0:
        length = min(left + 8, rng.randint(chunk // 8, chunk))
        drawn.append(Int32s(rng.randrange(3, vocabulary) for _ in range(length)))
        left -= length
    return drawn


def held_bytes() -> int:
    """Of all tensors of this process, each storage once."""
    gc.collect()
    storages = (x.untyped_storage() for x in gc.get_objects() if isinstance(x, torch.Tensor))
    return sum({s.data_ptr(): s.size() for s in storages}.values())


def measure(family: str, options: argparse.Namespace, mesh: Any, folder: Path) -> dict[str, Any]:
    from r1mega.trainer.policy import Policy
    from r1mega.trainer.reward_model import RewardModel
    from r1mega.weights.hf_io import export

    spec = model(family, options.vocabulary, options.hidden)
    batch = Batch(chunk_tokens=options.chunk)
    others: dict[str, Any] = {"mtp": "off", "mtp_loss_weight": 0.0, "expert_bias_rate": 0.0, "seed": 0}
    export(Policy.build(with_score_head(spec), mesh, Optimizer(lr=1e-5), batch, **others), folder, None)
    policy = Policy.build(spec, mesh, Optimizer(lr=1e-5), batch, **others)
    policy.refresh_reference()
    before = held_bytes()
    scorer = RewardModel(folder, mesh, options.chunk, batch.chunks_per_micro_batch)
    added = held_bytes() - before
    weights = 4 * sum(math.prod(row.shape) for row in scorer.spec.tensors() if row.kind is not Kind.COPY)
    drawn = texts(options.tokens, options.chunk, options.vocabulary)
    answers = [Document(ids, max(1, int(PROMPT * len(ids)))) for ids in drawn]
    scored = [Document.of_texts([ids]) for ids in drawn]

    def reference(lap: harness.Lap) -> None:
        policy.logprobs(answers, temperature=1.0, reference=True)
        lap("pass")

    def reward_model(lap: harness.Lap) -> None:
        scorer.score(scored)
        lap("pass")

    load = os.getloadavg()[0]
    variants = {"reference": reference, "reward_model": reward_model}
    time = harness.compare(variants, baseline="reference", repetitions=options.repetitions)
    return {
        "family": family,
        "hidden": options.hidden,
        "vocabulary": options.vocabulary,
        "chunk_tokens": options.chunk,
        "tokens": sum(map(len, drawn)),
        "texts": len(drawn),
        "threads": options.threads,
        "repetitions": options.repetitions,
        "load_1min": [round(load, 1), round(os.getloadavg()[0], 1)],
        "weights_bytes": weights,
        "added_bytes": added,
        "memory_ratio": round(added / weights, 4),
        "time": time,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--family", nargs="+", default=["deepseek_v3", "qwen2"])
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if preload := openmp.preload():  # as the trainer does it
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **preload})
    mesh = meshes.start(TrainerLayout(threads=options.threads), device="cpu", seed=0)
    own = [
        harness.ROOT / "r1mega/trainer" / name for name in ("reward_model.py", "forward.py", "logprob.py", "batch.py")
    ]
    about = {"about": " ".join((__doc__ or "").split())}
    about |= harness.provenance(["torch", "megatron-core", "r1mega"], [Path(__file__).resolve(), *own])
    cases = []
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
        for family in options.family:
            found = measure(family, options, mesh, Path(folder) / family)
            cases.append(found)
            of_time = found["time"]["reward_model"]["pass"]
            ratio, cpu = of_time["wall_ratio"], of_time["cpu_ratio"]["median"]
            print(
                f"{family}: {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) of the reference's "
                f"time, {cpu:.2f} of its processor time; memory of {found['memory_ratio']:.3f} times its weights; "
                f"load {found['load_1min']}",
                flush=True,
            )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, {**about, "cases": cases})
    meshes.stop()


if __name__ == "__main__":
    main()
