"""A running server that is given another folder's weights answers as one that was started of that folder, and so does
one that a chain's earlier stages have left.

The oracle is vLLM's own start: a server that was given a folder must say what one says that was started of it, token
for token at T = 1, and bit for bit where answers are asked for one by one. Prompts are longer than a block of the
prefix cache, so that blocks of other weights would be found.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rotation
import torch
from safetensors.torch import load_file, save_file
from tiny_model import MAX_MODEL_LEN, make_model, make_tokenizer, weight_version

from r1mega.buffers import Int32s
from r1mega.config.cluster import RolloutLayout
from r1mega.errors import ConfigError, WeightMappingError
from r1mega.rollout.engine import Engine, Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.kept import Keeper
from r1mega.rollout.served import ServedModel
from r1mega.rollout.server import Server
from r1mega.runtime import env
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.process import Identity
from r1mega.samples import Completion, Prompt
from r1mega.weights import folder as given_folder
from r1mega.weights.folder import GiveFolder
from r1mega.weights.servers import ServerClient

pytestmark = pytest.mark.vllm
BOUND = 4e-6
"""Of answers asked for together: a few fp32 roundings, as between one server's batches."""
TURNS = rotation.rows("a dense model's folders given to a server", rotating=range(3), take=1)
"""Its two starts take most of a minute: it has its turn with every third commit."""
PROMPT_TOKENS = 100
"""Three blocks of the prefix cache, of 32 tokens each, and some."""


def make_qwen2(folder: Path, seed: int) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Said:
    """Answers at T = 1 from the folder's weights."""

    alone: list[Completion]
    """Asked for one after the other."""
    together: list[Completion]
    """Asked for at once: which of them vLLM computes in one batch depends on when each arrives."""


def sampled(engine: Engine) -> Said:
    """One answer to each of four prompts, then sixteen more to each."""
    draw = torch.Generator().manual_seed(5)
    prompts = [Prompt(f"p{i}", "t", "q", "a", Int32s(row)) for i, row in enumerate(
        torch.randint(0, 256, (4, PROMPT_TOKENS), generator=draw).tolist())]  # fmt: skip

    def ask(requests: list[Request]) -> list[Completion]:
        answers = engine.generate(requests, SamplingParams(1.0, 24), version=0)
        return [completion for group in answers for completion in group]

    alone = [completion for p in prompts for completion in ask([Request(p, 1, 7)])]
    return Said(alone, ask([Request(p, 16, 1000 * i) for i, p in enumerate(prompts)]))


def difference(a: Said, b: Said) -> float:
    """The largest |d logp| of answers asked for together; infinite where any token is another, or any bit of those
    that were asked for alone."""
    tokens_a, tokens_b = ([c.token_ids for c in (*said.alone, *said.together)] for said in (a, b))
    if tokens_a != tokens_b or [c.logp for c in a.alone] != [c.logp for c in b.alone]:
        return float("inf")
    logp_a, logp_b = (torch.tensor([x for c in said.together for x in c.logp.tolist()]) for said in (a, b))
    assert len(logp_a) > 1000
    return (logp_a - logp_b).abs().max().item()


