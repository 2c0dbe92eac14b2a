"""Megatron against vLLM, in a process of its own; prints what it found of each model as a line of JSON.

`python policy_and_engine.py FOLDER MODEL...`; FOLDER/MODEL/config.json may be of any family.

The policy's own export starts the server; then the policy changes, all of its weights and the routers' bias, and is
pushed. As loaded and after each push, at T = 1 and T = 0.7, the two are compared on every sampled token. The next
model's server starts meanwhile.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch

from r1mega.buffers import Float32s
from r1mega.config.cluster import RolloutLayout, TrainerLayout
from r1mega.config.training import Batch, Optimizer
from r1mega.data.pretrain_text import documents
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import prompts
from r1mega.data.settings import AnswerStyles, PromptSettings
from r1mega.data.sources.reasoning_gym import Task, questions
from r1mega.data.split import TRAINED_ON
from r1mega.data.tokenizer import train_tokenizer
from r1mega.diagnostics.mismatch import answers_past, measure, mismatch
from r1mega.errors import MismatchError
from r1mega.families.registry import read_model
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.server import Server
from r1mega.samples import Document, Sample
from r1mega.trainer import mesh

TASKS = (Task(name="chain_sum", params={"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}),)
MAX_NEW_TOKENS = 40


def disturb(policy, seed: int) -> None:
    """Move every weight by a tenth of its size, and biases, the routers' too, by enough to change something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in policy.state().items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor += 0.02 * noise if name.endswith("bias") else 0.1 * tensor.abs().mean() * noise
    policy.weights_changed()


def compare(policy, fleet, tokenizer, temperature: float, version: int) -> dict[str, float]:
    form = PromptForm(PromptSettings(), tokenizer)
    held_out = prompts(questions(TASKS, 40, 999_999, exclude=TRAINED_ON), form)
    answers = fleet.generate(
        [Request(p, 8, 1000 * i) for i, p in enumerate(held_out)],
        SamplingParams(temperature, MAX_NEW_TOKENS),
        version=version,
    )
    sampled = [(p, c) for p, cs in zip(held_out, answers, strict=True) for c in cs]
    docs = [Document(p.token_ids + c.token_ids, len(p.token_ids)) for p, c in sampled]
    samples = [
        Sample(p.token_ids, c.token_ids, 0.0, c.logp, Float32s(logp.numpy()))
        for (p, c), logp in zip(sampled, policy.logprobs(docs, temperature=temperature), strict=True)
    ]
    num_tokens = sum(len(s.completion_ids) for s in samples)

    past = answers_past(samples, 1e-4)
    documents_past = [Document(s.prompt_ids + s.completion_ids) for s in past]
    margins = [m.tolist() for m in policy.routing_margins(documents_past)] if past else []
    gaps = measure(samples, margins, max_abs=1e-4)
    row = mismatch([gaps], max_abs=1e-4, tie_margin=5e-6)
    return row | {"tokens": num_tokens, "questions_after_tie": len({s.prompt_ids for s in past})}


def complaint(policy, fleet, tokenizer, version: int) -> str:
    """What is said of a mismatch; nothing where there is none."""
    try:
        compare(policy, fleet, tokenizer, 1.0, version)
    except MismatchError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def started(folder: Path, mesh: mesh.Mesh, tokenizer_dir: Path) -> Iterator[tuple[Any, Server]]:
    """The policy of a config.json, and a server that starts on its weights."""
    from r1mega.trainer.policy import Policy
    from r1mega.weights import hf_io

    policy = Policy.build(
        read_model(folder / "config.json").with_vocab(352, bos=1, eos=2, pad=0), mesh, Optimizer(lr=1e-3),
        Batch(chunk_tokens=256, chunks_per_micro_batch=8), mtp="off", mtp_loss_weight=0.0, expert_bias_rate=0.0,
        seed=0,
    )  # fmt: skip
    hf_io.export(policy, folder / "hf", tokenizer_dir=tokenizer_dir)
    with Server(folder / "hf", RolloutLayout(), max_model_len=96, seed=0, log_file=folder / "vllm.log") as server:
        yield policy, server


def look_at(policy, server: Server, tokenizer) -> dict[str, Any]:
    from r1mega.weights.push import Pusher
    from r1mega.weights.source import PolicySource

    found = []
    pusher = Pusher(PolicySource(policy, include_mtp=False), [server])
    server.wait_ready()
    fleet = Fleet([server])
    for version in range(3):
        if version:
            disturb(policy, version)
            pusher.push(version)
        for temperature in (1.0, 0.7):
            row = compare(policy, fleet, tokenizer, temperature, version)
            found.append({"version": version, "temperature": temperature, **row})
    disturb(policy, 9)  # and not pushed
    stale = complaint(policy, fleet, tokenizer, 2)
    body = {"method": "r1mega_shim", "args": ["tied_head", "off"]}
    httpx.post(f"{server.url}/collective_rpc", json=body, timeout=300).raise_for_status()
    pusher.push(3)
    pusher.close()
    of_vllm = sorted(name for name in sys.modules if name.partition(".")[0] == "vllm")
    without = complaint(policy, fleet, tokenizer, 3)
    return {"found": found, "stale": stale, "without_tied_head_shim": without, "of_vllm": of_vllm}


def main(folder: Path, models: list[str]) -> None:
    formed = mesh.start(TrainerLayout(), device="cpu", seed=0)
    styles = AnswerStyles(think=0.25, tags=0.25, steps=0.25, plain=0.25)
    tokenizer = train_tokenizer([d.prompt + d.answer for d in documents(TASKS, styles, 500, 0)], 352, folder / "tok")
    with contextlib.ExitStack() as last:
        following: contextlib.ExitStack | None = None
        pairs: dict[str, Any] = {}

        def begin(model: str) -> contextlib.ExitStack:
            stack = last.enter_context(contextlib.ExitStack())
            pairs[model] = stack.enter_context(started(folder / model, formed, folder / "tok"))
            return stack

        for model, after in zip(models, [*models[1:], None], strict=True):
            stack = following or begin(model)
            following = begin(after) if after else None
            try:
                row = look_at(*pairs.pop(model), tokenizer)
            except Exception:  # the others' results are not lost with it
                row = {"failed": traceback.format_exc()}
            print(json.dumps({"model": model, **row}), flush=True)
            stack.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
