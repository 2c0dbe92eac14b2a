"""Laws of the engine's layout, each with its remedy, and what a GPU of the engine holds, worked out by hand."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1mega.config.cluster import Cluster
from r1mega.config.load import load_cluster
from r1mega.families.registry import read_model
from r1mega.families.spec import Grouped, ModelSpec
from r1mega.layout.engine_laws import MOE_BACKENDS, engine_layout_faults, engine_model_faults, transport_notes
from r1mega.layout.engine_memory import engine_memory
from r1mega.layout.memory import GIB
from r1mega.recipe.memory import Holds, memory_faults

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "configs/models"


def cuda(**tables: Any) -> Cluster:
    rollout = {"dtype": "bf16", **tables.pop("rollout", {})}
    trainer = {"dtype": "bf16", **tables.pop("trainer", {})}
    given = {"device": "cuda", "gpus_per_node": 8, "gpu": "hopper", "trainer": trainer, "rollout": rollout}
    return Cluster.model_validate({**given, **tables})


def cpu(**tables: Any) -> Cluster:
    return Cluster.model_validate({"device": "cpu", **tables})


SHARED: dict[str, Any] = {"placement": "colocated", "trainer": {"dp": 2}, "rollout": {"servers": 2}}


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (cpu(placement="colocated"), "placement: 'colocated' on device 'cpu'; leave it out"),
        (cuda(placement="cpu"), "placement: 'cpu' on device 'cuda'; set \"disaggregated\" or \"colocated\""),
        (cpu(rollout={"gpus": (0,)}), "rollout.gpus: of GPUs, and servers compute on the CPU here"),
        (cpu(rollout={"python": "/x/python"}), "rollout.python: of GPUs"),
        (cpu(rollout={"cuda_graphs": False}), "rollout.cuda_graphs: of GPUs"),
        (cpu(rollout={"moe_backend": "marlin"}), "rollout.moe_backend: of GPUs"),
        (cpu(rollout={"compile_cache": "/x"}), "rollout.compile_cache: of GPUs"),
        (cpu(rollout={"max_num_batched_tokens": 4096}), "rollout.max_num_batched_tokens: of GPUs"),
        (cpu(rollout={"servers": 2, "port": 65535}), "2 servers listen at 65535 to 65536, and ports end at 65535"),
        (cuda(rollout={"threads": 8}), "rollout.threads: of kernels on the CPU, and servers compute on GPUs"),
        (cpu(weights={"fp8": True}), "weights.fp8: of GPUs"),
        (cpu(weights={"transport": "nccl"}), "weights.transport: 'nccl' is of GPUs"),
        (cuda(rollout={"moe_backend": "quick"}), "rollout.moe_backend: 'quick' is none of vLLM's kernels"),
        (cuda(rollout={"max_num_batched_tokens": 128}), "128 tokens of a step are fewer than the 256 answers"),
        (cuda(weights={"fp8": True}, rollout={"dtype": "fp32"}), "weights.fp8: needs rollout.dtype bf16"),
        (cuda(weights={"fp8": True}, gpu="ampere"), "weights.fp8: Ampere has no FP8"),
        (cuda(weights={"transport": "ipc"}), "weights.transport: 'ipc' hands weights over within a GPU"),
        (cuda(**SHARED, weights={"transport": "nccl"}), "weights.transport: 'nccl' takes one rank of a GPU"),
        (
            cuda(**{**SHARED, "rollout": {"servers": 2, "host": "node7"}}),
            "on loopback alone, and rollout.host is 'node7'",
        ),
        (
            cuda(**{**SHARED, "rollout": {"servers": 2, "launch": ("srun",)}}),
            "on loopback alone, and rollout.launch starts servers elsewhere",
        ),
        (
            cuda(**{**SHARED, "rollout": {"servers": 3}}),
            "2 rank(s) of the trainer, and rollout's servers x tp x dp = 3 x 1 x 1 = 3; make them as many",
        ),
        (
            cuda(placement="colocated", trainer={"dp": 16}, rollout={"servers": 16}),
            "'colocated' is of one node, and 16 ranks take more than its 8 GPUs",
        ),
        (cuda(rollout={"tp": 12}), "12 ranks of a server fill no whole number of nodes of 8 GPUs"),
        (cuda(rollout={"gpus": (1, 1), "servers": 2}), "rollout.gpus: 1, 1: one is there twice"),
        (cuda(rollout={"gpus": (1,), "tp": 2}), "rollout.gpus: 1 of them, and servers x tp x dp = 1 x 2 x 1 = 2"),
        (cuda(rollout={"gpus": (8,)}), "rollout.gpus: 8: a node's GPUs are 0 to 7"),
        (cuda(rollout={"gpus": (-1,)}), "rollout.gpus: -1: GPUs are counted from 0"),
        (cuda(trainer={"dp": 4}, rollout={"gpus": (3,)}), "rollout.gpus: 3: the trainer's ranks have these"),
        (cuda(**{**SHARED, "rollout": {"servers": 2, "gpus": (0, 2)}}), "colocated, they are the trainer's, 0, 1"),
        (
            cuda(rollout={"gpus": (7,), "attendants": "/x"}),
            "rollout.attendants are on nodes of their own, where they",
        ),
        (cuda(rollout={"launch": ("srun",), "attendants": "/x"}), "launch: attendants start servers"),
        (cpu(rollout={"launch": ("srun",), "attendants": "/x"}), "launch: attendants start servers"),
        (
            cuda(rollout={"gpus": (7,), "launch": ("srun",)}),
            "rollout.launch starts servers elsewhere, where they take",
        ),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_one_fault(machine: Cluster, said: str):
    (fault,) = engine_layout_faults(machine)
    assert said in fault and fault.startswith("cluster.")


@pytest.mark.parametrize(
    "machine",
    [
        cpu(), cpu(rollout={"servers": 2, "port": 65534}),
        cpu(rollout={"dp": 2, "expert_parallel": True, "servers": 2}), cpu(placement="cpu"), cuda(),
        cuda(placement="disaggregated", trainer={"dp": 4}, rollout={"gpus": (5, 4), "servers": 2}), cuda(**SHARED),
        cuda(**{**SHARED, "rollout": {"servers": 2, "gpus": (1, 0)}}), cuda(**SHARED, weights={"transport": "gloo"}),
        cuda(weights={"transport": "gloo"}), cuda(weights={"fp8": True}), cuda(rollout={"tp": 16}),
        cuda(rollout={"launch": ("srun",), "host": "node7"}),
        *(load_cluster(str(path), []) for path in sorted((ROOT / "configs/cluster").glob("*.toml"))),
    ],
)  # fmt: skip
def test_a_layout_that_can_be_passes(machine: Cluster):
    assert engine_layout_faults(machine) == []


def test_kernels_of_experts_have_vllms_names():
    """Read, not imported, which would take as long as all of this file."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None and vllm.origin is not None
    source = Path(vllm.origin).with_name("config") / "kernel.py"
    if not source.exists():
        pytest.skip("a stand-in for vLLM (tests/without_vllm)")
    named = source.read_text().partition("MoEBackend = Literal[")[2].partition("]")[0]
    assert set(MOE_BACKENDS) <= set(re.findall(r'"(\w+)"', named))


