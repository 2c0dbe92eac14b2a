"""What `check` and `run` refuse alike, in which order, and what they say of what is only not there yet."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from check_and_run import ROOT, answer, both, stop_at_start, write_model
from own_questions import own

from r1mega import cli
from r1mega.config.inputs import default_run_dir, maker_of, makers
from r1mega.families.registry import read_model
from r1mega.preflight import look
from r1mega.rollout.kernels import HEAD_SIZES, kernel_faults
from r1mega.runtime import resources

RL, SFT = ROOT / "configs/tiny/r1_zero/1_rl.toml", ROOT / "configs/tiny/sft/1_qwen2.toml"
BASE, EVAL = ROOT / "configs/tiny/r1_zero/0_base.toml", ROOT / "configs/tiny/r1_zero/2_eval.toml"
QWEN, V3 = ROOT / "configs/tiny/qwen2.json", ROOT / "configs/tiny/deepseek_v3.json"
RL_SETTINGS = (
    "rollout.num_prompts=4", "questions.0.num=60", "evaluation.questions.0.num=10", "prompt.template=r1_zero",
    "batch.chunk_tokens=1024", "sampling.max_new_tokens=64",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_at_start(monkeypatch, tmp_path / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("hf"))


def model(file: Path, out: Path, **changes: object) -> list[str]:
    """Overrides: a model whose weights are not there yet."""
    out.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return [f"model.config={out}", "model.path=/nowhere/hf"]


# ---- the order ------------------------------------------------------------------------------------------------


def test_abilities_come_before_data_and_data_before_weights(tmp_path: Path, capsys):
    (tmp_path / "bad.jsonl").write_text("[\n")
    what = [*model(QWEN, tmp_path / "c.json"), *RL_SETTINGS, own(tmp_path / "bad.jsonl")]
    for overrides, said in (
        ([*what, "optimizer.lr=fast", "cluster.memory_gib=1e-3"], "optimizer.lr"),
        ([*what, "cluster.memory_gib=1e-3"], "before activations"),
        (what, "line 1: not JSON"),
    ):
        checked, ran = both(RL, overrides, tmp_path / "run", capsys)
        assert checked == ran and checked[0] == 2 and said in checked[1]
        assert "/nowhere/hf" not in checked[1]
    (tmp_path / "bad.jsonl").unlink()
    checked, ran = both(RL, what, tmp_path / "run", capsys)
    assert checked[0] == 0 and ran[0] == 2 and "/nowhere/hf is not there yet" in ran[1]


# ---- abilities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (QWEN, {"num_attention_heads": 8, "num_key_value_heads": 2}, "head_dim = 16: vLLM has no attention kernel"),
        (V3, {"qk_nope_head_dim": 16}, "qk_nope_head_dim + qk_rope_head_dim = 48: vLLM has no attention kernel"),
        (V3, {"hidden_size": 144}, "hidden_size = 144: vLLM's experts on a CPU need a multiple of 32"),
    ],
)
@pytest.mark.parametrize("config", [RL, EVAL], ids=["rl", "evaluate"])
def test_a_model_that_the_engine_has_no_kernel_for(config: Path, file: Path, changes, said, tmp_path: Path, capsys):
    settings = RL_SETTINGS if config == RL else ()
    overrides = [*model(file, tmp_path / "c.json", **changes), *settings]
    checked, ran = both(config, overrides, tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2 and said in checked[1]


def test_kernels_are_those_of_the_installed_vllm():
    source = next((Path(p, "vllm") for p in sys.path if Path(p, "vllm/v1").is_dir()), None)
    if source is None:
        pytest.skip("no vLLM here, or a stand-in (tests/without_vllm)")
    sizes = (source / "v1/attention/backends/cpu_attn.py").read_text().split("def get_supported_head_sizes")[1]
    assert f"return {list(HEAD_SIZES)}" in sizes[:200]
    mla = (source / "v1/attention/backends/mla/cpu_mla.py").read_text()
    assert "kv_lora_rank(512)+rope(64)=576" in mla
    experts = (source / "model_executor/layers/fused_moe/experts/cpu_moe.py").read_text()
    assert "output_alignment = 32\n    reduction_alignment = 1" in experts


def test_the_published_latent_attention_has_a_kernel_of_its_own():
    spec = read_model(ROOT / "configs/models/DeepSeek-V3-Base")  # heads of 128 + 64 = 192 channels, and rank 512
    assert kernel_faults(spec) == kernel_faults(read_model(V3)) == kernel_faults(read_model(QWEN)) == []


@pytest.mark.parametrize(
    ("config", "override", "said"),
    [
        (BASE, "tasks.0.name=chain_some", "unknown task 'chain_some' (did you mean 'chain_sum'?)"),
        (RL, "sampling.max_new_tokens=100000", "exceed the model's max_position_embeddings"),
        (RL, "cluster.trainer.tp=3", "tp = 3 does not divide the model's 4 attention heads"),
    ],
)
def test_what_model_and_layout_cannot_do(config: Path, override: str, said: str, tmp_path: Path, capsys):
    overrides = [*(model(V3, tmp_path / "c.json") if config == RL else ()), override]
    checked, ran = both(config, overrides, tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2 and said in checked[1]


def test_gpus_that_are_not_here_are_said_and_refused_at_the_start(monkeypatch, tmp_path: Path, capsys):
    for there, code in ((0, 2), (1, 0)):
        monkeypatch.setattr(look, "num_gpus", lambda there=there: there)
        checked, ran = both(BASE, [], tmp_path / "run", capsys, cluster="gpu1")
        assert checked[0] == 0 and ran[0] == code
        assert ("1 rank(s) take a GPU each, and this machine has 0" in checked[1]) == (not there)


def test_servers_that_find_no_gpu_or_no_vllm_for_it_are_said_and_refused_at_the_start(
    monkeypatch, tmp_path: Path, capsys
):
    """On gpu1 trainer and engine share one; apart, the engine would have a second."""
    named = [*model(V3, tmp_path / "c.json"), *RL_SETTINGS]
    apart = [*named, "cluster.placement=disaggregated", "cluster.gpus_per_node=8"]
    beside = "1 server(s) of tp x dp = 1 rank(s) take a GPU each beside the trainer's 1, and this machine has 1"
    for there, settings, said in (
        (0, named, "1 rank(s) take a GPU each, and this machine has 0"),
        (1, named, "is the one for CPUs; install requirements/gpu-engine.lock"),
        (1, apart, beside),
        (2, apart, "is the one for CPUs; install requirements/gpu-engine.lock"),
    ):
        monkeypatch.setattr(look, "num_gpus", lambda there=there: there)
        checked, ran = both(RL, settings, tmp_path / "run", capsys, cluster="gpu1")
        assert checked[0] == 0 and said in checked[1]
        assert ran[0] == 2 and said in ran[1]
    elsewhere = [*apart, "cluster.rollout.attendants=/x"]
    assert "take a GPU each" not in both(RL, elsewhere, tmp_path / "run", capsys, cluster="gpu1")[0][1]


def test_gpus_are_counted_by_the_driver(monkeypatch):
    def driver(found: int, code: int) -> object:
        def count(pointer) -> int:
            pointer._obj.value = found
            return code

        return lambda name: SimpleNamespace(cuInit=lambda flags: code, cuDeviceGetCount=count)

    for found, code, wanted in ((8, 0, 8), (8, 100, 0)):
        monkeypatch.setattr(resources.ctypes, "CDLL", driver(found, code))
        assert resources.num_gpus() == wanted


# ---- weights --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_there_must_hold_a_model(folder: Path, tmp_path: Path, capsys):
    def answers(change) -> str:
        out = tmp_path / "hf"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder, out)
        change(out)
        checked, ran = both(RL, [f"model.path={out}", *RL_SETTINGS], tmp_path / "run", capsys)
        assert checked == ran
        return checked[1] if checked[0] else ""

    assert answers(lambda out: None) == ""
    gone = answers(lambda out: (out / "model.safetensors").unlink())
    assert "has config.json and no *.safetensors (the weights): a download that has only begun" in gone
    assert "no tokenizer.json" in answers(lambda out: (out / "tokenizer.json").unlink())

    def half(out: Path) -> None:
        index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))

    assert "model-00002-of-00002.safetensors: missing" in answers(half)

    def other(out: Path) -> None:
        fields = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps({**fields, "intermediate_size": fields["intermediate_size"] * 2}))

    assert "the folder and the model do not map one to one" in answers(other)

    def linked(out: Path) -> None:
        (out / "model.safetensors").unlink()
        (out / "model.safetensors").symlink_to("/nowhere/blob")

    assert "model.safetensors: no file, or a broken link" in answers(linked)
    binary = answers(lambda out: (out / "model.safetensors").rename(out / "pytorch_model.bin"))
    assert "has its weights as pytorch_model.bin, and no *.safetensors: other forms are not read" in binary
    torn = answers(lambda out: (out / "model.safetensors").write_bytes(b"\0" * 100))
    assert "cannot be used" in torn


def test_an_evaluation_asks_for_no_more_than_the_engine_does(folder: Path, tmp_path: Path, capsys):
    """A folder without a tensor that the trainer needs: of its files alone."""
    from safetensors.torch import load_file, save_file

    out = tmp_path / "hf"
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, out / "model.safetensors")
    few = [f"model.path={out}", "evaluation.questions.0.num=10", "prompt.template=r1_zero"]
    assert both(EVAL, few, tmp_path / "run", capsys) == ((0, ""), (0, ""))
    checked, _ = both(RL, [f"model.path={out}", *RL_SETTINGS], tmp_path / "run", capsys)
    assert checked[0] == 2 and "model.norm.weight" in checked[1]
    (out / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "model-2.safetensors"}}')
    checked, ran = both(EVAL, few, tmp_path / "run", capsys)
    assert checked == ran and checked[0] == 2 and "model-2.safetensors: missing" in checked[1]


# ---- who makes what is not there yet --------------------------------------------------------------------------


def test_a_runs_folder_names_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "configs/r1").mkdir(parents=True)
    (tmp_path / "configs/r1/2_rl.toml").write_text('# cluster: h800_v3\nstage = "grpo"\n')
    (tmp_path / "configs/r1/demo.toml").write_text("[[stages]]\n")
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs/r1"
    assert maker_of(runs / "2_rl/hf") == "r1mega run configs/r1/2_rl.toml --cluster h800_v3"
    assert maker_of(runs / "2_rl/checkpoints/step_8") == "r1mega run configs/r1/2_rl.toml --cluster h800_v3"
    assert maker_of(runs / "demo/base/hf") == "r1mega pipeline configs/r1/demo.toml"
    for other in (runs / "3_sft/hf", runs, tmp_path / "weights/2_rl/hf", tmp_path / "runs/2_rl"):
        assert maker_of(other) is None, other


def test_a_later_stages_weights_are_never_to_be_downloaded(capsys):
    """Also where no head says who makes them: their place does."""
    others = [ROOT / "runs" / default_run_dir(c).relative_to("runs") / "hf" for c in (BASE, SFT, RL)]
    for path in others:
        code, said = answer(
            lambda path=path: cli.check(RL, "laptop", [f"model.config={V3}", f"model.path={path}", *RL_SETTINGS]),
            capsys,
        )
        assert code == 0 and "made by `r1mega run configs/tiny/" in said and "download" not in said
    config = ROOT / "configs/r1/2_reasoning_rl.toml"
    assert maker_of(ROOT / "runs/r1/1_cold_start/hf") == makers(config)["model.path"]


# ---- chains ---------------------------------------------------------------------------------------------------


def test_a_chain_is_checked_stage_by_stage_with_what_earlier_ones_make(tmp_path: Path, capsys):
    demo = ROOT / "configs/tiny/r1_zero/demo.toml"

    def answers(*overrides: str) -> tuple[int, str]:
        checked = answer(lambda: cli.check(demo, "laptop", list(overrides)), capsys)
        ran = answer(lambda: cli.pipeline(demo, "laptop", tmp_path / "run", list(overrides)), capsys)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert checked == ran
        return checked

    assert answers() == (0, "")  # later stages' weights are the chain's own
    for override, said in (
        ("rl:objective.group_sise=4", "did you mean 'group_size'"),
        ("control_eval:evaluation.questions.0.params={min_tems=3}", "no parameter min_tems"),
        ("rl:cluster.rollout.tp=3", "3 ranks of the engine"),  # of the base's model, which is not there yet
        (f"rl:{own('configs')}", "is a folder"),
        ("no_such=1", "no stage of the pipeline"),
    ):
        code, text = answers(override)
        assert code == 2 and said in text, text
    code, text = answer(lambda: cli.check(demo, "laptop", fact=cli.Fact.SLURM), capsys)
    assert code == 2 and "is a pipeline; ask about one of its stages" in text
