"""Configs: what is shipped loads; what is wrong is named, with the nearest valid key and the range."""

import json
import re
import subprocess
import sys
import tomllib
import typing
from dataclasses import replace
from pathlib import Path

import pytest
from published import SMOLLM2_135M

from r1mega import cli
from r1mega.config import checks
from r1mega.config.cluster import Cluster, Recompute, TrainerLayout
from r1mega.config.load import MADE_BY, load, load_cluster, load_pipeline, load_stage
from r1mega.config.schema import GRPO, SFT, Conversations, Pretrain, TemplateName
from r1mega.config.training import Batch
from r1mega.data.template import TEMPLATES
from r1mega.errors import ConfigError
from r1mega.families.registry import FAMILIES, check_layout, read_model

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny/r1_zero"
BASE, RL = TINY / "0_base.toml", TINY / "1_rl.toml"


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """An override that points model.path at an existing folder."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    return f"model.path={tmp_path / 'hf'}"


def test_an_engine_is_not_started_from_a_megatron_folder(model: str):
    folder = Path(model.removeprefix("model.path="))
    (folder / ".metadata").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is a Megatron checkpoint.*r1mega convert to-hf"):
        load_stage(RL, [model])


def shipped() -> list[Path]:
    """Every stage config: neither cluster files nor pipelines."""
    files = sorted(f for f in (ROOT / "configs").rglob("*.toml") if f.parent.name != "cluster")
    return [f for f in files if "stages" not in tomllib.loads(f.read_text())]


@pytest.mark.parametrize("file", shipped(), ids=lambda p: str(p.relative_to(ROOT / "configs").with_suffix("")))
def test_every_shipped_config_passes_its_check_on_its_cluster(file: Path, tmp_path: Path):
    """The cluster is the one its head names; weights need not be there, but those of another stage have no config."""
    text = file.read_text()
    own = [line for line in text.splitlines() if MADE_BY not in line]
    assert len(own) <= (63 if "tiny" in file.parts else 60)
    cluster = re.search(r"^# cluster: (\w+)$", text, re.MULTILINE)
    assert cluster or "tiny" in file.parts, "a full-size config names its cluster file"
    section, overrides = tomllib.loads(text)["model"], []
    if "config" not in section:
        name = "qwen2.json" if "dense" in file.parts else "deepseek_v3.json"
        (tmp_path / "config.json").write_text((ROOT / "configs/tiny" / name).read_text())
        overrides = [f"model.path={tmp_path}"]
    cli._load(file, cluster[1] if cluster else "laptop", overrides)


def test_templates_are_those_there_are():
    assert set(typing.get_args(TemplateName)) == set(TEMPLATES)


def test_shipped_pipeline_loads():
    names = [node.name for node in load_pipeline(TINY / "demo.toml").stages]
    assert names == ["base", "anneal", "rl", "control", "control_eval"]


def fault(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_stage(file, overrides)
    return str(error.value)


def test_unknown_key_names_the_nearest_and_all_valid_ones(model: str):
    message = fault(RL, model, "objective.clip_hihg=0.3")
    assert "objective.clip_hihg: unknown key (did you mean 'clip_high'?)" in message
    assert "group_size" in message
    assert str(RL) in message


def test_unknown_key_inside_a_list_of_tables(model: str):
    assert "tasks.0.wieght: unknown key (did you mean 'weight'?)" in fault(RL, model, "tasks.0.wieght=2")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("sampling.temperature=0", "sampling.temperature: input should be greater than or equal to 0.01 (got 0)"),
        ("objective.group_size=1", "objective.group_size"),
        ("objective.std='popular'", "'population', 'sample' or 'none' (got 'popular')"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("rollout.num_minibatches=3", "do not split evenly into 3 mini-batches"),
        ("num_questions=3", "less than one rollout's 32 prompts"),
        ("optimizer.warmup_steps=96", "no step at the full learning rate"),
        ("rewards.format=0", None),
        ("tasks=[]", "tasks"),
        ("tasks.7.name=a", "not an index"),
        ("stage=sff", "did you mean 'sft'?"),
        ('stage=["grpo"]', "is not a stage"),
        ("optimizer.lr=inf", "optimizer.lr"),
        ("sampling.temperature=0.001", "sampling.temperature"),
        ("stage=grop", "did you mean 'grpo'?"),
    ],
)
def test_faults_are_named(model: str, override: str, part: str | None):
    if part is None:  # one reward weight may be 0 ...
        load_stage(RL, [model, override])
        override, part = "rewards.accuracy=0", "nothing to learn"  # ... but not both
        assert part in fault(RL, model, "rewards.format=0", override)
    else:
        assert part in fault(RL, model, override)


def test_all_faults_come_at_once(model: str):
    message = fault(RL, model, "sampling.temperature=0", "objective.group_size=1", "num_stepz=3")
    assert "3 fault(s)" in message


def test_a_pipeline_given_as_a_stage_is_recognised():
    assert "r1mega pipeline" in fault(TINY / "demo.toml")


def test_a_fault_inside_a_list_is_one_fault(model: str):
    assert "1 fault(s)" in fault(RL, model, "tasks.0.weight=-1")


def test_missing_and_malformed_files(tmp_path: Path):
    assert "no such config file" in fault(tmp_path / "no.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("stage = \n")
    assert "not valid TOML" in fault(broken)
    assert "a folder" in fault(tmp_path)


def test_missing_model_folder_is_named(tmp_path: Path):
    assert f"no file {tmp_path}/nowhere/config.json" in fault(RL, f"model.path={tmp_path}/nowhere")


def test_a_model_needs_a_config_or_a_path(tmp_path: Path):
    (tmp_path / "bare.toml").write_text(BASE.read_text().replace('config = "../deepseek_v3.json"', ""))
    assert "give config (an architecture, as a config.json), path" in fault(tmp_path / "bare.toml")
    assert "model.config: no file /nowhere.json" in fault(BASE, "model.config=/nowhere.json")


def test_sampling_on_gpus_is_said_to_be_missing(tmp_path: Path):
    """The config can be checked; the run ends before anything starts."""
    zero = [str(ROOT / "configs/r1_zero/1_rl.toml"), "--cluster", "h800_v3"]
    checked = run_cli("check", *zero)
    assert (checked.returncode, "servers are started on CPUs alone" in checked.stderr) == (0, True)
    (tmp_path / "config.json").write_text((ROOT / "configs/models/DeepSeek-V3-Base/config.json").read_text())
    refused = run_cli("run", *zero, "--set", f"model.path={tmp_path}", "--run-dir", str(tmp_path / "run"))
    assert refused.returncode == 2
    assert "servers are started on CPUs alone" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_dataset_is_a_name_or_a_folder_that_begins_as_a_path_does(tmp_path: Path):
    context = {"folder": str(tmp_path)}
    for written, meant in (("org/name", "org/name"), ("./mine", f"{tmp_path}/mine"), ("/mine", "/mine")):
        assert Conversations.model_validate({"dataset": written}, context=context).dataset == meant


def test_config_and_path_are_architecture_and_weights(tmp_path: Path):
    """Checked before the weights are there, run only with them, and refused where they are another model's."""
    folder = tmp_path / "weights"
    both = [str(BASE), "--set", f"model.path={folder}"]
    early = run_cli("check", *both, "--print", "ranks")
    assert (early.returncode, early.stdout) == (0, "1\n")
    assert f"{folder} is not there yet: download the weights (`hf download" in early.stderr
    refused = run_cli("run", *both, "--run-dir", str(tmp_path / "run"))
    assert refused.returncode == 2
    assert f"{folder} is not there yet" in refused.stderr
    assert not (tmp_path / "run").exists()

    folder.mkdir()
    assert "no file" in run_cli("check", *both).stderr  # a download that has only begun
    hf = json.loads((ROOT / "configs/tiny/deepseek_v3.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf, "hidden_size": 160, "rope_theta": 5e5}))
    other = run_cli("check", *both)
    assert other.returncode == 2
    assert "2 field(s) differ" in other.stderr
    assert "hidden_size: config has 128, the folder 160" in other.stderr
    assert "rope: config has Rope(theta=10000.0" in other.stderr
    (folder / "config.json").write_text(json.dumps({**hf, "torch_dtype": "bfloat16", "transformers_version": "5.0"}))
    same = run_cli("check", *both)
    assert (same.returncode, same.stderr) == (0, "")


def test_a_layout_is_held_against_an_architecture_whose_weights_are_not_there(tmp_path: Path):
    v3 = ["--set", f"model.config={ROOT}/configs/models/DeepSeek-V3-Base/config.json"]
    wrong = run_cli("check", str(BASE), *v3, "--set", f"model.path={tmp_path}/v3", "--set", "cluster.trainer.pp=62")
    assert wrong.returncode == 2
    assert "pp = 62 is more than the model's 61 layers" in wrong.stderr


def test_styles_must_sum_to_one():
    assert "sum to 1.1, they must sum to 1" in fault(BASE, "data.styles={think=0.5,tags=0.2,steps=0.2,plain=0.2}")


def test_relative_paths_count_from_the_file_and_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    base = load_stage(BASE)
    assert isinstance(base, Pretrain)
    assert base.model.config == TINY.parent / "deepseek_v3.json"
    monkeypatch.chdir(tmp_path)
    rl = load_stage(RL, ["model.path=hf"])
    assert isinstance(rl, GRPO)
    assert rl.model.path == tmp_path / "hf"
    sft = load_stage(TINY.parent / "sft/1_qwen2.toml", ["model.path=hf", "data.files=['a.jsonl', '/b.jsonl']"])
    assert isinstance(sft, SFT)
    assert sft.data.files == (tmp_path / "a.jsonl", Path("/b.jsonl"))


@pytest.mark.parametrize("override", ["num_steps", "=3", "num_steps.x=3"])
def test_malformed_overrides(model: str, override: str):
    assert f"--set {override}" in fault(RL, model, override)


def test_unknown_cluster_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"did you mean 'laptop'"):
        load_cluster("lapdog")


def test_a_layout_is_part_of_the_check():
    with pytest.raises(ConfigError, match="context parallelism"):
        load(BASE, "laptop", ["cluster.trainer.cp=2"])


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "r1mega.cli", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_check_leaves_with_0_or_2_and_one_message():
    good = run_cli("check", str(BASE))
    assert (good.returncode, good.stderr) == (0, "")
    bad = run_cli("check", str(BASE), "--set", "num_step=3")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert "did you mean 'num_steps'?" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_check_imports_no_torch_and_no_engine():
    code = (
        "import sys, r1mega.cli as c; c.load(c.Path('configs/tiny/r1_zero/0_base.toml'), 'laptop');"
        "print(sorted({'torch', 'transformers', 'numpy', 'vllm', 'megatron'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["tasks.0.name=chain_some"], "unknown task 'chain_some'"),
        (["save.every_steps=4", "save.keep_every=6"], "save.keep_every: 6 is no multiple of save.every_steps = 4"),
        (["cluster.trainer.ep=2"], "2 does not divide the tp x dp = 1 ranks"),
        (["cluster.trainer.pp=4"], "pp = 4 is more than the model's 3 layers"),
        (["model.config=/etc/passwd"], "/etc/passwd: not JSON"),
    ],
)
def test_check_says_what_run_would_refuse(overrides: list[str], part: str):
    done = run_cli("check", str(BASE), *(p for o in overrides for p in ("--set", o)))
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cp": 2}, "context parallelism needs Transformer Engine"),
        ({"tp": 2, "sp": False}, "sp = true only"),
        ({"ep": 3, "dp": 2}, "3 does not divide the tp x dp = 2 ranks"),
        ({"tp": 2, "etp": 1}, "leave etp out"),
        ({"dtype": "bf16"}, "in fp32 only"),
        ({"precision": {"moments": "bf16"}}, "precision.moments: 'bf16'; the CPU trains in fp32 only"),
        ({"precision": {"gradients": "bf16"}}, "precision.gradients: 'bf16'"),
        ({"precision": {"fp8": "blockwise"}}, "needs Transformer Engine"),
        ({"precision": {"bf16_layers_at_end": 1}}, "of no meaning without fp8"),
        ({"offload_optimizer": True}, "in host memory"),
        ({"dp": 2, "ep": 2, "dispatcher": "flex"}, 'CUDA kernels; on the CPU set "alltoall"'),
        ({"vpp": 2}, "2 with pp = 1: chunks are interleaved between pipeline ranks; set pp"),
        ({"pp": 2, "pipeline": "Et|tt|tL"}, "3 stages, but pp 2 x vpp 1 makes 2"),
        ({"pp": 2, "pipeline": "Et|xL"}, "'x' is none of E (embedding)"),
        ({"pp": 2, "pipeline": "t|EtL"}, "E, the embedding, must stand once, and first"),
        ({"pp": 2, "pipeline": "EtL|t"}, "L, the head, must stand once, and last"),
        ({"pp": 2, "pipeline": "Et|mtL"}, "t after m"),
        ({"pp": 3, "pipeline": "Et|tm|mL"}, "m in several stages"),
        ({"pp": 2, "vpp": 2, "pipeline": "Et|tm||L"}, "m outside its rank's last chunk"),
        ({"pp": 2, "vpp": 2, "pipeline": "Et|t|m|L"}, "m on the first pipeline rank"),
        ({"recompute": {"granularity": "selective"}}, 'say what "selective" computes again'),
        ({"recompute": {"granularity": "full", "modules": ["moe"]}}, "'full' does not look at them"),
        (
            {"recompute": {"granularity": "selective", "modules": ["moe_act"]}},
            "'moe_act' is of Transformer Engine's experts",
        ),
    ],
)
def test_layouts_that_would_train_wrongly_are_refused(layout: dict, message: str):
    faults = checks.layout_faults(Cluster(device="cpu", trainer=TrainerLayout(**layout)))
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize(
    "layout",
    [
        {"tp": 2},
        {"dp": 2},
        {"dp": 2, "distributed_optimizer": False},
        {"dp": 2, "ep": 2, "dispatcher": "allgather"},
        {"tp": 2, "ep": 2},
        {"tp": 2, "dp": 2, "ep": 2, "etp": 2},
        {"pp": 2},
        {"pp": 2, "vpp": 2, "pipeline": "E t*3 | (t|)*2 mL"},
        {"pp": 16, "vpp": 2, "pipeline": "Et*3|(tt|)*29m|L"},
        {"recompute": {"granularity": "selective", "modules": ["core_attn", "layernorm", "mlp"]}},
        {"recompute": {"granularity": "full", "method": "block", "num_layers": 2}},
    ],
)
def test_layouts_of_every_kind_are_accepted(layout: dict):
    assert checks.layout_faults(Cluster(device="cpu", trainer=TrainerLayout(**layout))) == []


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"cp": 2, "dtype": "bf16"}, ""),
        ({"dtype": "bf16", "precision": {"fp8": "blockwise", "moments": "bf16"}, "offload_optimizer": True}, ""),
        ({"cp": 2, "transformer_engine": "off"}, "context parallelism needs Transformer Engine"),
        ({"precision": {"fp8": "blockwise"}}, "needs dtype bf16, not 'fp32'"),
        ({"dtype": "bf16", "precision": {"fp8": "mxfp8"}, "transformer_engine": "off"}, "needs Transformer Engine"),
        ({"precision": {"gradients": "bf16"}, "transformer_engine": "off"}, "round away"),
        ({}, "'fp32', for which Transformer Engine has no attention over packed rows"),
        ({"dtype": "bf16", "dispatcher": "flex"}, "ep x etp is 1"),
        ({"dtype": "bf16", "dispatcher": "flex", "dp": 2, "ep": 2}, ""),
    ],
)
def test_what_is_asked_of_a_gpu_is_held_against_itself(layout: dict, message: str):
    faults = checks.layout_faults(Cluster(device="cuda", trainer=TrainerLayout(**layout)))
    assert any(message in fault for fault in faults) if message else faults == [], faults