# ---- a model over the engine's ranks --------------------------------------------------------------------------


def model(name: str) -> ModelSpec:
    return read_model(MODELS / name)


@pytest.mark.parametrize(
    ("name", "rollout", "said"),
    [
        ("Qwen2.5-Math-1.5B", {"tp": 3}, ["3 ranks of the engine neither divide nor multiply"]),
        ("Qwen2.5-14B", {"tp": 16}, ["16 ranks of the engine do not divide the model's 40 attention heads"]),
        ("Qwen2.5-14B", {"dp": 2}, ["rollout.dp: 2: of mixtures of experts, and the model is dense"]),
        ("Qwen2.5-14B", {"expert_parallel": True}, ["rollout.expert_parallel: true: of mixtures of experts"]),
        ("Qwen2.5-14B", {"moe_backend": "marlin"}, ["rollout.moe_backend: 'marlin': of mixtures of experts"]),
        ("DeepSeek-V3-Base", {"expert_parallel": True}, ["expert_parallel: true spreads experts over the ranks"]),
        ("DeepSeek-V3-Base", {"dp": 3, "expert_parallel": True}, ["tp x dp: 3 ranks of the engine do not divide"]),
        ("DeepSeek-V3-Base", {"dp": 3}, ["do not divide the model's 2048 channels of an expert"]),
    ],
)  # fmt: skip
def test_sizes_that_ranks_do_not_divide_are_refused(name: str, rollout: dict[str, Any], said: list[str]):
    faults = engine_model_faults(cuda(rollout=rollout), model(name))
    assert all(any(part in fault for fault in faults) for part in said)
    if name == "DeepSeek-V3-Base" or "tp" not in rollout:
        assert len(faults) == len(said)
    assert faults == engine_model_faults(cpu(rollout=rollout), model(name))


