"""Weights pushed from a trainer of any layout are, in an engine of any layout, those that it would load from disk.

The servers start on the folder that the trainers load as well: what they hold then is what a push of it must leave,
whatever they were given in between. Held bit for bit: each part of a tensor as the engine computes with it, and each
of its parameters as it stands in memory (vLLM's own digests).
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import rotation
import torch
from push_rows import numbers
from rank_pool import Pool
from safetensors.torch import save_file

from r1mega.config.cluster import RolloutLayout
from r1mega.data.tokenizer import train_tokenizer
from r1mega.families.registry import read_model
from r1mega.rollout import command
from r1mega.rollout.server import Server

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

V3 = json.loads((Path(__file__).parents[2] / "configs/tiny/deepseek_v3.json").read_text())
QWEN2 = {"model_type": "qwen2", "vocab_size": 384, "hidden_size": 128, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 256, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
         "rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
         "tie_word_embeddings": True}  # fmt: skip
MODELS = {"v3": V3 | {"num_hidden_layers": 4}, "qwen2": QWEN2 | {"num_hidden_layers": 4}}
SMALL = {"kv_cache_gib": 0.06, "max_num_seqs": 16}
ENGINES = {
    "tp1": ("apart", 1), "two_servers": ("apart", 2), "tp2": ("tp2", 1), "dp2_ep": ("dp2_ep", 1),
}  # fmt: skip
"""How the servers of a row are started, and how many of them it pushes to."""
STARTED = {
    "apart": RolloutLayout(servers=2, **SMALL),
    "tp2": RolloutLayout(tp=2, **SMALL),
    "dp2_ep": RolloutLayout(dp=2, expert_parallel=True, **SMALL),
}
TRAINERS = {"one": "", "tp2": "tp=2", "pp2": "pp=2", "ep2": "dp=2,ep=2", "pp2_ep2": "pp=2,dp=2,ep=2"}

TRANSPORTS = ("gloo", "nccl over gloo")
"""The second is the nccl transport with gloo where NCCL would be, on both ends (push_worker.py)."""

OF_NOTHING = hashlib.sha256(b"").hexdigest()
"""vLLM's digest of a parameter of which a kernel has a copy of its own."""

Row = tuple[str, str, str, str]
"""Model, engine, trainer, transport."""
GLOO, NCCL = TRANSPORTS
ALWAYS: tuple[Row, ...] = (
    ("v3", "tp1", "pp2_ep2", GLOO), ("v3", "tp1", "tp2", NCCL), ("v3", "two_servers", "one", GLOO),
    ("v3", "two_servers", "pp2", NCCL), ("v3", "tp2", "ep2", GLOO), ("v3", "tp2", "tp2", GLOO),
    ("v3", "dp2_ep", "pp2_ep2", NCCL), ("v3", "dp2_ep", "tp2", GLOO), ("qwen2", "tp2", "tp2", GLOO),
    ("qwen2", "tp2", "pp2", NCCL),
)  # fmt: skip
ALL = list(itertools.product(("v3",), ENGINES, TRAINERS, TRANSPORTS))
DENSE = (engine for engine in ENGINES if engine != "dp2_ep")  # whose trainers have no experts either
ALL += list(itertools.product(("qwen2",), DENSE, ("one", "tp2", "pp2"), TRANSPORTS))
ROWS = rotation.rows("the push matrix", always=ALWAYS, rotating=[row for row in ALL if row not in ALWAYS], take=1)