@pytest.fixture(scope="module")
def given(server: Server, model_dir: Path) -> Iterator[Server]:
    """The shared server with its first folder's weights, which it has again afterwards."""
    GiveFolder()([server], model_dir)
    yield server
    GiveFolder()([server], model_dir)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another folder of the shared server's model."""
    folder = tmp_path_factory.mktemp("other")
    make_model(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    """A process to which a kept server belongs, in place of a chain's."""
    process = subprocess.Popen(["sleep", "6000"])
    owner = Identity.of(process.pid)
    assert owner is not None
    keeper = Keeper(owner, tmp_path_factory.mktemp("kept"), room=MAX_MODEL_LEN)
    keeper.tell()
    try:
        yield keeper
    finally:
        env.keep_server(None)
        process.kill()
        process.wait()


def stage(folder: Path, *, room: int, seed: int) -> tuple[int, Said]:
    """What a stage's server answers for a folder, and its process, which the stage leaves running."""
    with ServedModel(
        folder, RolloutLayout(kv_cache_gib=0.5), max_model_len=room, seed=seed, log_file=Path("unused"),
        interrupt=Interrupt(), give=GiveFolder(),
    ) as served:  # fmt: skip
        said = sampled(served)
        return served.servers[0].pid, said


@pytest.fixture(scope="module")
def fresh(given: Server, model_dir: Path, other: Path, chain: Keeper) -> dict[str, Said]:
    """What is said of either folder: by the shared server, and by one that three stages hand on."""
    said = {"first": sampled(Fleet([given]))}
    GiveFolder()([given], other)
    assert given.model_dir == other and weight_version(given) == "0"
    said["given"] = sampled(Fleet([given]))
    GiveFolder()([given], model_dir)
    said["given back"] = sampled(Fleet([given]))
    (first, said["started"]), (second, said["handed on"]), (third, said["handed on again"]) = (
        stage(other, room=160, seed=0), stage(model_dir, room=200, seed=1), stage(other, room=180, seed=2),
    )  # fmt: skip
    assert first == second == third
    chain.end()
    assert Identity.of(first) is None
    return said


def test_given_weights_answer_as_those_of_a_start(fresh: dict[str, Said]) -> None:
    assert difference(fresh["given"], fresh["started"]) <= BOUND
    assert difference(fresh["given back"], fresh["first"]) <= BOUND
    assert difference(fresh["given"], fresh["first"]) == float("inf")


def test_a_kept_server_answers_as_one_that_was_started(fresh: dict[str, Said]) -> None:
    """After other weights were in it, and laid out for a chain's longest answers."""
    assert difference(fresh["handed on"], fresh["first"]) <= BOUND
    assert difference(fresh["handed on again"], fresh["started"]) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("turn", [turn for turn in TURNS if turn == 0])
def test_a_dense_model_with_a_tied_head_is_given_as_well(turn: int, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_qwen2(first, 0)
    make_qwen2(second, 1)
    with Server(first, RolloutLayout(), max_model_len=MAX_MODEL_LEN, seed=0, log_file=tmp_path / "log") as server:
        server.wait_ready()
        loaded = sampled(Fleet([server]))
        GiveFolder()([server], second)
        given = sampled(Fleet([server]))
        server.restart("to have the folder's weights from its start")
        assert difference(given, sampled(Fleet([server]))) <= BOUND
        GiveFolder()([server], first)
        assert difference(loaded, sampled(Fleet([server]))) <= BOUND


def test_blocks_of_other_weights_are_not_used(
    fresh: Any, given: Server, model_dir: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the emptied prefix cache the first folder's blocks answer for the second, which this would see."""
    assert difference(sampled(Fleet([given])), fresh["first"]) <= BOUND
    monkeypatch.setattr(ServerClient, "reset_prefix_cache", lambda self: None)
    GiveFolder()([given], other)
    assert difference(sampled(Fleet([given])), fresh["given"]) > BOUND
    monkeypatch.undo()
    GiveFolder()([given], model_dir)


def test_two_experts_exchanged_are_seen(
    fresh: Any, given: Server, model_dir: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor of one expert under the other's name: names, shapes, number and bytes are as they should be."""

    class Exchanged(given_folder.FolderWeights):
        def __iter__(self) -> Iterator[Any]:
            tensors = {name: tensor.clone() for name, tensor in super().__iter__()}
            for name in tensors:
                other_expert = name.replace(".1.mlp.experts.2.", ".1.mlp.experts.3.") if ".experts.2." in name else (
                    name.replace(".1.mlp.experts.3.", ".1.mlp.experts.2."))  # fmt: skip
                yield name, tensors[other_expert]

    monkeypatch.setattr(given_folder, "FolderWeights", Exchanged)
    GiveFolder()([given], other)
    assert difference(sampled(Fleet([given])), fresh["given"]) > BOUND
    monkeypatch.undo()
    GiveFolder()([given], model_dir)


def test_a_folder_that_is_not_whole_leaves_the_server_as_it_is(given: Server, other: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(other, torn)
    tensors = load_file(torn / "model.safetensors")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    tensors.pop(name)
    save_file(tensors, torn / "model.safetensors", metadata={"format": "pt"})
    before = given.model_dir
    with pytest.raises(WeightMappingError, match=name):
        GiveFolder()([given], torn)
    assert given.model_dir == before and weight_version(given) == "0"


def test_another_model_is_refused_and_nothing_sent(given: Server, other: Path, tmp_path: Path) -> None:
    wider = tmp_path / "wider"
    shutil.copytree(other, wider)
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps({**config, "routed_scaling_factor": 2.25}))
    before = given.model_dir
    with pytest.raises(ConfigError, match=r"1 differences(?s:.)*\n  moe: .*routed_scaling=2.25"):
        GiveFolder()([given], wider)
    assert given.model_dir == before and weight_version(given) == "0"