@pytest.mark.parametrize(
    ("name", "rollout"),
    [
        ("Qwen2.5-Math-1.5B", {"tp": 4}),  # two ranks to a key-value head
        ("Llama-3.3-70B-Instruct", {"tp": 8}),
        ("DeepSeek-V3-Base", {"tp": 8, "dp": 4, "expert_parallel": True}),
        ("DeepSeek-V3-Base", {"tp": 16}),
    ],
)
def test_sizes_that_ranks_divide_pass(name: str, rollout: dict[str, Any]):
    machine = cuda(rollout=rollout, weights={"fp8": name == "DeepSeek-V3-Base"})
    assert engine_model_faults(machine, model(name)) == []


def test_fp8_blocks_come_out_even():
    v3 = cuda(rollout={"tp": 32}, weights={"fp8": True})  # 2048 channels of an expert over 32 ranks: 64 each
    faults = engine_model_faults(v3, model("DeepSeek-V3-Base"))
    assert any(
        "a rank's 64 channels of an expert (moe_intermediate_size) are no multiple of 128" in f for f in faults
    )
    qwen = cuda(rollout={"tp": 1}, weights={"fp8": True})
    assert engine_model_faults(qwen, model("Qwen2.5-14B")) == []
    spec = model("Qwen2.5-14B")
    assert isinstance(spec.attention, Grouped)
    odd = replace(spec, attention=replace(spec.attention, head_dim=72, num_kv_heads=8))
    said = engine_model_faults(cuda(rollout={"tp": 8}, weights={"fp8": True}), odd)
    assert (
        len(said) == 3 and "a rank's 72 channels of its key-value heads" in said[2]
    )  # 13824 / 8 = 1728 = 13.5 blocks


# ---- memory ---------------------------------------------------------------------------------------------------

EXPERT = 3 * 7168 * 2048
LAYERS, EXPERTS = 58, 256
PER_TP = 61 * (1536 * 128 * 192 + 512 * 128 * 256 + 7168 * 128 * 128) + 3 * 3 * 7168 * 18432 + LAYERS * EXPERT
WHOLE = 61 * (7168 * 1536 + 7168 * 576)
UNQUANTISED = 2 * 129280 * 7168
SMALL = LAYERS * (EXPERTS * 7168 + EXPERTS) + 61 * (2 * 7168 + 1536 + 512) + 7168
"""Router, its bias, and the norms: whole on each rank, and never FP8."""


def v3_on(fp8: bool, **rollout: Any) -> Cluster:
    return cuda(
        rollout={"tp": 8, "dp": 4, "expert_parallel": True, **rollout}, weights={"fp8": fp8}, gpu_memory_gib=80.0
    )


@pytest.fixture(scope="module")
def v3() -> ModelSpec:
    spec = model("DeepSeek-V3-Base")
    table = spec.tensors()
    return replace(spec, rows=lambda _: table)


def test_v3_on_32_gpus_by_hand(v3: ModelSpec):
    """A GPU has 8 of a layer's 256 experts, an eighth of attention, and takes all of a layer's experts at a push."""
    found = engine_memory(v3.tensors(), v3, v3_on(False, kv_cache_gib=6.0))
    params = LAYERS * EXPERTS * EXPERT / 32 + (PER_TP + UNQUANTISED) / 8 + WHOLE + SMALL
    assert found.params == pytest.approx(params, rel=1e-12)
    assert found.weights == pytest.approx(2 * params + 2 * LAYERS * EXPERTS, rel=1e-12)  # the routers' bias: fp32
    assert found.received == pytest.approx(2 * EXPERTS * EXPERT * (1 + 1 / 32), rel=1e-12)
    assert round(2 * EXPERTS * EXPERT / 1e9, 1) == 22.5  # a layer's experts in bf16
    assert found.module == "all experts of decoder.layers.3.mlp" and found.cache == 6 * GIB
    assert found.buckets == 2 * GIB and found.total == found.weights + found.cache + found.received + found.buckets
    codes = engine_memory(v3.tensors(), v3, v3_on(True))
    byte = 1 + 4 / 128**2
    projections = LAYERS * EXPERTS * EXPERT / 32 + PER_TP / 8 + WHOLE
    assert codes.weights == pytest.approx(
        byte * projections + 2 * (UNQUANTISED / 8 + SMALL) + 2 * LAYERS * EXPERTS, rel=1e-9
    )
    assert codes.received == pytest.approx(byte * EXPERTS * EXPERT * (1 + 1 / 32), rel=1e-12)


