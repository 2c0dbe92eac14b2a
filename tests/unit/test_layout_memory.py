"""Memory by plain arithmetic: hand-worked numbers of published models, and what is refused with the remedy."""

from pathlib import Path

import pytest

from r1mega.config.cluster import Cluster, Precision, TrainerLayout
from r1mega.families.registry import read_model
from r1mega.layout.memory import GIB, num_parameters, rank_memory
from r1mega.recipe import memory
from r1mega.recipe.load import load
from r1mega.recipe.memory import memory_faults, missing_memory

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "configs/models"

LLAMA_70B = 70_553_706_496
"""80 layers: attention 2 x 8192^2 + 2 x 8192 x 1024, MLP 3 x 8192 x 28672, norms 2 x 8192; a norm; embedding, head
2 x 128256 x 8192."""
QWEN_1_5B = 1_543_714_304
"""28 layers: q, o 2 x 1536^2, k, v 2 x 1536 x 256, biases 1536 + 2 x 256, MLP 3 x 1536 x 8960, norms 2 x 1536; norm;
a tied embedding 151936 x 1536."""


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def test_parameters_are_counted_by_hand():
    layer = 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert 80 * layer + 8192 + 2 * 128256 * 8192 == LLAMA_70B
    assert num_parameters(read_model(MODELS / "Llama-3.3-70B-Instruct").tensors()) == LLAMA_70B
    layer = 2 * 1536**2 + 2 * 1536 * 256 + 1536 + 2 * 256 + 3 * 1536 * 8960 + 2 * 1536
    assert 28 * layer + 1536 + 151936 * 1536 == QWEN_1_5B
    assert num_parameters(read_model(MODELS / "Qwen2.5-Math-1.5B").tensors()) == QWEN_1_5B


def test_one_rank_in_fp32_takes_16_bytes_a_parameter():
    spec = read_model(MODELS / "Qwen2.5-Math-1.5B")
    (rank,) = rank_memory(spec.tensors(), spec, TrainerLayout())
    assert (rank.weights, rank.gradients, rank.optimizer) == (4 * QWEN_1_5B, 4 * QWEN_1_5B, 8 * QWEN_1_5B)


@pytest.mark.parametrize(
    ("precision", "distributed", "bytes_each"),
    [
        ({}, True, 2 + 4 + (4 + 4 + 4) / 4),
        ({"gradients": "bf16", "moments": "bf16"}, True, 2 + 2 + (4 + 2 + 2) / 4),
        ({}, False, 2 + 4 + 12),
    ],
)
def test_bf16_keeps_a_main_parameter_and_copies_divide_the_optimiser(precision, distributed, bytes_each):
    spec = read_model(MODELS / "Llama-3.3-70B-Instruct")
    layout = TrainerLayout(dp=4, dtype="bf16", precision=Precision(**precision), distributed_optimizer=distributed)
    (rank,) = rank_memory(spec.tensors(), spec, layout)
    assert rank.total == pytest.approx(bytes_each * LLAMA_70B, rel=1e-12)


def test_tensor_and_pipeline_ranks_divide_a_dense_model():
    """Norms alone are whole on each tensor-parallel rank: 161 of 8192 of them."""
    spec = read_model(MODELS / "Llama-3.3-70B-Instruct")
    ranks = rank_memory(spec.tensors(), spec, TrainerLayout(tp=8, pp=2, dp=4, dtype="bf16"))
    norms = 161 * 8192
    assert sum(rank.params for rank in ranks) == (LLAMA_70B - norms) / 8 + norms
    assert ranks[0].params + 8192 == ranks[1].params  # the final norm


def test_experts_are_divided_by_ep_and_their_optimiser_by_their_own_copies():
    """A V3 layer's experts: 256 x 3 x 7168 x 2048; EP64 leaves 4 of them on a rank, EP32 8 and two copies."""
    spec, expert = read_model(MODELS / "DeepSeek-V3-Base"), 3 * 7168 * 2048
    table = spec.tensors()
    last = {"tp": 8, "pp": 8, "dp": 8, "dtype": "bf16"}
    with_64 = rank_memory(table, spec, TrainerLayout(**last, ep=64, etp=1))
    with_32 = rank_memory(table, spec, TrainerLayout(**last, ep=32, etp=1))
    for a, b in zip(with_64[1:7], with_32[1:7], strict=True):
        layers = round((b.params - a.params) / (4 * expert))
        assert layers in (7, 8) and b.params - a.params == layers * 4 * expert
        assert b.optimizer == a.optimizer  # twice the experts, each copy half of their state


