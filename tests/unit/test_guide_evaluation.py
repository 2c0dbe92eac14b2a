"""docs/guides/evaluation.md: each of its commands runs, and its figures are those that were measured."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from endpoint_server import EndpointServer
from pyarrow import parquet

from r1mega import cli
from r1mega.evaluation.results import QuestionResult, Record, SampleResult, digests_of, write
from r1mega.samples import VerdictStatus

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/evaluation.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^r1mega .*$", "\n".join(re.findall(r"^```\n(.*?)^```", GUIDE, re.M | re.S)), re.M)
LEAVES_WITH = {"r1mega decontaminate --against aime.jsonl questions.jsonl": 1}
"""A row of the questions is in the evaluation."""
TEXT = "Find the number of ordered pairs of positive integers whose product is 2024."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guide's commands name."""
    folder = tmp_path_factory.mktemp("guide")
    for name, right in (("base", 1), ("rl", 3)):
        samples = tuple(SampleResult(VerdictStatus.SCORED, float(i < right)) for i in range(4))
        results = [QuestionResult(f"q{i}", f"digest {i}", samples) for i in range(20)]
        sampling = {"temperature": 0.6, "samples": 4}
        (folder / "runs/eval" / name).mkdir(parents=True)
        write(folder / "runs/eval" / name, results, Record(digests_of(results, name, "p", sampling), sampling, {}))
    texts = {
        "aime": ("question", TEXT), "gpqa": ("question", "Another one."), "questions": ("problem", TEXT.upper()),
        "conversations": ("prompt", "Good day."),
    }  # fmt: skip
    for name, (field, text) in texts.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({field: text}) + "\n")
    texts = pa.table({"id": [7], "problem": ["What is it?"]})
    parquet.write_table(texts, folder / "train.parquet")
    return folder


def test_there_are_commands():
    assert {command.split()[1] for command in COMMANDS} == {"run", "compare", "decontaminate"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A stage needs weights that are not here: of it `check` is asked whether it would start. Another is asked at an
    endpoint, below."""
    _, verb, *rest = shlex.split(command)
    monkeypatch.chdir(ROOT if verb == "run" else folder)
    arguments = ["check", rest[0]] if verb == "run" else [verb, *rest]
    if verb == "decontaminate":
        arguments += ["--processes", "1"]
    monkeypatch.setattr(sys, "argv", ["r1mega", *arguments])
    try:
        cli.main()
        code = 0
    except SystemExit as left:
        code = left.code or 0
    assert code == LEAVES_WITH.get(command, 0)


def test_the_evaluation_at_an_endpoint_runs(tmp_path: Path):
    (command,) = (line for line in COMMANDS if "endpoint" in line)
    _, *arguments = shlex.split(command)
    with EndpointServer(lambda body: "<think>1</think><answer>2</answer>") as server:
        arguments[-1] = str(tmp_path / "run")
        sets = (f"endpoint.url={server.url}", "evaluation.questions.0.num=3")
        overrides = [part for one in sets for part in ("--set", one)]
        done = subprocess.run(
            [sys.executable, "-m", "r1mega.cli", *arguments, *overrides], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert {body["prompt"][:8] for body in server.bodies} == {"<|user|>"} and len(server.bodies) == 15
    assert {body["skip_special_tokens"] for body in server.bodies} == {False}
    assert all((tmp_path / "run" / name).is_file() for name in ("summary.json", "results.jsonl", "evaluation.json"))


def test_the_measurement_covers_what_is_promised_and_the_guide_says_what_it_measured():
    found = json.loads((ROOT / "docs/measurements/evaluation_intervals.json").read_text())
    assert found["simulations"] >= 5000 and len({row["population"] for row in found["stated"]}) == 13
    for num, (least, most) in {"30": (0.93, 0.97), "200": (0.94, 0.96)}.items():
        low, high = found["stated_coverage"][num]
        assert least <= low and high <= most
        plain = [row["t"] for row in found["stated"] if str(row["questions"]) == num]
        t = f"{100 * min(plain):.1f} to {100 * max(plain):.1f}%"
        assert f"| {num} | {100 * low:.1f} to {100 * high:.1f}% | {t} |" in GUIDE
    assert found["decided_between_equals"] < 0.065
    assert found["decided_between_equals"] == max(row["better"] + row["worse"] for row in found["comparison"])