def test_a_push_that_does_not_fit_is_refused_with_what_to_do(v3: ModelSpec):
    """44 GiB of weights and 24 of cache fit 80; the layer that a push holds whole does not."""
    (fault,) = memory_faults(Holds(trainer=False, engine=True), v3_on(False, kv_cache_gib=24.0), v3)
    assert re.search(
        r"on a GPU of the engine .* 43\.7 GiB of weights; keys and values take 24\.0 GiB, and a push, in which vLLM "
        r"keeps all experts of decoder\.layers\.3\.mlp whole beside the rank's new share of it, 23\.7 GiB: 91\.4 GiB",
        fault,
    )
    assert all(
        word in fault for word in ("cluster.weights.fp8", "cluster.rollout.kv_cache_gib", "cluster.rollout.tp")
    )
    assert memory_faults(Holds(trainer=False, engine=True), v3_on(True, kv_cache_gib=24.0), v3) == []
    assert memory_faults(Holds(trainer=False), v3_on(False, kv_cache_gib=24.0), v3) == []


def test_key_value_heads_are_repeated_where_there_are_more_ranks():
    """Qwen2.5-Math-1.5B: 12 query and 2 key-value heads of 128 channels, 1536 wide, 28 layers, tied."""
    spec = model("Qwen2.5-Math-1.5B")
    table = spec.tensors()
    two, four = (engine_memory(table, spec, cuda(rollout={"tp": tp})).params for tp in (2, 4))
    norms = (28 * 2 + 1) * 1536
    keys_and_values = 28 * 2 * 128 * (1536 + 1)  # of one head, with their biases
    assert (two - norms) - 2 * (four - norms) == pytest.approx(-keys_and_values, rel=1e-9)
    assert engine_memory(table, spec, cuda()).module == "embedding.word_embeddings"


def test_what_is_pushed_has_the_trainers_dtype():
    spec = model("Qwen2.5-Math-1.5B")
    wide, usual = (
        engine_memory(spec.tensors(), spec, cuda(trainer={"dtype": dtype, "transformer_engine": "off"})).received
        for dtype in ("fp32", "bf16")
    )
    assert usual == 2 * 2 * 151936 * 1536 and wide == (4 + 2) * 151936 * 1536


def test_messages_on_gloo_are_small_ones():
    spec = model("Qwen2.5-Math-1.5B")
    buckets = [
        engine_memory(spec.tensors(), spec, cuda(weights=weights)).buckets
        for weights in ({}, {"bucket_mib": 16}, {"transport": "gloo"}, {"transport": "gloo", "bucket_mib": 16})
    ]
    assert buckets == [2**31, 2**25, 2**27, 2**25]


def test_an_engine_that_sleeps_has_no_cache_beside_a_push():
    """Of 2.9 GiB of weights, with 38 of cache and messages of 4: 50 at once, and never more than 46 in turns."""
    spec = model("Qwen2.5-Math-1.5B")

    def found(holds: Holds, placement: str) -> list[str]:
        machine = cuda(
            placement=placement, rollout={"kv_cache_gib": 38.0}, gpu_memory_gib=46.0, weights={"bucket_mib": 4096}
        )
        return memory_faults(holds, machine, spec)

    assert found(Holds(engine=True), "colocated") == []
    for holds, placement in ((Holds(engine=True), "disaggregated"), (Holds(trainer=False, engine=True), "colocated")):
        (fault,) = found(holds, placement)
        assert "on a GPU of the engine 1.54B parameters make 2.9 GiB of weights; keys and values take 38.0" in fault


def test_messages_over_gloo_are_said_to_be_smaller_than_they_are_set():
    def told(**weights: Any) -> list[str]:
        return transport_notes(cpu(weights=weights))

    (note,) = told(bucket_mib=9)
    assert note == "cluster.weights.bucket_mib: 9; over gloo messages are of 8 at most"
    assert not told() and not told(bucket_mib=8) and not transport_notes(cuda(weights={"bucket_mib": 9}))
