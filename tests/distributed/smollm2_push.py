"""SmolLM2-135M-Instruct's greedy answers: `python smollm2_push.py transformers|engine FOLDER`, a process each.

FOLDER/hf is what tests/distributed/smollm2.py makes, FOLDER/megatron its conversion. `transformers` answers QUESTIONS
in fp32 and writes ids and answers; `engine` starts vLLM on weights drawn at random, loads the policy from
FOLDER/megatron, pushes it, and lets vLLM answer the same ids.
"""

import json
import sys
from pathlib import Path

import torch

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three primary colours.",
    "Why is the sky blue?",
)
MAX_NEW_TOKENS = 40


def transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32, attn_implementation="eager")
    rows = []
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text).input_ids
        with torch.no_grad():
            found = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        answer = found[0, len(ids) :].tolist()
        rows.append({"prompt": ids, "answer": answer, "text": tokenizer.decode(answer, skip_special_tokens=True)})
    (folder / "greedy.json").write_text(json.dumps(rows))


def engine(folder: Path) -> None:
    from r1mega.config.cluster import RolloutLayout, TrainerLayout
    from r1mega.config.training import Batch, Optimizer
    from r1mega.families.registry import read_model
    from r1mega.rollout.engine import Request
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
    prompts = [Prompt(str(i), "greedy", "", "", tuple(row["prompt"])) for i, row in enumerate(rows)]
    requests = [Request(prompt, 1, i) for i, prompt in enumerate(prompts)]
    with Server(
        folder / "random", RolloutLayout(), max_model_len=256, seed=0, log_file=folder / "vllm.log"
    ) as server:
        pusher = Pusher(PolicySource(policy, include_mtp=False), [server])
        pusher.prepare()
        server.wait_ready()
        found = {}
        for version in (0, 1):
            if version:
                pusher.push(version)
            answers = Fleet([server]).generate(
                requests, temperature=0.0, max_new_tokens=MAX_NEW_TOKENS, version=version
            )
            found[str(version)] = [list(a.token_ids) for (a,) in answers]
    (folder / "pushed.json").write_text(json.dumps(found))
    meshes.stop()


if __name__ == "__main__":
    {"transformers": transformers, "engine": engine}[sys.argv[1]](Path(sys.argv[2]))
