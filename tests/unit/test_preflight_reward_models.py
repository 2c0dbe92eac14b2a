"""What `check` and `run` say of a reward model before anything starts, and whose it is when a run resumes."""

import json
from pathlib import Path

import pytest
from check_and_run import ROOT, answer, both, stop_at_start, write_model
from own_questions import TRAINED, write
from reward_models import write_reward_model

from r1mega import cli
from r1mega.config.cluster import Cluster, TrainerLayout
from r1mega.errors import RunDirError
from r1mega.families.registry import read_model
from r1mega.layout.memory import GIB, num_parameters
from r1mega.recipe import reward_models
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe
from r1mega.recipe.memory import memory_faults, missing_memory
from r1mega.runtime.run_dir import RunDir

RL = ROOT / "configs/tiny/r1_zero/1_rl.toml"
NOT_THERE = "model.config=configs/tiny/qwen2.json", "model.path=/nowhere/hf", "objective.truncated=judge"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stop_at_start(monkeypatch, tmp_path / "verdicts")


def reward(path: Path | str, name: str = "helpful", **settings: str) -> str:
    table = {"kind": "reward_model", "path": str(path), "scope": "summary", **settings}
    return f"rewards.{name}={{" + ",".join(f"{key}='{value}'" for key, value in table.items()) + "}"


def said(capsys: pytest.CaptureFixture[str], *overrides: str, cluster: str = "laptop") -> tuple[int, str]:
    return answer(lambda: cli.check(RL, cluster, [*NOT_THERE, *overrides]), capsys)


def test_a_reward_model_is_in_order(tmp_path: Path, capsys):
    folder = write_reward_model(tmp_path / "rm")
    code, notes = said(capsys, reward(folder))
    assert code == 0 and "model.path" in notes and "rewards" not in notes


def test_a_reward_model_that_nothing_is_asked_of_is_noted(tmp_path: Path, capsys):
    table = reward(write_reward_model(tmp_path / "rm")).removesuffix("}") + ",domains=['code']}"
    code, notes = said(capsys, table)
    assert code == 0 and 'note: rewards.helpful: is asked of nothing: it is for domains = ["code"]' in notes


def test_what_cannot_score_is_refused(tmp_path: Path, capsys):
    for what, folder, message in (
        ("language model", write_model(tmp_path / "lm"), "lm is a language model, which writes text and gives no"),
        ("empty", tmp_path / "empty", f"rewards.helpful.path: no file {tmp_path}/empty/config.json"),
        ("two labels", write_reward_model(tmp_path / "two"), "with 2 labels"),
        ("no template", write_reward_model(tmp_path / "bare"), "bare has no chat template, in which a reward model"),
        ("bad template", write_reward_model(tmp_path / "bad", template="{{ messages[0].content }}"),
         "does not write every turn"),
        ("no weights", write_reward_model(tmp_path / "gone"), "gone has config.json and no *.safetensors"),
        ("torn", write_reward_model(tmp_path / "torn"), "score.weight"),
        ("no words", write_reward_model(tmp_path / "dumb"), "dumb reads the same tokens whatever is said: its"),
    ):  # fmt: skip
        if what == "empty":
            folder.mkdir()
        if what == "two labels":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
        if what == "no template":
            (folder / "chat_template.jinja").unlink()
        if what == "no words":  # of which transformers makes a tokenizer without a vocabulary
            (folder / "tokenizer.json").unlink()
        if what == "no weights":
            (folder / "model.safetensors").unlink()
        if what == "torn":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 256}))
        overrides = [*NOT_THERE, reward(folder)]
        checked, ran = both(RL, overrides, tmp_path / "run", capsys)
        assert checked == ran and checked[0] == 2, what
        assert message in checked[1] and "rewards.helpful.path: " in checked[1], (what, checked)


def test_settings_that_an_answer_would_do_well_to_use_are_refused(tmp_path: Path, capsys):
    folder = write_reward_model(tmp_path / "rm")
    code, message = said(capsys, reward(folder), "objective.truncated=zero")
    assert code == 2 and "rewards.helpful: with objective.truncated = zero an answer that is cut scores 0" in message
    squashed = reward(folder, squash="sigmoid")
    assert said(capsys, squashed, "objective.truncated=zero")[0] == 0
    below = squashed.removesuffix("}") + ",missing=-0.5}"
    assert said(capsys, below)[0] == 0  # a cut answer is judged as any other
    code, message = said(capsys, below, "objective.truncated=zero")
    assert code == 2 and "rewards.helpful.missing: -0.5, and with objective.truncated = zero an answer" in message
    few = write_reward_model(tmp_path / "few", max_position_embeddings=64)
    code, message = said(capsys, reward(few))
    assert code == 2 and "few has 64 positions" in message and "sampling.max_new_tokens = 64 tokens" in message
    assert said(capsys, reward(few), "sampling.max_new_tokens=32")[0] == 0


def test_what_an_answer_without_a_score_is_worth_is_refused_in_one_line(tmp_path: Path, capsys):
    table = reward(write_reward_model(tmp_path / "rm")).removesuffix("}")
    for wrong in ("'least'", "true", "nan", "[1]"):
        code, message = said(capsys, f"{table},missing={wrong}}}")
        assert (
            code == 2 and '1 fault(s)\n  rewards.helpful.missing: should be a finite number, or "lowest"' in message
        )


