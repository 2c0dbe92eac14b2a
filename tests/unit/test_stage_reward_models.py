"""GRPO with real reward models: what is learnt of their scores, resumed or not, and the report's rubric by domain."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import recording
from check_and_run import ROOT
from grpo_run import SETTINGS, Run, base
from own_questions import write
from reward_models import write_reward_model

from r1mega.buffers import Float32s, Int32s
from r1mega.data.preference_text import reading
from r1mega.data.tokenizer import load_tokenizer
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe
from r1mega.rewards.reward import scored
from r1mega.rewards.reward_model import LearntReward
from r1mega.runtime.interrupt import Interrupted
from r1mega.samples import Completion, Document, FinishReason, Group, Prompt

__all__ = ["base"]  # a fixture
GUIDE = (ROOT / "docs/guides/reward.md").read_text(encoding="utf-8")
(RUBRIC,) = re.findall(r"^```toml\n(\[objective\]\n.*?)^```", GUIDE, re.M | re.S)
NOT_COMPARED = ("seconds", "time", "replay", "rollout/replayed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_reward_model(root / name, seed=i) for i, name in enumerate(("helpful", "harmless"))}


def changes(folders: dict[str, Path]) -> dict[str, Any]:
    helpful = {"kind": "reward_model", "path": str(folders["helpful"]), "scope": "summary"}
    harmless = {"kind": "reward_model", "path": str(folders["harmless"]), "scope": "response", "squash": "sigmoid"}
    return {
        "rewards": {"helpful": helpful, "harmless": harmless},
        "objective": {"truncated": "judge"},
        "num_steps": 4,
    }


def compared(run: Run) -> list[dict[str, Any]]:
    return [{n: x for n, x in row.items() if not n.startswith(NOT_COMPARED)} for row in run.rows()]


@pytest.fixture(scope="module")
def whole(base: Path, mesh: Any, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("whole") / "run").start(base, changes(folders))


def test_the_scores_of_a_run_are_the_models_own(whole: Run, folders: dict[str, Path], mesh: Any):
    from r1mega.trainer.reward_model import RewardModel

    read: dict[str, list[Document]] = {"helpful": [], "harmless": []}
    tokenizers = {name: load_tokenizer(folder) for name, folder in folders.items()}
    for asked in whole.engines.rollouts()[0]:
        question = asked.request.prompt.question
        for answer in asked.answers:
            summary = answer.text.rpartition("</think>")[2].removeprefix("<answer>").removesuffix("</answer>")
            for name, said in (("helpful", summary), ("harmless", answer.text)):
                read[name].append(Document.of_texts([reading(tokenizers[name], question, said)]))
    scores = {n: RewardModel(folders[n], mesh, 1024).score(of) for n, of in read.items()}
    first = whole.rows()[0]
    assert first["reward/helpful"] == pytest.approx(sum(scores["helpful"]) / 12, abs=1e-5)
    squashed = [scored_value(x) for x in scores["harmless"]]
    assert first["reward/harmless"] == pytest.approx(sum(squashed) / 12, abs=1e-5)
    assert max(scores["helpful"]) - min(scores["helpful"]) > 1e-3 and first["groups/constant"] < 1
    assert json.loads((whole.folder / "summary.json").read_text())["seconds_by_phase"]["reward_models"] > 0


def scored_value(score: float) -> float:
    import torch

    return float(torch.sigmoid(torch.tensor(score, dtype=torch.float64)))


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_equals_one_that_was_never_stopped(
    base: Path, folders: dict[str, Path], whole: Run, tmp_path: Path, stop_after: int
):
    """Stopped in the middle of a rollout's mini-batches, and between two rollouts."""
    run = Run(tmp_path / "run")

    def stop(taken: int) -> None:
        if taken == stop_after:
            recording.stop_signal()

    with pytest.raises(Interrupted):
        run.start(base, changes(folders), after_step=stop)
    assert len(run.rows()) == stop_after
    run.start(base, changes(folders), resume=True)
    assert compared(run) == compared(whole)
    assert run.policies[-1].theta.tolist() == whole.policies[-1].theta.tolist()


# ---- the report's rubric -------------------------------------------------------------------------------------------


def recipe(folders: dict[str, Path], tmp_path: Path) -> GRPO:
    """configs/tiny/r1_zero/1_rl.toml with what the guide says, its names being this test's files."""
    tables = tomllib.loads(RUBRIC)
    for name in ("helpful", "harmless"):
        write(tmp_path / f"{name}.jsonl", *({"question": f"{name} {i}"} for i in range(3)))
        tables["rewards"][name]["path"] = str(folders[name])
    plain = load_recipe(ROOT / "configs/tiny/r1_zero/1_rl.toml").model_dump(mode="json", exclude_unset=True)
    asked = [{**table, "path": str(tmp_path / table["path"])} for table in tables["questions"]]
    made = {**plain, "questions": [*plain["questions"], *asked], "rewards": tables["rewards"]}
    rewards = {name: {"kind": name, **of} if "kind" not in of else of for name, of in made["rewards"].items()}
    return GRPO.model_validate(
        {**made, "rewards": rewards, "objective": {**plain["objective"], **tables["objective"]}}
    )


def test_the_guides_rubric_is_the_reports(folders: dict[str, Path], tmp_path: Path):
    """Reward = rule (reasoning) + [reward model + format] (general) + language, by hand."""
    stage = recipe(folders, tmp_path)
    assert stage.faults() == [] == stage.notes()
    weights = [[s.weight_or_1.at(step, 32) for s in stage.questions] for step in (0, 23, 24, 31)]
    assert weights == [[1, 0, 0]] * 2 + [[1, 0.8, 0.2]] * 2 and stage.num_steps == 32
    rubric, before, after = stage.rubric(), stage.num_steps - 9, stage.num_steps - 8
    text = "<think>We add one and one, and so we have two.</think><answer>2</answer>"
    groups: list[Group] = []
    for domain in ("math", "helpful", "harmless"):
        verifier = "chain_sum" if domain == "math" else "none"
        prompt = Prompt(domain, verifier, "1 + 1 =", "2", Int32s([1]), domain=domain)
        answer = Completion(domain, 0, Int32s([2]), Float32s([0.0]), text, FinishReason.STOP, 0, 0)
        groups.append(Group(prompt, (answer,), rubric.judge(prompt, [answer], after)))
    found: dict[str, Any] = {"helpful": {(1, 0): scored(-1.5)}, "harmless": {(2, 0): scored(0.75)}}
    assert [set(rubric.unread(name, groups, after)) for name in found] == [{(1, 0)}, {(2, 0)}]
    judged = rubric.read(groups, found, after)
    parts = [dict(group.verdicts[0].parts) for group in judged]
    assert parts[0] == {"accuracy": 1.0, "language": 1.0}
    assert parts[1] == {"format": 1.0, "language": 1.0, "helpful": -1.5}
    assert parts[2] == {"format": 1.0, "language": 1.0, "harmless": 0.75}
    assert [group.verdicts[0].reward for group in judged] == [2.0, 0.5, 2.75]
    # Until the last steps no model is asked.
    assert rubric.models(before) == {} and set(rubric.models(after)) == {"helpful", "harmless"}


def test_the_guides_tables_name_all_settings_and_figures():
    section = GUIDE.partition("## Reward models\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", section, re.M)
    own = set(LearntReward.model_fields) - set(LearntReward.__mro__[1].model_fields)  # type: ignore[attr-defined]
    assert set(rows) == own
    for figure in ("missing`, `/too_long", "failed", "unmeasured"):
        assert f"`rewards/NAME/{figure}`" in section
    assert "rewards" in SETTINGS
