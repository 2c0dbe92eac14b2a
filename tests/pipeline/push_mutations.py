"""Faults in pushes to stand-ins of the engine, in a process of its own; a line of JSON of each: what its proof said.

`python push_mutations.py FOLDER`. Before each fault, and at the end, a push without one is proven: so a fault leaves
nothing behind that the next proof would miss or be misled by.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from push_faults import FAULTS, Push
from safetensors.torch import save_file
from stand_in import Client, Ranks, weights

from r1mega.families.registry import read_model
from r1mega.weights.verify import Proof, ProofError

CONFIGS = Path(__file__).parents[2] / "configs/tiny"
V3 = json.loads((CONFIGS / "deepseek_v3.json").read_text())
MLA = {**V3, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_hidden_layers": 2}
"""The one shape of latent attention that vLLM computes as such on a CPU."""
QWEN2 = {"model_type": "qwen2", "vocab_size": 352, "hidden_size": 128, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256, "max_position_embeddings": 512,
         "rms_norm_eps": 1e-6, "rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
         "tie_word_embeddings": True}  # fmt: skip
WIDE = {**QWEN2, "hidden_size": 512, "num_hidden_layers": 2, "tie_word_embeddings": False}
BLOCK = 128
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}

Weights = dict[str, torch.Tensor]


class Repacking:
    """In place of vLLM's kernels of 8-bit matrices, which this CPU may lack: one with a layout of its own."""

    def process_weights_after_loading(self, layer: Any) -> None:
        layer.weight.data = layer.weight.data.flip(0)
        layer.weight_scale_inv.data = layer.weight_scale_inv.data * 2


def coded(tensors: Weights, seed: int) -> Weights:
    """Matrices of layers as 8-bit codes, with a scale for each block."""
    found, draw = dict[str, torch.Tensor](), torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        found[name] = tensor
        if name.endswith("_proj.weight"):
            rows, columns = tensor.shape
            found[name] = tensor.to(torch.float8_e4m3fn)
            found[f"{name}_scale_inv"] = torch.rand(rows // BLOCK, columns // BLOCK, generator=draw)
    return found


class Stand:
    """Servers of one model, and what they were given last."""

    def __init__(
        self, folder: Path, config: dict[str, Any], *, servers: int = 1, tp: int = 1, expert_parallel: bool = False,
        mla: bool = False, fp8: bool = False,
    ) -> None:  # fmt: skip
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        self.spec = read_model(folder / "config.json")
        self._dtype, self._fp8 = torch.bfloat16 if fp8 else torch.float32, fp8
        extra = {"quantization_config": FP8} if fp8 else {}
        (folder / "config.json").write_text(json.dumps({**self.spec.hf, **extra}))
        self._seed = -1
        self.holds = self.others()
        save_file(self.holds, folder / "model.safetensors")
        os.environ["VLLM_MLA_DISABLE"] = str(int(not mla))
        options = {"tp": tp, "expert_parallel": expert_parallel, "dtype": str(self._dtype).removeprefix("torch.")}
        self.servers = [Ranks(folder, name=f"s{i}", **options) for i in range(servers)]

    def others(self) -> Weights:
        """Weights that nobody has had."""
        self._seed += 1
        drawn = weights(self.spec, self._seed, self._dtype)
        return coded(drawn, self._seed) if self._fp8 else drawn

    def push(self, plant: Callable[[Push], object] = lambda push: None) -> list[str]:
        """What the proof of a push says, of each difference."""
        proof, client, tensors = Proof(1), Client(self.servers), self.others()
        push = Push(list(tensors.items()), self.holds, self.servers)
        push.arrives = push.sent
        plant(push)
        ledger = proof.begin(client)
        for _ in ledger.watch(iter(push.sent)):
            pass
        for worker in (w for server in self.servers for w in server.workers if id(w) not in push.skipped):
            worker.load(push.arrives, 2**16, push.reused)
        push.afterwards()
        self.holds = tensors
        try:
            proof.check(client, ledger)
            proof.succeeded()
            push.asleep()
            proof.again()
        except ProofError as error:
            return [f"{server.url}: {line}" for server, lines in error.faults.items() for line in lines]
        finally:
            for worker in (w for server in self.servers for w in server.workers):
                worker.draft, worker.receiver.repack_experts, worker.receiver.repack_heads = None, True, True
        return []


STANDS: dict[str, Callable[[Path], Stand]] = {
    "v3": lambda folder: Stand(folder, V3, servers=2),
    "v3_ep": lambda folder: Stand(folder, V3, tp=2, expert_parallel=True),
    "qwen2": lambda folder: Stand(folder, QWEN2, tp=2),
    "mla": lambda folder: Stand(folder, MLA, tp=2, mla=True),
    "fp8": lambda folder: Stand(folder, WIDE, tp=2, fp8=True),
}


def results(folder: Path) -> Iterator[dict[str, Any]]:
    from vllm.model_executor.layers.quantization import fp8

    fp8.init_fp8_linear_kernel = lambda **_: Repacking()
    for engine, make in STANDS.items():
        stand = make(folder / engine)
        for fault in (fault for fault in FAULTS if fault.engine == engine):
            yield {"fault": fault.name, "clean": stand.push(), "found": stand.push(fault.plant)}
        yield {"fault": f"none in {engine}", "clean": stand.push(), "found": []}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in results(Path(sys.argv[1])):
        print(json.dumps(row), flush=True)
