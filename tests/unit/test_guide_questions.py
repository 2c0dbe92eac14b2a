"""docs/guides/questions.md: its tables are read from its files by its commands; examples of the report's mixture."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from check_and_run import answer, stop_at_start

from r1mega import cli
from r1mega.data.asked_questions import evaluation_questions
from r1mega.data.sources.families import FAMILIES
from r1mega.data.sources.registry import SOURCES
from r1mega.data.sources.source import QuestionSource
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe
from r1mega.rewards.truths import doubts
from r1mega.rewards.verifiers import VERIFIERS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/questions.md").read_text(encoding="utf-8")
(ROWS,) = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
OWN, MIXTURE, UNJUDGED = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^r1mega .*$", GUIDE, re.M)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the guide's commands are typed: the tiny config with its tables, and the files that they name."""
    import pyarrow
    from pyarrow import parquet

    stop_at_start(monkeypatch, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    tiny = (ROOT / "configs/tiny/r1_zero/1_rl.toml").read_text(encoding="utf-8")
    tables = re.compile(r"^\[\[questions\]\]\n(?:\w.*\n)+\n?", re.MULTILINE)
    held_out = re.compile(r"^\[\[evaluation\.questions\]\]\n(?:\w.*\n)+\n?", re.MULTILINE)
    (tmp_path / "my/rl.toml").write_text(tables.sub(lambda _: OWN + "\n", tiny), encoding="utf-8")
    mixed = held_out.sub("", tables.sub("", tiny)) + "\n" + MIXTURE
    (tmp_path / "my/mixture.toml").write_text(mixed, encoding="utf-8")
    (tmp_path / "my/own.jsonl").write_text(ROWS, encoding="utf-8")
    (tmp_path / "my/benchmark.jsonl").write_text('{"question": "1 + 1?", "truth": "2"}\n', encoding="utf-8")
    rows = [f"Which letter is {letter}?" for letter in "abcdefghijkl"]
    choices = [["the first", "the next", f"{letter} itself"] for letter in "abcdefghijkl"]
    table = {"question": rows, "truth": list("ABCABCABCABC"), "choices": choices}
    parquet.write_table(pyarrow.table(table), tmp_path / "my/stem.parquet")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_runs(command: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    _, verb, config, _, override = shlex.split(command)
    assert verb == "check" and len(COMMANDS) == 2
    cluster = str(ROOT / "configs/cluster/laptop.toml")
    code, said = answer(lambda: cli.check(Path(config), cluster, [override]), capsys)
    assert code == 0 and "model.path" in said and "not there yet" in said, said


def test_what_the_guide_says_of_a_wrong_row(folder: Path, capsys: pytest.CaptureFixture[str]):
    own = folder / "my/own.jsonl"
    own.write_text(ROWS.replace('"answer": 12', '"anwser": 12').replace("\\\\{-3, 3\\\\}", "three, or not"))
    cluster = str(ROOT / "configs/cluster/laptop.toml")
    code, said = answer(lambda: cli.check(Path("my/rl.toml"), cluster, ["rollout.num_prompts=1"]), capsys)
    assert code == 2 and "own.jsonl, line 2: no column 'answer' (did you mean 'anwser'?)" in said


def test_the_guides_tables_name_what_there_is():
    of_kinds, of_settings = (re.findall(r"^\| `.*", part, re.M) for part in GUIDE.split("| setting | |"))
    assert {re.findall(r"`(\w+)`", row)[0] for row in of_kinds} == SOURCES.keys()
    named = {name for row in of_settings for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    columns = {"question", "truth", "verifier", "verifier_column", "id", "entry", "options"}
    assert named == (QuestionSource.model_fields.keys() - {"kind"}) | columns
    assert f"{len(FAMILIES)} families" in GUIDE


# ---- the report's mixture ------------------------------------------------------------------------------------


def tables(config: str) -> list[dict[str, Any]]:
    return tomllib.loads((ROOT / "configs" / config).read_text(encoding="utf-8"))["questions"]


@pytest.mark.parametrize("config", ["r1_zero/1_rl.toml", "r1_zero/qwen_32b_zero.toml", "r1/2_reasoning_rl.toml"])
def test_the_examples_are_read_by_the_tables_of_the_reports_configs(config: str):
    named = {Path(table["path"]).stem: i for i, table in enumerate(tables(config))}
    assert {"mathematics", "stem", "logic"} <= named.keys()
    examples = ROOT / "configs/questions/examples"
    paths = [f"questions.{i}.path={examples}/{name}.jsonl" for name, i in named.items()]
    recipe = load_recipe(ROOT / "configs" / config, paths)
    assert isinstance(recipe, GRPO) and "weight" not in tables(config)[0]
    ours = [recipe.questions[named[name]] for name in ("mathematics", "stem", "logic")]
    asked = evaluation_questions(ours, 0, verifiers=VERIFIERS)
    assert {label: counts["read"] for label, counts in asked.counts.items()} == {
        "mathematics": 12, "stem": 11, "logic": 10,
    }  # fmt: skip
    assert doubts(asked.doubtful) == []
    assert {q.source: q.domain for q in asked.questions} == {"mathematics": "math", "stem": "stem", "logic": "logic"}
    assert {q.verifier for q in asked.questions if q.source == "stem"} == {"choice", "math"}


def test_what_the_reports_configs_need_is_an_input_to_be_put_there():
    for config in ("r1_zero/1_rl.toml", "r1/2_reasoning_rl.toml"):
        recipe = load_recipe(ROOT / "configs" / config)
        wanted = [source.setting for source in recipe.inputs()]
        assert wanted[: len(tables(config))] == [f"questions.{i}.path" for i in range(len(tables(config)))]


def test_the_examples_are_json_of_no_other_columns():
    for name, columns in (
        ("mathematics", {"question", "answer"}),
        ("stem", {"options", "verifier"}),
        ("logic", {"entry"}),
    ):
        for line in (ROOT / f"configs/questions/examples/{name}.jsonl").read_text(encoding="utf-8").splitlines():
            assert columns <= json.loads(line).keys() <= {"question", "answer", "options", "verifier", "entry"}


def test_the_guides_general_prompts_fit_with_its_reward_for_right_answers():
    plain = load_recipe(ROOT / "configs/tiny/r1_zero/1_rl.toml")
    assert isinstance(plain, GRPO)
    settings, general = plain.model_dump(mode="json", exclude_unset=True), tomllib.loads(UNJUDGED)
    table = {**general["questions"][0], "path": "/nowhere/helpful.jsonl"}
    asked = {**settings, "questions": [*settings["questions"], table]}
    assert [f for f in GRPO.model_validate(asked).faults() if "accuracy" in f]
    rewards = {**settings["rewards"], "accuracy": general["rewards"]["accuracy"]}
    assert GRPO.model_validate({**asked, "rewards": rewards}).faults() == []
