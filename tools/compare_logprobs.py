"""The same prompts through transformers, Megatron and vLLM: how far their log-probabilities are apart.

`python tools/compare_logprobs.py HF_DIR [--megatron DIR] [--prompts FILE] [--engines transformers megatron vllm]`

Each engine runs in a process of its own: the trainer's CUDA stubs break transformers' rotary frequencies where both
are loaded. Compared is the log-probability of every prompt token after the first, at temperature 1, in fp32. Exit
code 1 where two engines differ by more than --bound; a tie of a router explains a larger difference on a mixture of
experts (docs/architecture.md).
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    from r1mega.errors import ConfigError, DataError, R1MegaError
    from r1mega.families.spec import ModelSpec
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"compare_logprobs: {said}", file=sys.stderr)
    sys.exit(2)

ENGINES = ("transformers", "megatron", "vllm")
PROMPTS = ("The capital of France is Paris.", "1 + 2 = 3, and 3 + 4 = 7.", "def double(x):\n    return 2 * x\n")

Logprobs = list[list[float]]


def transformers(model: Path, ids: list[list[int]]) -> Logprobs:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for prompt in map(torch.tensor, ids):
        with torch.no_grad():
            logp = network(prompt[None]).logits[0, :-1].float().log_softmax(-1)
        found.append(logp.gather(1, prompt[1:, None])[:, 0].tolist())
    return found


def megatron(model: Path, ids: list[list[int]]) -> Logprobs:
    from r1mega.buffers import Int32s
    from r1mega.config.cluster import TrainerLayout
    from r1mega.config.training import Batch, Optimizer
    from r1mega.families.registry import read_model
    from r1mega.samples import Document
    from r1mega.trainer import mesh

    started = mesh.start(TrainerLayout(), device="cpu", seed=0)
    from r1mega.trainer.policy import Policy
    from r1mega.weights.megatron_io import load_weights

    policy = Policy.build(
        read_model(model), started, Optimizer(lr=1e-3), Batch(chunk_tokens=max(map(len, ids))),
        mtp="off", mtp_loss_weight=0.0, expert_bias_rate=0.0, seed=0,
    )  # fmt: skip
    load_weights(policy, model)
    found = policy.logprobs([Document(Int32s(prompt)) for prompt in ids], temperature=1.0)
    mesh.stop()
    return [logp.tolist() for logp in found]


def vllm(model: Path, ids: list[list[int]]) -> Logprobs:
    import httpx

    from r1mega.config.cluster import RolloutLayout
    from r1mega.rollout.server import Server

    found = []
    with tempfile.TemporaryDirectory() as folder:
        length = max(map(len, ids)) + 1
        with Server(
            model, RolloutLayout(), max_model_len=length, seed=0, log_file=Path(folder) / "vllm.log"
        ) as server:
            server.wait_ready()
            for prompt in ids:
                body = {
                    "model": "policy",
                    "prompt": prompt,
                    "max_tokens": 1,
                    "temperature": 1.0,
                    "prompt_logprobs": 0,
                }
                answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=600, trust_env=False)
                answer.raise_for_status()
                stated = answer.json()["choices"][0]["prompt_logprobs"][1:]
                pairs = zip(stated, prompt[1:], strict=True)
                found.append([float(logp[str(token)]["logprob"]) for logp, token in pairs])
    return found


def in_own_process(engine: str, model: Path, ids: list[list[int]]) -> Logprobs:
    """What an engine says, from a process that loads no other."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logprobs.json"
        command = [sys.executable, "-W", "ignore", __file__, str(model), "--one", engine, str(out)]
        done = subprocess.run(command, input=json.dumps(ids), text=True, capture_output=True)
        if done.returncode or not out.exists():
            raise R1MegaError(f"{engine} failed:\n{done.stderr[-3000:]}")
        return json.loads(out.read_text())


def read_prompts(file: Path) -> list[str]:
    try:
        prompts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); --prompts takes a text file, a prompt a line") from error
    if not prompts:
        raise DataError(f"{file}: no prompts, one a line")
    return prompts


def tokenise(model: Path, prompts: list[str], spec: ModelSpec) -> list[list[int]]:
    from tokenizers import Tokenizer

    file = model / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"{model}: no tokenizer.json to read the prompts with")
    ids = [Tokenizer.from_file(str(file)).encode(text).ids for text in prompts]
    if short := [text for text, found in zip(prompts, ids, strict=True) if len(found) < 2]:
        raise DataError(f"prompt {short[0]!r} has fewer than two tokens: nothing to compare")
    if (long := max(map(len, ids))) > spec.max_positions:
        raise DataError(f"a prompt has {long} tokens, the model max_position_embeddings = {spec.max_positions}")
    if any(i >= spec.vocab_size for found in ids for i in found):
        raise DataError(f"{file}: has tokens past the model's {spec.vocab_size}: it is not the model's tokenizer")
    return ids


def compare(options: argparse.Namespace) -> bool:
    """Print the table; whether every pair keeps to the bound."""
    from r1mega.families.registry import read_model

    if len(set(options.engines)) < 2:
        raise ConfigError(f"--engines {' '.join(options.engines)}: two different ones are needed to compare anything")
    prompts = read_prompts(options.prompts) if options.prompts else [*PROMPTS]
    ids = tokenise(options.model, prompts, read_model(options.model))
    found = {}
    for engine in options.engines:
        folder = options.megatron or options.model if engine == "megatron" else options.model
        found[engine] = list(itertools.chain(*in_own_process(engine, folder, ids)))
        print(f"{engine}: {len(found[engine])} tokens, mean log-probability {_mean(found[engine]):.4f}", flush=True)
    agree = True
    for a, b in itertools.combinations(found, 2):
        gaps = [abs(x - y) for x, y in zip(found[a], found[b], strict=True)]
        agree &= max(gaps) <= options.bound  # false where it is not a number
        print(f"{a} - {b}: |difference| mean {_mean(gaps):.2e}, max {max(gaps):.2e}")
    return agree


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="HF_DIR")
    parser.add_argument("--megatron", type=Path, help="a Megatron folder for Megatron to read instead of HF_DIR")
    parser.add_argument("--prompts", type=Path, help="one a line; default: three short ones")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--bound", type=float, default=1e-4)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        engine, out = options.one
        run = {"transformers": transformers, "megatron": megatron, "vllm": vllm}[engine]
        Path(out).write_text(json.dumps(run(options.model, json.load(sys.stdin))))
        return
    try:
        sys.exit(0 if compare(options) else 1)
    except R1MegaError as error:
        print(f"compare_logprobs: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
