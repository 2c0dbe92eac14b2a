"""What tiny configs start from: the command in their heads makes it, `make tiny` makes it all, `check` says so."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from r1mega.config.inputs import default_run_dir, makers, missing, missing_weights
from r1mega.pipeline.graph import load_pipeline
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.from_model import FromModel
from r1mega.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(f for f in (ROOT / "configs/tiny").glob("*/*.toml") if f.stem not in ("demo", "pipeline"))


def inputs(config: Path) -> dict[str, Path]:
    """Setting -> what lies under runs/, from the repository's root."""
    stage = load_recipe(config)
    model = stage.model if isinstance(stage, FromModel) else None
    named = {"model.path": model and model.path, **{one.setting: one.path for one in stage.inputs()}}
    found = {setting: path for setting, path in named.items() if path and path.is_relative_to(ROOT / "runs")}
    return {setting: path.relative_to(ROOT) for setting, path in found.items()}


def made(command: str) -> set[Path]:
    """What a command leaves behind for other stages, typed in the repository's root."""
    words = [word.removeprefix(".venv/bin/") for word in shlex.split(command)]
    if words[0] == "make":
        done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
        lines = done.stdout.replace("\\\n", " ").splitlines()
        return {path for line in lines if line.startswith(".venv/bin/") for path in made(line)}
    if words[:3] == ["python", "tools/rule_judge.py", "--"]:  # it serves while the rest runs
        return made(shlex.join(words[3:]))
    if words[:2] in (["python", "tools/make_conversations.py"], ["python", "tools/make_hacked_pairs.py"]):
        return {Path(words[2])}
    if words[:2] not in (["r1mega", "run"], ["r1mega", "pipeline"]):
        return set()
    config = Path(words[2])
    folder = Path(words[words.index("--run-dir") + 1]) if "--run-dir" in words else default_run_dir(config)
    if words[1] == "run":
        return {folder / "hf"}
    nodes = {node.name: load_recipe(node.config) for node in load_pipeline(ROOT / config).stages}
    return {folder / name / file for name, stage in nodes.items() for file in stage.leaves()}


def test_there_are_such_configs():
    assert sum(len(inputs(config)) for config in CONFIGS) >= 9


@pytest.mark.parametrize("config", CONFIGS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_the_head_names_the_command_that_makes_what_a_config_starts_from(config: Path):
    named, wanted = makers(config), inputs(config)
    assert named.keys() == wanted.keys()
    for setting, path in wanted.items():
        assert path in made(named[setting]), setting


def test_one_command_makes_them_all():
    assert {path for config in CONFIGS for path in inputs(config).values()} <= made("make tiny")


def test_check_names_the_command(tmp_path: Path):
    for name in ("r1_zero/1_rl", "sft/1_qwen2"):
        (tmp_path / name).parent.mkdir()
        shutil.copyfile(ROOT / f"configs/tiny/{name}.toml", tmp_path / f"{name}.toml")
    rl = tmp_path / "r1_zero/1_rl.toml"
    said = missing_weights(load_recipe(rl).model, makers(rl))
    assert said is not None and said.endswith("/hf is not there yet; made by `make demo`")
    elsewhere = ["model.path=/nowhere"]  # not what the head speaks of
    said = missing_weights(load_recipe(rl, elsewhere).model, makers(rl, elsewhere))
    assert said is not None and said.startswith("model.path: /nowhere is not there yet: a Hugging Face folder")
    sft = tmp_path / "sft/1_qwen2.toml"
    command = makers(sft)["data.files"]
    (said,) = missing(load_recipe(sft).inputs(), makers(sft))
    assert said.endswith(f"conversations.jsonl: not there yet; made by `{command}`")
    assert "data.files" not in makers(sft, ["data.files=[]"])


def test_a_later_stages_weights_are_made_and_not_downloaded():
    config = ROOT / "configs/r1/2_reasoning_rl.toml"
    assert set(inputs(config).values()) == made(makers(config)["model.path"])


def test_the_chain_is_the_reports_from_base_to_students_and_makes_six_claims():
    """By the models' names that its evaluation, its table and its claims all use; `look_at_chain` refuses others."""
    chain = load_pipeline(ROOT / "configs/tiny/r1/pipeline.toml")
    evaluated = load_recipe(ROOT / "configs/tiny/r1/6_eval.toml")
    assert isinstance(evaluated, Evaluate) and chain.table is not None
    assert list(evaluated.models) == list(chain.table.rows)
    assert {node.name for node in chain.stages} > set(evaluated.models)
    assert [len(claim.all) for claim in chain.relations] == [2, 1, 1, 2, 1, 2]
    starts = {node.name: node.start for node in chain.stages}
    assert [starts[name] for name in ("r1_zero", "dev1", "dev3")] == ["base"] * 3
    assert (starts["dev2"], starts["r1"], starts["qwen"], starts["llama"]) == (
        "dev1",
        "dev3",
        "qwen_base",
        "llama_base",
    )
