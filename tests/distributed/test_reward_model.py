"""A reward model on two ranks is the one of one rank: its losses, its accuracy and its weights, pairs and labels."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rank_pool import Pool
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "unit"))
LAYOUTS = {"pairwise": ("dp=2", "pp=2"), "pointwise": ("dp=2",)}


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from judged_data import labelled, pairs, write

    folder = tmp_path_factory.mktemp("reward_model")
    write(folder / "pairwise.jsonl", pairs(120))
    write(folder / "pointwise.jsonl", labelled(120))
    ranks.run(1, "reward_model_ranks.base", folder, ["deepseek_v3"])
    ranks.run(1, "reward_model_ranks.of", folder, [f"{objective}/" for objective in LAYOUTS])
    cases = [f"{objective}/{layout}" for objective, layouts in LAYOUTS.items() for layout in layouts]
    ranks.run(2, "reward_model_ranks.of", folder, cases)
    return folder


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("objective", "layout"), [(o, layout) for o, of in LAYOUTS.items() for layout in of])
def test_two_ranks_are_one(folder: Path, objective: str, layout: str):
    one, two = rows(folder / objective / "one"), rows(folder / objective / layout)
    assert [(row["kind"], row["step"]) for row in one] == [(row["kind"], row["step"]) for row in two]
    for a, b in zip(one, two, strict=True):
        names = [name for name in a if not name.startswith("seconds/") and isinstance(a[name], float)]
        names = [name for name in names if "experts/" not in name]
        assert len(names) > 5
        assert [b[name] for name in names] == pytest.approx([a[name] for name in names], rel=1e-4, abs=1e-6)
    trained = [load_file(folder / objective / of / "hf/model.safetensors") for of in ("one", layout)]
    assert trained[0].keys() == trained[1].keys()
    # Adam makes a step of the learning rate (3e-3) out of a gradient that is nothing but rounding, in a few elements.
    for name, wanted in trained[0].items():
        assert float((trained[1][name] - wanted).abs().mean()) < 3e-6, name