def test_a_recipe_is_held_against_the_gpus_that_are_named():
    layout = TrainerLayout(dtype="bf16", precision={"fp8": "mxfp8"})  # type: ignore[arg-type]
    (fault,) = checks.layout_faults(Cluster(device="cuda", gpu="hopper", trainer=layout))
    assert "'mxfp8' needs Blackwell" in fault
    assert checks.layout_faults(Cluster(device="cuda", gpu="blackwell", trainer=layout)) == []


@pytest.mark.parametrize("gpu", typing.get_args(typing.get_args(Cluster.model_fields["gpu"].annotation)[0]))
def test_layers_on_packed_rows_are_held_against_the_gpus_that_are_named(gpu: str):
    """cuDNN has them for compute capabilities 9.0 and 10.x (Transformer Engine 2.11, fused_attn.cpp)."""
    layout = TrainerLayout(dtype="bf16")
    faults = checks.layout_faults(Cluster(device="cuda", gpu=gpu, trainer=layout))  # type: ignore[arg-type]
    if gpu in ("hopper", "blackwell"):
        assert faults == []
    else:
        (fault,) = faults
        assert f"cluster.gpu: '{gpu}'" in fault
        assert 'trainer.transformer_engine = "off"' in fault
    plain = layout.model_copy(update={"transformer_engine": "off"})
    assert checks.layout_faults(Cluster(device="cuda", gpu=gpu, trainer=plain)) == []  # type: ignore[arg-type]


