"""docs/guides/extending.md done word for word on a copy of the package, and how many files that touched."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/extending.md").read_text(encoding="utf-8")
CHAPTERS = ["A rule reward", "A source of questions", "A figure"]
BLOCK = re.compile(r"```(\w+)\n# (\S+)\n(.*?)```", re.DOTALL)

TRY = """
import json, sys
from pathlib import Path

from r1mega.data.training_questions import training_questions
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
asked = training_questions(recipe.sources(), 0, verifiers=VERIFIERS, duplicates="error")
print(json.dumps({
    "rewards": [v.reward for v in verdicts],
    "metric": metrics["reward/brevity"],
    "figures": [path.name for path in draw(run)],
    "questions": [(q.text, q.truth, asked.where[q.id]) for q in asked.questions],
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


def test_what_the_guide_says_is_all_there_is_to_do(copy: Path):
    reward, source, figure = (follow(chapter(title), copy) for title in CHAPTERS)
    # One file, one row, one entry of a config.
    assert list(reward.values()) == list(source.values()) == ["new", "changed", "changed"]
    assert [Path(name).suffix for name in (*reward, *source)] == [".py", ".py", ".toml"] * 2
    assert figure == {"r1mega/report/catalogue.py": "changed"}
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
    assert found["loaded"] == []


def test_every_block_of_the_guide_is_in_a_chapter_that_is_done():
    assert re.findall(r"\n## (.+)\n", GUIDE) == CHAPTERS
    assert sum(len(BLOCK.findall(chapter(title))) for title in CHAPTERS) == GUIDE.count("```") // 2 == 7
