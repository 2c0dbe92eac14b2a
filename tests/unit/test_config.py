"""Configs: what is shipped loads; what is wrong is named, with the nearest valid key and the range."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from r1mega import cli
from r1mega.config.load import load_cluster
from r1mega.data.settings import Conversations
from r1mega.errors import ConfigError
from r1mega.pipeline.graph import load_pipeline
from r1mega.preflight import verdicts
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load, load_recipe
from r1mega.recipe.pretrain import Pretrain
from r1mega.recipe.sft import SFT

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny/r1_zero"
BASE, RL = TINY / "0_base.toml", TINY / "1_rl.toml"


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(verdicts, "cache_dir", lambda: tmp_path / "cache")


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
        load_recipe(RL, [model])


def test_shipped_pipeline_loads():
    names = [node.name for node in load_pipeline(TINY / "demo.toml").stages]
    assert names == ["base", "anneal", "rl", "control", "control_eval"]


def fault(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_recipe(file, overrides)
    return str(error.value)


def test_unknown_key_names_the_nearest_and_all_valid_ones(model: str):
    message = fault(RL, model, "objective.clip_hihg=0.3")
    assert "objective.clip_hihg: unknown key (did you mean 'clip_high'?)" in message
    assert "group_size" in message
    assert str(RL) in message


def test_unknown_key_inside_a_list_of_tables(model: str):
    assert "questions.0.wieght: unknown key (did you mean 'weight'?)" in fault(RL, model, "questions.0.wieght=2")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("sampling.temperature=0", "sampling.temperature: input should be greater than or equal to 0.01 (got 0)"),
        ("objective.group_size=1", "objective.group_size"),
        ("objective.std='popular'", "'population', 'sample' or 'none' (got 'popular')"),
        ("optimizer.lr=fast", "optimizer.lr"),
        ("rollout.num_minibatches=3", "do not split evenly into 3 mini-batches"),
        ("questions.0.num=3", "less than one rollout's 32 prompts"),
        ("optimizer.warmup_steps=96", "no step at the full learning rate"),
        ("rewards.format=0", None),
        ("rewards.acuracy=1", "rewards: there is no reward 'acuracy' (did you mean 'accuracy'?)"),
        (
            "rewards.accuracy={wieght=1}",
            "rewards.accuracy.wieght: unknown key (did you mean 'weight'?)",
        ),
        (
            "rewards.prose={kind='format',weight=-1}",
            "rewards.prose.weight: input should be greater than",
        ),
        ("questions=[{kind='jsonl',verifier='math'}]", "questions.0.path: missing"),
        (
            "questions=[{kind='jsonl',path='a',verifier='math',domian='code'}]",
            "questions.0.domian: unknown key",
        ),
        ("questions=[]", "questions: tuple should have at least 1 item"),
        ("questions.7.family=a", "not an index"),
        (
            "questions.0.family=chain_som",
            "questions.0.family: unknown family 'chain_som' (did you mean 'chain_sum'?)",
        ),
        ("questions.0.target_language=eng", "questions.0.target_language: 'eng' is no language's ISO 639-1 code"),
        ("evaluation.questions.0.weight=2", "evaluation.questions.0.weight: an evaluation asks each"),
        (
            "questions=[{kind='jsonl',path='a',verifier='maths'}]",
            "questions.0.verifier: unknown verifier 'maths' (did you mean 'math'?)",
        ),
        ("stage=sff", "did you mean 'sft'?"),
        ('stage=["grpo"]', "is not a stage"),
        ("optimizer.lr=inf", "optimizer.lr"),
        ("sampling.temperature=0.001", "sampling.temperature"),
        ("stage=grop", "did you mean 'grpo'?"),
    ],
)
def test_faults_are_named(model: str, override: str, part: str | None):
    if part is None:  # one reward weight may be 0 ...
        load_recipe(RL, [model, override])
        override, part = "rewards.accuracy=0", "nothing to learn"  # ... but not both
        assert part in fault(RL, model, "rewards.format=0", override)
    else:
        assert part in fault(RL, model, override)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.path=", "model.path: is empty: give a value, or leave the setting out"),
        ("questions=''", "questions: is empty"),
        ("wandb.project='  '", "wandb.project: is empty"),
        ("questions.0.params={min_terms=''}", "questions.0.params.min_terms: is empty"),
        ("prompt.template=''", "prompt.template: is empty"),
        ("num_steps=true", "num_steps: should be a number, written without quotes (got True)"),
        ("num_steps=false", "num_steps: should be a number"),
        ("num_steps='8'", "num_steps: should be a number, written without quotes (got '8')"),
        ("optimizer.lr=true", "optimizer.lr: should be a number"),
        ("save.asynchronous=0", "save.asynchronous: should be true or false (got 0)"),
        ("sampling.stop='</answer>'", "sampling.stop: should be a list: write [...] around it (got '</answer>')"),
        ("save.asynchronous=no", "save.asynchronous: should be true or false (got 'no')"),
        ("sampling.max_new_tokens=0", "sampling.max_new_tokens: input should be greater than 0 (got 0)"),
        ("objective.kl_estimator=k1", "does not depend on the reference, so it would hold nothing near it; k2 has"),
        ("stage=false", "stage = False is not a stage"),
        ("stage=''", "stage = '' is not a stage"),
        ("evaluation={}", "evaluation.every_steps: missing"),
        ("questions=false", "questions: should be tables, [[questions]], a source each"),
    ],
)
def test_what_is_falsy_is_given_and_no_kind_is_read_as_another(model: str, override: str, part: str):
    assert part in fault(RL, model, override)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data={files=[],max_tokens=96}", "data: give files (JSONL or parquet), or dataset"),
        ("data.dataset=''", "data.dataset: is empty"),
        ("validation={share=0.0,every_steps=4}", "validation: give files or dataset"),
        ("validation=false", "validation: input should be a valid"),
        ("chat_template=''", "chat_template: is empty"),
    ],
)
def test_the_same_of_conversations(model: str, override: str, part: str):
    assert part in fault(TINY.parent / "sft/1_qwen2.toml", model, override)


def test_the_same_of_a_cluster_file_and_a_pipeline(tmp_path: Path):
    for override, part in (
        ("trainer.pipeline=''", "trainer.pipeline: is empty"),
        ("trainer.sp=1", "trainer.sp: should be true or false"),
        ("trainer.etp=0", "trainer.etp: input should be greater than 0"),
        ("rollout.launch=['']", "rollout.launch.0: is empty"),
        ("gpu_memory_gib=0", "gpu_memory_gib: input should be greater than 0"),
    ):
        with pytest.raises(ConfigError) as raised:
            load_cluster("laptop", [override])
        assert part in str(raised.value)
    chain = tmp_path / "chain.toml"
    chain.write_text(f'[[stages]]\nname = "a"\nconfig = "{BASE}"\nstart = ""\n')
    with pytest.raises(ConfigError, match=r"stages\.0\.start: is empty"):
        load_pipeline(chain)


def test_all_faults_come_at_once(model: str):
    message = fault(RL, model, "sampling.temperature=0", "objective.group_size=1", "num_stepz=3")
    assert "3 fault(s)" in message


def test_a_pipeline_given_as_a_stage_is_recognised():
    assert "r1mega pipeline" in fault(TINY / "demo.toml")


def test_a_fault_inside_a_list_is_one_fault(model: str):
    assert "1 fault(s)" in fault(RL, model, "questions.0.weight=-1")


def test_missing_and_malformed_files(tmp_path: Path):
    assert "no such config file" in fault(tmp_path / "no.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("stage = \n")
    assert "not valid TOML" in fault(broken)
    assert "a folder" in fault(tmp_path)


def test_a_folder_without_a_config_is_no_models(tmp_path: Path):
    assert f"no file {tmp_path}/config.json" in fault(RL, f"model.path={tmp_path}")
    load_recipe(RL, [f"model.path={tmp_path}/nowhere"])  # not there yet: `r1mega.preflight` says so


def test_a_model_needs_a_config_or_a_path(tmp_path: Path):
    (tmp_path / "bare.toml").write_text(BASE.read_text().replace('config = "../deepseek_v3.json"', ""))
    assert "give config (an architecture, as a config.json), path" in fault(tmp_path / "bare.toml")
    assert "model.config: no file /nowhere.json" in fault(BASE, "model.config=/nowhere.json")


def test_a_dataset_is_a_name_or_a_folder_that_begins_as_a_path_does(tmp_path: Path):
    context = {"folder": str(tmp_path)}
    for written, meant in (("org/name", "org/name"), ("./mine", f"{tmp_path}/mine"), ("/mine", "/mine")):
        assert Conversations.model_validate({"dataset": written}, context=context).dataset == meant


def test_config_and_path_are_architecture_and_weights(run_cli, tmp_path: Path):
    """Checked before the weights are there, run only with them, and refused where they are another model's."""
    folder = tmp_path / "weights"
    both = [str(BASE), "--set", f"model.path={folder}"]
    early = run_cli("check", *both, "--print", "slurm")
    assert (early.returncode, early.stdout) == (0, "--nodes=1 --ntasks-per-node=1 --cpus-per-task=2\n")
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
    same = run_cli("check", *both)  # the same model, and none of its weights
    assert same.returncode == 2
    assert "has config.json and no *.safetensors (the weights), no tokenizer_config.json: a dow" in same.stderr