def test_frozen_mtp_layers_are_weights_alone():
    spec = read_model(ROOT / "configs/tiny/deepseek_v3.json")
    table = spec.tensors()
    mtp = num_parameters(table) - num_parameters(table, mtp=False)
    (learning,), (frozen,) = (rank_memory(table, spec, TrainerLayout(), mtp_learns=on) for on in (True, False))
    assert mtp > 0 and learning.weights == frozen.weights
    assert learning.total - frozen.total == 12 * mtp


def faults(config: str, cluster: str, *overrides: str) -> list[str]:
    stage, machine = load(ROOT / "configs" / config, cluster, overrides)
    assert stage.model.config is not None
    return memory_faults(stage.holds(), machine, read_model(stage.model.config))


def test_70b_on_the_1_5b_layout_is_refused_with_the_arithmetic():
    """TP2, DP4: 35.3B parameters a GPU; x (2 + 4 + 12 / 4) bytes is 295.7 GiB."""
    (fault,) = faults("distill/llama_3_3_70b_instruct.toml", "h800_1b5")
    assert "35.3B parameters make 65.7 GiB of weights, 131.4 GiB of gradients, 98.6 GiB of the optimiser's" in fault
    assert "295.7 GiB before activations, and it has 80 GiB (cluster.gpu_memory_gib)" in fault
    assert "cluster.trainer.tp, pp, ep" in fault
    assert faults("distill/llama_3_3_70b_instruct.toml", "h800_70b") == []


def test_671b_on_two_cores_is_refused_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "machine_memory_gib", lambda: 24.0)
    (fault,) = faults("r1/1_cold_start.toml", "laptop")
    assert "parameters in fp32, 4 bytes each, gradients 4, Adam's moments 8: 10,1" in fault
    assert "GiB, before activations, and the machine has 24.0 GiB (this one; cluster.memory_gib" in fault


def test_ranks_and_engine_share_a_machine_and_may_have_several(monkeypatch: pytest.MonkeyPatch):
    """A tiny V3 in RL on two ranks: weights, gradients and reference 12 bytes each, moments 8 on two; MTP frozen."""
    monkeypatch.setattr(memory, "machine_memory_gib", lambda: 1000.0)
    file = ROOT / "configs/tiny/deepseek_v3.json"
    spec = read_model(file)
    every, trunk = num_parameters(spec.tensors()), num_parameters(spec.tensors(), mtp=False)
    rank, engine = (8 * every + 4 * trunk + 8 * trunk / 2) / GIB, 4 * trunk / GIB + 0.5

    def found(gib: float, *more: str) -> tuple[list[str], list[str]]:
        overrides = [f"model.config={file}", f"cluster.memory_gib={gib:.12f}", *more]
        stage, machine = load(ROOT / "configs/tiny/r1_zero/1_rl.toml", "laptop2", overrides)
        return memory_faults(stage.holds(), machine, spec), missing_memory(stage.holds(), machine, spec)

    assert found(2 * rank + engine + 1e-9) == ([], [])
    faults, missing = found(2 * rank + engine - 1e-9)
    assert faults == [] and "2 times a rank's" in missing[0] and "start the ranks on several machines" in missing[0]
    assert found(engine + 1e-9)[0] == []
    for elsewhere in ('launch=["ssh"]', "attendants=/x"):
        assert found(2 * rank + 1e-9, f"cluster.rollout.{elsewhere}") == ([], [])
    (fault,) = found(engine - 1e-9)[0]
    assert "the engine's" in fault and "fp32 and its cache" in fault
    # Each server has the weights and each of its ranks a cache.
    three, ranks = "cluster.rollout.servers=3", "cluster.rollout.dp=2"
    assert found(2 * rank + 3 * engine + 1e-9, three) == ([], [])
    assert "3 times the engine's" in found(2 * rank + 3 * engine - 1e-9, three)[1][0]
    assert found(engine + 0.5 + 1e-9, ranks)[0] == [] and found(engine + 0.5 - 1e-9, ranks)[0] != []


def test_gpus_that_are_named_have_at_most_what_their_kind_has():
    stage, machine = load(ROOT / "configs/distill/llama_3_3_70b_instruct.toml", "h800_1b5")
    spec = read_model(MODELS / "Llama-3.3-70B-Instruct")
    named = Cluster(**{**machine.model_dump(), "gpu_memory_gib": None})
    (fault,) = memory_faults(stage.holds(), named, spec)
    assert "it has 141 GiB (the most that cluster.gpu = 'hopper' has)" in fault
    unknown = Cluster(**{**machine.model_dump(), "gpu_memory_gib": None, "gpu": None})
    assert memory_faults(stage.holds(), unknown, spec) == []