class Engine:
    """Servers of one layout and model, as they were when they had loaded its folder."""

    def __init__(self, folder: Path, layout: RolloutLayout, stack: ExitStack) -> None:
        self.folder = folder
        own = layout.model_copy(update={"servers": 1})
        self.servers = [
            stack.enter_context(
                Server(folder / "model", own, max_model_len=64, seed=0, log_file=folder / f"vllm-{i}.log")
            )
            for i in range(layout.servers)
        ]
        for server in self.servers:
            server.wait_ready()
        self.loaded = {server.url: numbers(server.url) for server in self.servers}

    def told(self, number: int) -> str:
        """The name of a file that says where so many of them are."""
        said = [
            {"url": s.url, "world_size": s.world_size, "log_file": str(s.log_file)} for s in self.servers[:number]
        ]
        (self.folder / f"servers_{number}.json").write_text(json.dumps(said))
        return f"servers_{number}"


def write(model: dict[str, Any], folder: Path) -> None:
    """A folder of random weights, with a tokenizer."""
    train_tokenizer(["0 1 2 3 4 5 6 7 8 9"], model["vocab_size"], folder)
    (folder / "config.json").write_text(json.dumps(model))
    spec = read_model(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(spec.hf))
    draw, found = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for row in spec.tensors():
        for name, shape in zip(row.hf, row.hf_shapes, strict=True):
            found[name] = torch.randn(shape, generator=draw) * 0.1
    for row in spec.tensors():
        if row.kind == "copy":
            found[row.hf[0]] = found[_copied(row.megatron, spec)].clone()
    save_file(found, folder / "model.safetensors")


def _copied(megatron: str, spec: Any) -> str:
    """The Hugging Face name of what a tensor repeats."""
    return next(row.hf[0] for row in spec.tensors() if row.megatron == megatron and row.kind != "copy")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    for name, folder in found.items():
        (folder / "model").mkdir()
        write(MODELS[name], folder / "model")
    return found


@pytest.fixture(scope="module")
def workers_of_tests() -> Iterator[None]:
    """Servers' workers run push_worker.py."""
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "WORKER_EXTENSION", "push_worker.WorkerExtension")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(here), str(here.parent / "unit"), os.environ.get("PYTHONPATH", "")])
        )
        yield


class Engines:
    """One engine at a time: the one that was asked for last, which the next one takes the place of."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders, self._stack = folders, ExitStack()
        self._asked: tuple[str, str] | None = None
        self.starts = 0

    def of(self, model: str, started: str) -> Engine:
        if self._asked != (model, started):
            self.close()
            self._engine = Engine(self._folders[model], STARTED[started], self._stack)
            self._asked = model, started
            self.starts += 1
        return self._engine

    def close(self) -> None:
        self._stack.close()
        self._asked = None


@pytest.fixture(scope="module")
def engines(folders: dict[str, Path], workers_of_tests: None) -> Iterator[Engines]:
    found = Engines(folders)
    yield found
    found.close()


PLACED = sorted(((row[0], ENGINES[row[1]][0]), *row[1:]) for row in ROWS)
"""Rows of one engine stand together, so that it is started once."""


@pytest.mark.parametrize(
    ("of", "kind", "trainer", "transport"), PLACED, ids=["-".join((row[0][0], *row[1:])) for row in PLACED]
)
def test_what_was_pushed_is_what_is_loaded(
    ranks: Pool, engines: Engines, of: tuple[str, str], kind: str, trainer: str, transport: str
) -> None:
    engine = engines.of(*of)
    number, layout = ENGINES[kind][1], TRAINERS[trainer]
    size = {"one": 1, "pp2_ep2": 4}.get(trainer, 2)
    ranks.run(size, "push_rows.row", engine.folder, [f"{layout}:{transport}:{engine.told(number)}"])
    other = json.loads((engine.folder / "other.json").read_text())
    assert len(other) == number
    for server in engine.servers[:number]:
        loaded, before = engine.loaded[server.url], other[server.url]
        assert loaded.keys() == before.keys()
        same = {place for place in loaded if loaded[place] == before[place] and loaded[place] != OF_NOTHING}
        assert not same, "the first push has left it as it was loaded"
        assert numbers(server.url) == loaded


def test_each_engine_is_started_once(engines: Engines) -> None:
    assert engines.starts <= len({row[0] for row in PLACED})