def test_a_repeat_that_no_model_has_is_refused():
    layout = TrainerLayout(pp=2, pipeline="Ett|(tt)*99999999999|L")
    (fault,) = checks.layout_faults(Cluster(device="cpu", trainer=layout))
    assert "makes more than 10,000 letters" in fault


def test_a_chat_template_must_be_there():
    sft = TINY.parent / "sft/1_qwen2.toml"
    assert "chat_template: no file" in fault(sft, "model.path=/x", "chat_template=nope.jinja")


def test_bf16_layers_are_a_pipeline_ranks_at_most():
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    precision = {"fp8": "blockwise", "bf16_layers_at_start": spec.num_layers // 2 + 1}
    layout = TrainerLayout(pp=2, dtype="bf16", precision=precision)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Megatron takes no more than a pipeline rank's 1 layers"):
        check_layout(spec, layout, Batch(chunk_tokens=256))


def test_chunks_divide_into_blocks_and_tiles():
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    with pytest.raises(ConfigError, match=r"256 does not divide into the 2 x cp x tp = 24 blocks"):
        check_layout(spec, TrainerLayout(cp=6, tp=2), Batch(chunk_tokens=256))
    fp8 = TrainerLayout(tp=4, dtype="bf16", precision={"fp8": "blockwise"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\(cp x tp = 4\) no whole number of FP8 tiles of 128 tokens"):
        check_layout(spec, fp8, Batch(chunk_tokens=256))
    check_layout(spec, fp8, Batch(chunk_tokens=512))


def test_a_layout_that_does_not_divide_the_model_is_refused_with_every_size():
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    with pytest.raises(ConfigError, match=r"(?s)pp = 4 is more than the model's 3 layers"):
        check_layout(spec, TrainerLayout(pp=4), Batch(chunk_tokens=256))
    with pytest.raises(ConfigError, match=r"(?s)4 fault.*tp = 3 .*4 attention heads.*ep = 3 .*8 experts") as raised:
        check_layout(spec, TrainerLayout(tp=3, ep=3), Batch(chunk_tokens=258))
    assert "tokens of a chunk" not in str(raised.value)
    check_layout(spec, TrainerLayout(tp=2, ep=2), Batch(chunk_tokens=256))
    check_layout(spec, TrainerLayout(pp=2), Batch(chunk_tokens=256))  # 2 layers and 1
    block = TrainerLayout(recompute={"granularity": "full", "method": "block"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="block' with a mixture of experts"):
        check_layout(spec, block, Batch(chunk_tokens=256))
    check_layout(read_model(Path("configs/tiny/qwen2.json")), block, Batch(chunk_tokens=256))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"pp": 2, "vpp": 2}, r"vpp = 2 x pp = 2 does not divide the model's 3 layers .*: say in .*pipeline"),
        ({"pp": 2, "pipeline": "Ett|ttmL"}, r"has 4 t, the model 3 layers"),
        ({"pp": 2, "pipeline": "Ett|tL"}, r"has 0 m, the model 1 MTP layers"),
    ],
)
def test_a_pipeline_that_is_not_the_models_is_refused(layout: dict, message: str):
    spec = read_model(Path("configs/tiny/deepseek_v3.json"))
    with pytest.raises(ConfigError, match=message):
        check_layout(spec, TrainerLayout(**layout), Batch(chunk_tokens=256))
    check_layout(spec, TrainerLayout(pp=2, vpp=2, pipeline="Et|t||tmL"), Batch(chunk_tokens=256))
    tied = replace(spec, tied=True)
    with pytest.raises(ConfigError, match=r"head is its embedding .* m belongs into L's stage"):
        check_layout(tied, TrainerLayout(pp=3, pipeline="Ettt|m|L"), Batch(chunk_tokens=256))


