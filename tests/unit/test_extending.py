"""docs/guides/extending.md done word for word on a copy of the package, and how many files that touched."""

import contextlib
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from grpo_run import base
from recording import RecordingPolicy, recorded_saves

from r1mega.config.cluster import Cluster
from r1mega.data.tokenizer import load_tokenizer
from r1mega.runtime.run_dir import RunDir

__all__ = ["base"]  # a fixture

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/extending.md").read_text(encoding="utf-8")
CHAPTERS = ["A rule reward", "A source of questions", "A figure", "A training stage"]
BLOCK = re.compile(r"```(\w+)\n# (\S+)\n(.*?)```", re.DOTALL)

TRY = """
import json, sys
from pathlib import Path

from r1mega.data.asked_questions import training_questions
from r1mega.diagnostics.rollout import rollout_metrics
from r1mega.recipe.load import load_recipe
from r1mega.report.figures import draw
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.samples import Completion, FinishReason, Group, Prompt

recipe = load_recipe(Path("configs/tiny/r1_zero/1_rl.toml"))
prompt = Prompt("p", "chain_sum", "1 + 1 =", "2", (1,))
answers = tuple(
    Completion("p", i, (7,) * n, (0.0,) * n, "2", FinishReason.STOP, 0, i) for i, n in enumerate((15, 90))
)
verdicts = Rubric(recipe.rewards, "zero").judge(prompt, answers, 0)
metrics = rollout_metrics([Group(prompt, answers, verdicts)])
run = Path("run")
run.mkdir()
row = {"kind": "train", "step": 1, **metrics}
(run / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
further = load_recipe(Path("configs/tiny/further.toml"))
asked = training_questions(recipe.questions[1:], 0, verifiers=VERIFIERS)
print(json.dumps({
    "rewards": [v.reward for v in verdicts],
    "metric": metrics["reward/brevity"],
    "figures": [path.name for path in draw(run)],
    "questions": [(q.text, q.truth, asked.where[q.id]) for q in asked.questions],
    "further": [further.runs, further.lines_per_step],
    "loaded": [name for name in ("torch", "reasoning_gym") if name in sys.modules],
}))
"""


def chapter(title: str) -> str:
    return GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def follow(text: str, root: Path) -> dict[str, str]:
    """Do what a chapter says; the files that it touched -> "new" or "changed"."""
    touched = {}
    for language, name, body in BLOCK.findall(text):
        file = root / name
        touched[name] = "changed" if file.exists() else "new"
        assert (language == "diff") == file.exists(), f"{name}: a block of changes is of a file that is there"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            changed(file.read_text(encoding="utf-8"), body) if language == "diff" else body, encoding="utf-8"
        )
    return touched


def changed(old: str, changes: str) -> str:
    """The lines with "+" put in behind the line that stands above them, or before the first that is named."""
    lines, place, above_all = old.splitlines(), 0, []
    for line in changes.splitlines():
        if not line.startswith("+"):
            found = lines.index(line[1:], place)
            lines[found:found] = above_all
            place, above_all = found + len(above_all) + 1, []
        elif place:
            lines.insert(place, line[1:])
            place += 1
        else:
            above_all.append(line[1:])
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extended")
    for folder in ("r1mega", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def touched(copy: Path) -> list[dict[str, str]]:
    """The files of each chapter, after it was followed."""
    return [follow(chapter(title), copy) for title in CHAPTERS]


def test_what_the_guide_says_is_all_there_is_to_do(copy: Path, touched: list[dict[str, str]]):
    reward, source, figure, stage = touched
    # One file, one row, one entry of a config.
    assert list(reward.values()) == list(source.values()) == ["new", "changed", "changed"]
    assert [Path(name).suffix for name in (*reward, *source)] == [".py", ".py", ".toml"] * 2
    assert figure == {"r1mega/report/catalogue.py": "changed"}
    assert stage == {
        "r1mega/recipe/further.py": "new", "r1mega/stages/further.py": "new", "r1mega/recipe/load.py": "changed",
        "configs/tiny/further.toml": "new",
    }  # fmt: skip
    sums = copy / "configs/tiny/r1_zero/sums.txt"
    sums.write_text("".join(f"{i} + 1 =\t{i + 1}\n" for i in range(20)))
    environment = {"PYTHONPATH": str(copy), "PATH": "", "MPLCONFIGDIR": str(copy)}
    done = subprocess.run([sys.executable, "-c", TRY], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # "2" is right nowhere and in no format; 0.2 x (1 - 15 / 60), and none from 60 tokens on.
    assert found["rewards"] == pytest.approx([0.15, 0.0]) and found["metric"] == pytest.approx(0.375)
    assert "brevity.png" in found["figures"]
    assert 10 < len(found["questions"]) < 20  # one in eight is held out
    assert all(text == f"{int(truth) - 1} + 1 =" for text, truth, _ in found["questions"])
    assert all(where == f"{sums}, line {truth}" for _, truth, where in found["questions"])
    assert found["further"] == ["r1mega.stages.further:run", 2]
    assert found["loaded"] == []


def test_the_guides_stage_trains(copy: Path, touched: list[dict[str, str]], base: Path, tmp_path: Path, monkeypatch):
    """In this process, which has torch: on the model of `recording`, whose loss is known in closed form."""
    recipes, stages = (load(f"r1mega/{room}/further.py", copy, monkeypatch) for room in ("recipe", "stages"))
    table = tomllib.loads((copy / "configs/tiny/further.toml").read_text())
    (tmp_path / "text.txt").write_text("What is 1?\n\nIt is 3.\n")
    recipe = recipes.Further.model_validate(
        table | {"text": str(tmp_path / "text.txt"), "model": {"path": str(base)}, "seed": 3}
    )
    assert recipe.faults() == []
    recipes.check_text(recipe, None, None, brief=False)
    policies = []

    def build(*arguments, **settings):
        policies.append(RecordingPolicy(*arguments, **settings))
        return policies[-1]

    run_dir = RunDir(tmp_path / "run", recipe, Cluster(device="cpu"), resume=False)
    with contextlib.closing(run_dir), recorded_saves():
        stages.run(recipe, Cluster(device="cpu"), run_dir, build=build)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[2]["loss"] < rows[0]["loss"]
    # Both lines in every step, but for the empty one; each target weighs the same.
    texts = load_tokenizer(base)(["What is 1?", "It is 3."])["input_ids"]
    theta = [math.sin(v) for v in range(288)]
    log_sum = math.log(sum(map(math.exp, theta)))
    targets = [log_sum - theta[token] for ids in texts for token in ids[1:]]
    assert rows[0]["loss"] == pytest.approx(sum(targets) / len(targets), rel=1e-5)
    assert rows[0]["tokens"] == sum(map(len, texts))
    assert (tmp_path / "run/hf/model.safetensors").is_file() and (tmp_path / "run/checkpoints/step_3").is_dir()


def load(file: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that the copy has and the package has not, as the package's for this test."""
    name = file.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, root / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_every_block_of_the_guide_is_in_a_chapter_that_is_done():
    assert re.findall(r"\n## (.+)\n", GUIDE) == CHAPTERS
    assert sum(len(BLOCK.findall(chapter(title))) for title in CHAPTERS) == GUIDE.count("```") // 2 == 11
