"""What a push through the gloo transport takes, against a plain gloo broadcast of as many bytes to another process.

`push` is `weights.gloo.GlooSender` and the receiving end that vLLM's workers run (`weights.worker.GlooWorkerEngine`)
with a model whose loading is a copy: packing, broadcasts, checksums on both sides, the comparison. `plain` is one
broadcast of a buffer that both processes hold already. Both processes are on this machine, with one thread each for
torch's kernels; what a real vLLM adds, its layer-wise loading, is in neither.

    python tools/bench/push.py --out push.json
"""

import argparse
import json
import math
import multiprocessing
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import torch
from torch.distributed import TCPStore

from r1mega.families.registry import model_of
from r1mega.runtime.files import write_json
from r1mega.weights.gloo import GlooSender
from r1mega.weights.sender import Link
from r1mega.weights.stream import Param
from r1mega.weights.wire import Wire

TIMEOUT_S = 300.0
MODEL: dict[str, Any] = {
    "model_type": "qwen2", "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1536,
    "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "initializer_range": 0.02, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
"""Some 200 MB in fp32, of some hundred tensors."""


def params() -> list[Param]:
    rows = model_of(MODEL, Path("config.json")).tensors()
    return [Param(n, torch.float32, s) for row in rows for n, s in zip(row.hf, row.hf_shapes, strict=True)]


class Weights:
    """A source of fixed tensors."""

    def __init__(self) -> None:
        self._tensors = {p.name: torch.randn(p.shape) for p in params()}

    def metadata(self) -> list[Param]:
        return params()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._tensors.items())


class Model:
    """In place of vLLM's: weights are copied to where they belong."""

    def __init__(self) -> None:
        self.weights = {p.name: torch.zeros(p.shape) for p in params()}

    def load_weights(self, pairs: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in pairs:
            self.weights[name].copy_(tensor)


def work(pipe: Connection) -> None:
    """The other process: does what it is told, and says when it has."""
    from r1mega.weights.worker import GlooUpdateInfo, GlooWorkerEngine

    torch.set_num_threads(1)
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    about: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
    model: Any = Model()
    engine = GlooWorkerEngine(about, about, torch.device("cpu"), model)
    while (message := pipe.recv()) is not None:
        what, given = message
        if what == "init":
            engine.init_transfer_engine(engine.parse_init_info(given))
        elif what == "update":
            engine.receive_weights(GlooUpdateInfo(**given))
        elif what == "join":
            port, num_bytes = given
            store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=TIMEOUT_S))
            wire, buffer = Wire(store, 1, 2, TIMEOUT_S, "127.0.0.1"), torch.zeros(num_bytes, dtype=torch.uint8)
        elif what == "plain":
            wire.wait(wire.begin(buffer))
        elif what == "sum":
            pipe.send({name: tensor.sum(dtype=torch.float64).item() for name, tensor in model.weights.items()})
            continue
        pipe.send("done")


class Client:
    """`weights.servers.ServerClient` of the other process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ask(self, what: str, given: Any = None) -> Any:
        self._pipe.send((what, given))
        return self._pipe.recv()

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        self.ask("init", info)

    def start_weight_update(self) -> None: ...

    def update_weights(self, info: dict[str, Any]) -> None:
        self.ask("update", info)

    def finish_weight_update(self) -> None: ...


def measure(pipe: Connection, bucket_mib: float, repetitions: int) -> dict[str, Any]:
    client, weights = Client(pipe), Weights()
    num_bytes = sum(4 * math.prod(p.shape) for p in params())
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=TIMEOUT_S))
    pipe.send(("join", (store.port, num_bytes)))
    wire, buffer = Wire(store, 0, 2, TIMEOUT_S, "127.0.0.1"), torch.ones(num_bytes, dtype=torch.uint8)
    pipe.recv()
    sender = GlooSender(Link("127.0.0.1", "127.0.0.1", 1, TIMEOUT_S, int(bucket_mib * 2**20)), client)  # type: ignore[arg-type]

    def plain(lap: harness.Lap) -> None:
        pipe.send(("plain", None))
        wire.wait(wire.begin(buffer))
        pipe.recv()
        lap("push")

    def push(lap: harness.Lap) -> None:
        sender.send(weights)
        lap("push")

    found = harness.compare({"plain": plain, "push": push}, baseline="plain", repetitions=repetitions)
    arrived = client.ask("sum")
    assert arrived == {name: tensor.sum(dtype=torch.float64).item() for name, tensor in weights}
    return {
        "bucket_mib": bucket_mib,
        "megabytes": round(num_bytes / 1e6, 1),
        "tensors": len(params()),
        "variants": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bucket-mib", type=float, default=1024, help="as weights.bucket_mib")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(there,), daemon=True)
    worker.start()
    found = measure(here, given.bucket_mib, given.repetitions)
    here.send(None)
    worker.join()
    names = ("gloo", "sender", "stream", "wire", "worker")
    sources = [Path(__file__).resolve(), *(harness.ROOT / f"r1mega/weights/{name}.py" for name in names)]
    about = {"about": " ".join((__doc__ or "").split()), **harness.provenance(["torch"], sources)}
    write_json(given.out, about | found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