def test_what_a_model_does_not_have_cannot_be_set():
    spec, batch = FAMILIES["llama"](SMOLLM2_135M), Batch(chunk_tokens=256)
    with pytest.raises(ConfigError, match=r"dispatcher = 'alltoall', but the model has no experts"):
        check_layout(spec, TrainerLayout(dispatcher="alltoall"), batch)
    for module in ("moe", "shared_experts"):
        recompute = Recompute(granularity="selective", modules=(module,))
        with pytest.raises(ConfigError, match=f"the model has no part '{module}'"):
            check_layout(spec, TrainerLayout(recompute=recompute), batch)


def test_a_dense_model_is_held_to_its_key_value_heads_and_ids():
    spec = FAMILIES["llama"](SMOLLM2_135M)
    check_layout(spec, TrainerLayout(tp=3, pp=7, dp=2), Batch(chunk_tokens=255))
    with pytest.raises(ConfigError, match=r"(?s)tp = 9 does not divide .*3 key-value heads .* divisors of 3"):
        check_layout(spec, TrainerLayout(tp=9), Batch(chunk_tokens=9 * 64))
    with pytest.raises(ConfigError, match=r"ep = 2, but the model has no experts"):
        check_layout(spec, TrainerLayout(dp=2, ep=2), Batch(chunk_tokens=256))
    few = spec.with_vocab(4, bos=0, eos=1, pad=2)
    with pytest.raises(ConfigError, match=r"tp = 3 leaves ranks without any of the 4 ids"):
        check_layout(few, TrainerLayout(tp=3), Batch(chunk_tokens=255))