def test_a_layout_is_held_against_an_architecture_whose_weights_are_not_there(run_cli, tmp_path: Path):
    v3 = ["--set", f"model.config={ROOT}/configs/models/DeepSeek-V3-Base/config.json"]
    wrong = run_cli("check", str(BASE), *v3, "--set", f"model.path={tmp_path}/v3", "--set", "cluster.trainer.pp=62")
    assert wrong.returncode == 2
    assert "pp = 62 is more than the model's 61 layers" in wrong.stderr


def test_styles_must_sum_to_one():
    assert "sum to 1.1, they must sum to 1" in fault(BASE, "data.styles={think=0.5,tags=0.2,steps=0.2,plain=0.2}")


def test_relative_paths_count_from_the_file_and_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    base = load_recipe(BASE)
    assert isinstance(base, Pretrain)
    assert base.model.config == TINY.parent / "deepseek_v3.json"
    monkeypatch.chdir(tmp_path)
    rl = load_recipe(RL, ["model.path=hf"])
    assert isinstance(rl, GRPO)
    assert rl.model.path == tmp_path / "hf"
    sft = load_recipe(TINY.parent / "sft/1_qwen2.toml", ["model.path=hf", "data.files=['a.jsonl', '/b.jsonl']"])
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


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, in this process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["r1mega", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code if isinstance(code, int) else 0, said.out, said.err)

    return run


def test_check_leaves_with_0_or_2_and_one_message(run_cli):
    good = run_cli("check", str(BASE))
    assert (good.returncode, good.stderr) == (0, "")
    bad = run_cli("check", str(BASE), "--set", "num_step=3")
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert "did you mean 'num_steps'?" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_check_imports_no_torch_and_no_engine():
    code = (
        "import sys, r1mega.cli as c; c.check(c.Path('configs/distill/qwen2_5_14b.toml'), 'h800_14b');"
        "print(sorted({'torch', 'transformers', 'numpy', 'vllm', 'megatron', 'reasoning_gym'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


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
def test_check_says_what_run_would_refuse(run_cli, overrides: list[str], part: str):
    done = run_cli("check", str(BASE), *(p for o in overrides for p in ("--set", o)))
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_chat_template_must_be_there():
    sft = TINY.parent / "sft/1_qwen2.toml"
    assert "chat_template: no file" in fault(sft, "model.path=/x", "chat_template=nope.jinja")
