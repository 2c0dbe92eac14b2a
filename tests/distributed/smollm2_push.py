"""On one rank: SmolLM2-135M-Instruct's greedy answers from vLLM, before and after the policy is pushed to it.

`engine(FOLDER, "")`, of what smollm2.py makes, starts vLLM on weights drawn at random, loads the policy from
FOLDER/megatron, pushes it, and lets vLLM answer the same ids as transformers did.
"""

import json
from pathlib import Path

from smollm2 import MAX_NEW_TOKENS


def engine(folder: Path, _: str) -> None:
    from r1mega.buffers import Int32s
    from r1mega.config.cluster import RolloutLayout, TrainerLayout
    from r1mega.config.training import Batch, Optimizer
    from r1mega.families.registry import read_model
    from r1mega.rollout.engine import Request, SamplingParams
    from r1mega.rollout.fleet import Fleet
    from r1mega.rollout.server import Server
    from r1mega.samples import Prompt
    from r1mega.trainer import mesh as meshes

    mesh = meshes.start(TrainerLayout(), device="cpu", seed=0)
    from r1mega.trainer.policy import Policy
    from r1mega.weights import hf_io
    from r1mega.weights.megatron_io import load_weights
    from r1mega.weights.push import Pusher
    from r1mega.weights.source import PolicySource

    policy = Policy.build(
        read_model(folder / "hf"), mesh, Optimizer(lr=1e-3), Batch(chunk_tokens=256, chunks_per_micro_batch=1),
        mtp="off", mtp_loss_weight=0.0, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    hf_io.export(policy, folder / "random", tokenizer_dir=folder / "hf")
    load_weights(policy, folder / "megatron")
    rows = json.loads((folder / "greedy.json").read_text())
    prompts = [Prompt(str(i), "greedy", "", "", Int32s(row["prompt"])) for i, row in enumerate(rows)]
    requests = [Request(prompt, 1, i) for i, prompt in enumerate(prompts)]
    with Server(
        folder / "random", RolloutLayout(), max_model_len=256, seed=0, log_file=folder / "vllm.log"
    ) as server:
        pusher = Pusher(PolicySource(policy, include_mtp=False), [server])
        server.wait_ready()
        found = {}
        for version in (0, 1):
            if version:
                pusher.push(version)
            answers = Fleet([server]).generate(
                requests, SamplingParams(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS), version=version
            )
            found[str(version)] = [list(a.token_ids) for (a,) in answers]
    (folder / "pushed.json").write_text(json.dumps(found))
