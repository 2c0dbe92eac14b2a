"""docs/guides/code.md: its commands do what it says, and the examples are read as the configs read their files."""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r1mega import cli
from r1mega.buffers import Int32s
from r1mega.data.question import Question
from r1mega.data.sources.jsonl import JSONL
from r1mega.errors import DataError
from r1mega.rewards import code
from r1mega.rewards.accuracy import Accuracy, can_be_right
from r1mega.rewards.reward import Answer
from r1mega.samples import Prompt

pytest_plugins = ["sandbox_here"]
ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/code.md").read_text(encoding="utf-8")
SCORE, MAKE_TESTS = (shlex.split(line) for line in re.findall(r"^r1mega (.*)$", GUIDE, re.MULTILINE))
SETTINGS = tomllib.loads(re.findall(r"^```toml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)[0])


def questions() -> list[Question]:
    """Of the two examples, as the guide's tables read them."""
    tables = [table | {"path": ROOT / "configs" / table["path"]} for table in SETTINGS["questions"]]
    return [question for table in tables for _, question in JSONL(**table).read(0)]


@pytest.fixture
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "configs/questions", tmp_path / "configs/questions")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("sandbox")
def test_score_judges_the_example(_there):
    assert CliRunner().invoke(cli.app, SCORE).exit_code == 0
    *verdicts, summary = lines_of(_there / "runs/verdicts.jsonl")
    assert [(v["id"], v["verdict"], v["value"]) for v in verdicts] == [
        ("right", "scored", 1.0), ("wrong", "scored", 0.0), ("endless", "scored", 0.0), ("function", "scored", 1.0),
    ]  # fmt: skip
    assert verdicts[1]["reason"] == "test 2 of 2: wrong answer" and verdicts[1]["parts"] == {"accuracy": 0.0}
    assert "printed more than" in verdicts[2]["reason"] and summary["summary"]["mean"] == 0.5


@pytest.mark.usefixtures("sandbox")
def test_tests_are_made_and_hold_what_they_promise(_there):
    done = CliRunner().invoke(cli.app, MAKE_TESTS)
    assert done.exit_code == 0, done.output
    assert re.search(r"largest: \d+ different inputs, .* 2 of 2 wrong programs caught", done.output)
    (row,) = lines_of(_there / "runs/problems.jsonl")
    (problem,) = lines_of(_there / MAKE_TESTS[1])
    assert set(row) == {"id", "question", "language", "tests"} and 1 <= len(row["tests"]) <= 8
    for test in row["tests"]:
        numbers = [int(word) for word in test["stdin"].split()[1:]]
        told_wrong = max(numbers) < 0 or max(map(str, numbers)) != str(max(numbers))
        assert int(test["stdout"]) == max(numbers) and told_wrong
    judge = code.Code().judge
    for source, right in [(s, True) for s in problem["right"]] + [(s, False) for s in problem["wrong"]]:
        passed = judge(f"```python\n{source}```\n", row, Accuracy().code)
        assert (passed.passed == passed.total) is right
    again = CliRunner().invoke(cli.app, MAKE_TESTS)
    assert isinstance(again.exception, DataError) and "is finished" in str(again.exception)


def test_the_examples_are_questions_that_can_be_judged():
    found = questions()
    assert [q.verifier for q in found] == ["code"] * 4 + ["code_fix"] * 2
    assert all(can_be_right(q) and q.domain == "code" for q in found)


@pytest.mark.parametrize("config", ["r1_zero/1_rl.toml", "r1_zero/qwen_32b_zero.toml", "r1/2_reasoning_rl.toml"])
def test_the_configs_of_the_report_read_such_files(config):
    tables = tomllib.loads((ROOT / "configs" / config).read_text(encoding="utf-8"))["questions"]
    of_code = [t for t in tables if t["domain"] == "code"]
    for table, example in zip(of_code, SETTINGS["questions"], strict=True):
        assert {name: table[name] for name in example if name != "path"} == {
            name: value for name, value in example.items() if name != "path"
        }
        assert Path(table["path"]).name == Path(example["path"]).name


RIGHT = {
    "largest sum": "n = input()\nbest = last = None\nfor x in map(int, input().split()):\n"
    "    last = x if last is None else max(x, last + x)\n    best = last if best is None else max(best, last)\n"
    "print(best)\n",
    "merged(a, b)": "def merged(a, b):\n    return sorted(a + b)\n",
    "Print two whole": "n = int(input())\nprint(n - 1, 1)\n",
    "largest of n": "input()\nprint(max(map(int, input().split())))\n",
}


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("part", RIGHT)
def test_a_right_answer_to_an_example_is_right_by_the_settings_of_the_guide(part):
    (question,) = (q for q in questions() if part in q.text)
    prompt = Prompt("1", question.verifier, question.text, "", Int32s(), "", question.entry, "code")
    accuracy = Accuracy.model_validate(SETTINGS["rewards"]["accuracy"])
    assert accuracy.judge(prompt, Answer(f"```python\n{RIGHT[part]}```", 9), ()).value == 1.0
    assert accuracy.judge(prompt, Answer(f"```python\n{RIGHT[part]}print(1)\n```", 9), ()).value == float(
        "(a, b)" in part
    )


@pytest.mark.usefixtures("sandbox")
def test_a_patch_mends_the_program_of_an_example():
    (question,) = (q for q in questions() if "mean of n" in q.text)
    patch = (
        "```diff\n@@ -8 +8 @@\n-    for (int i = 0; i <= n; i++) std::cin >> seen[i];\n"
        "+    for (int i = 0; i < n; i++) std::cin >> seen[i];\n```\n"
    )
    prompt = Prompt("1", question.verifier, question.text, "", Int32s(), "", question.entry, "code")
    assert Accuracy().judge(prompt, Answer(patch, 9), ()).value == 1.0


def test_a_machine_is_asked_only_where_there_is_code(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(code, "fault_of_this_machine", lambda *, cpp: asked.append(cpp) or "no sandbox")
    assert code.fault_of_machine([Question("1", "math", "q", "1")]) is None and asked == []
    assert code.fault_of_machine(questions()) == "no sandbox"
    assert code.fault_of_machine([Question("1", "code", "q", "", {"language": "python"})]) == "no sandbox"
    assert asked == [True, False]