def test_a_folder_that_is_not_there_yet_says_who_makes_it(tmp_path: Path, capsys):
    checked, ran = both(RL, [*NOT_THERE, reward("/nowhere/helpful")], tmp_path / "run", capsys)
    line = "rewards.helpful.path: /nowhere/helpful: not there yet; put it there, or name another with --set"
    assert checked[0] == 0 and line in checked[1] and ran[0] == 2 and line in ran[1]
    # In a run directory of a config: that run makes it.
    made = ROOT / "runs/tiny/dense/0_base/hf_of_nobody"
    assert "not there yet; made by `r1mega run configs/tiny/dense/0_base.toml`" in said(capsys, reward(made))[1]


def test_the_questions_are_read_though_the_reward_model_is_not_there(tmp_path: Path, capsys):
    broken = write(tmp_path / "own.jsonl", {"question": TRAINED[0], "truht": "3"})
    table = f"questions=[{{kind='jsonl',path='{broken}',verifier='math'}}]"
    code, message = said(
        capsys, reward("/nowhere/helpful"), table, "rollout.num_prompts=1", "rollout.num_minibatches=1"
    )
    assert code == 2 and "no column 'truth'" in message


def test_the_layout_must_hold_it(tmp_path: Path):
    folder = write_reward_model(tmp_path / "rm", num_attention_heads=3, num_key_value_heads=3, hidden_size=96)
    stage = load_recipe(RL, [*NOT_THERE, reward(folder)])
    assert isinstance(stage, GRPO)
    machine = Cluster(device="cpu", trainer=TrainerLayout(tp=2))
    faults = [f for f in stage.faults_on(machine, None) if "rewards" in f]
    assert faults == [
        "rewards.helpful.path: cluster.trainer.tp = 2 does not divide the model's 3 attention heads "
        "(num_attention_heads)",
        "rewards.helpful.path: cluster.trainer.tp = 2 does not divide the model's 3 key-value heads "
        "(num_key_value_heads), and a rank holds whole ones: choose tp among the divisors of 3",
    ]
    assert not [f for f in stage.faults_on(Cluster(device="cpu"), None) if "rewards" in f]


def test_memory_counts_one_more_models_weights_once(tmp_path: Path):
    first, second = (write_reward_model(tmp_path / name, seed=i) for i, name in enumerate("ab"))
    spec = read_model(first)
    weights = 4 * num_parameters(spec.tensors())
    policy = read_model(ROOT / "configs/tiny/qwen2.json")

    def needs(*rewards: str, dp: int = 1) -> float:
        """GiB at which a machine begins to be too small, to a millionth."""
        stage = load_recipe(RL, [*NOT_THERE, *rewards])
        low, high = 0.0, 64.0
        while high - low > 1e-7:
            gib = (low + high) / 2
            machine = Cluster(device="cpu", memory_gib=gib, trainer=TrainerLayout(dp=dp))
            low, high = (gib, high) if missing_memory(stage.holds(), machine, policy) else (low, gib)
        return high

    plain = needs()
    assert (needs(reward(first)) - plain) * GIB == pytest.approx(weights, rel=1e-3)
    # Two rewards of one folder share it, two folders do not; every data-parallel rank has its own.
    assert needs(reward(first), reward(first, "harmless")) == needs(reward(first))
    assert (needs(reward(first), reward(second, "harmless")) - plain) * GIB == pytest.approx(2 * weights, rel=1e-3)
    assert (needs(reward(first), dp=2) - needs(dp=2)) * GIB == pytest.approx(2 * weights, rel=1e-3)


def test_a_gpu_must_hold_a_reward_model_by_itself(tmp_path: Path):
    stage = load_recipe(RL, [*NOT_THERE, reward(write_reward_model(tmp_path / "rm"))])
    (spec,) = stage.holds().reward_models
    policy = read_model(ROOT / "configs/tiny/qwen2.json")
    size = 2 * num_parameters(spec.tensors()) / GIB
    for gib, fits in ((0.9 * size, False), (1.1 * size, True)):
        machine = Cluster(device="cuda", gpu="hopper", gpu_memory_gib=gib, trainer=TrainerLayout(dtype="bf16"))
        found = [f for f in memory_faults(stage.holds(), machine, policy) if "of a reward model take" in f]
        assert bool(found) != fits


def test_the_folders_belong_to_the_run_by_content(tmp_path: Path):
    base, folder = write_model(tmp_path / "base"), write_reward_model(tmp_path / "rm")

    def begin(run: str, path: Path, **options: bool) -> str:
        stage = load_recipe(RL, [f"model.path={base}", "objective.truncated=judge", reward(path)])
        made = RunDir(tmp_path / run, stage, Cluster(device="cpu"), resume=True, **options)
        (tmp_path / run / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
        found = made.lineage.recipe
        made.close()
        return found

    first = begin("run", folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert begin("run", moved) == first
    other = write_reward_model(tmp_path / "other", seed=1)
    with pytest.raises(RunDirError, match=r"rewards\.helpful\.path: other content than the run began with"):
        begin("run", other)
    assert begin("another", other) != first
    # Another chat template has it read other tokens, of which the weights' digest says nothing.
    (moved / "chat_template.jinja").write_text((moved / "chat_template.jinja").read_text() + " ")
    with pytest.raises(RunDirError, match=r"rewards\.helpful\.path: other content .*chat_template\.jinja"):
        begin("run", moved, verify_inputs=True)


def test_what_is_read_of_them_is_read_once_a_folder(tmp_path: Path):
    folder = write_reward_model(tmp_path / "rm")
    stage = load_recipe(RL, [*NOT_THERE, reward(folder), reward(folder, "harmless", scope="response")])
    assert len(reward_models.specs(stage.rewards)) == 1 if isinstance(stage, GRPO) else False
    assert stage.reward_models() == {"rewards.helpful.path": folder, "rewards.harmless.path": folder}
