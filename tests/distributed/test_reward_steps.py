"""A GRPO update from the scores of two reward models on two ranks is that of one process."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from rank_pool import Pool

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from reward_models import write_reward_model  # pyright: ignore[reportMissingImports]

LAYOUTS = ("dp=2", "tp=2")


@pytest.fixture(scope="module")
def found(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rewards")
    for seed, name in enumerate("ab"):
        write_reward_model(folder / name, seed=seed)
    ranks.run(1, "reward_steps.of", folder, [""])
    ranks.run(2, "reward_steps.of", folder, LAYOUTS)
    return {layout: json.loads((folder / f"{layout}.json").read_text()) for layout in ("one", *LAYOUTS)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_reward_and_learn_as_one(found: dict[str, Any], layout: str):
    one, two = found["one"], found[layout]
    assert two["counts"] == one["counts"]
    for mine, theirs in zip(two["parts"], one["parts"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    for mine, theirs in zip(two["rewards"], one["rewards"], strict=True):
        assert mine == pytest.approx(theirs, abs=3e-5)
    # Advantages divide by a group's deviation, which makes more of a rounding.
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4) and two["norm"] == pytest.approx(one["norm"], rel=1e-3)
    assert one["norm"] > 0


def test_the_rewards_are_those_of_the_rubric(found: dict[str, Any]):
    one = found["one"]
    parts = [one["parts"][4 * i : 4 * i + 4] for i in range(6)]
    for i, (of_group, rewards) in enumerate(zip(parts, one["rewards"], strict=True)):
        # "helpful" is asked of every second question alone; all have their format and the chance to be harmless.
        assert {frozenset(p) for p in of_group} == {
            frozenset({"format", "harmless"} | ({"helpful"} if i % 2 == 0 else set()))
        }
        by_hand = [p["format"] + p.get("helpful", 0.0) + 2 * p["harmless"] for p in of_group]
        assert rewards == pytest.approx(by_hand)
        assert all(0 < p["harmless"] < 1 for p in of_group)
    # The places 0, 5, 10, 15 and 20 have no summary; 0 and 10 are answers to helpful questions.
    helpful = [p["helpful"] for of_group in parts[::2] for p in of_group]
    assert one["counts"]["rewards/helpful/missing"] == 2 and one["counts"]["rewards/harmless/missing"] == 0
    scored = [x for i, x in enumerate(helpful) if i not in (0, 6)]
    assert helpful[0] == helpful[6] == min(scored) and len(set(scored)) > 5
    assert all(math.isfinite(x) for x in helpful)
