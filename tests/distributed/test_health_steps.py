"""A gradient that is no number on one rank of two: all decide alike, nothing changes, and a resumed run agrees."""

import json
from typing import Any

import pytest
from rank_pool import Pool

LAYOUTS = ("dp=2", "pp=2", "dp=2,ep=2")


@pytest.fixture(scope="module")
def found(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("health")
    asked = [*(f"{layout}/skip/" for layout in LAYOUTS), "dp=2/skip/dies", "dp=2/roll_back/"]
    ranks.run(2, "health_steps.of", folder, asked)
    return {name: json.loads((folder / f"{name.replace('/', '-')}.json").read_text()) for name in asked}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_step_is_skipped_on_every_rank_whichever_met_it(found: dict[str, Any], layout: str):
    (start,) = found[f"{layout}/skip/"]["starts"]
    for seen in start["ranks"]:
        assert [a == b for a, b in zip(seen["before"], seen["after"], strict=True)] == [False, True, False, False]
        for before, after in zip(seen["before"], seen["after"], strict=True):
            assert (before["moments"] == after["moments"]) == (before["weights"] == after["weights"])
    rows = [row for row in found[f"{layout}/skip/"]["rows"] if row["kind"] == "train"]
    assert [row.get("skipped") for row in rows] == [None, 1.0, None, None]
    assert [row["grad_norm"] is None for row in rows] == [False, True, False, False]
    (incident,) = found[f"{layout}/skip/"]["incidents"]
    assert (incident["step"], incident["what"], incident["data"]) == (2, "non_finite", ["1"])


def test_ranks_that_were_killed_go_on_to_the_same_bits(found: dict[str, Any]):
    whole, resumed = found["dp=2/skip/"], found["dp=2/skip/dies"]
    assert [bool(start["ranks"][0]["error"]) for start in resumed["starts"]] == [True, False]
    for rank in range(2):
        first, last = whole["starts"][0]["ranks"][rank], resumed["starts"][1]["ranks"][rank]
        assert first["after"][2:] == last["after"]
    assert resumed["incidents"] == whole["incidents"]
    times = {"time", "seconds/update"}
    assert [{k: v for k, v in row.items() if k not in times} for row in resumed["rows"]] == [
        {k: v for k, v in row.items() if k not in times} for row in whole["rows"]
    ]


def test_all_ranks_go_back_and_pass_over_what_came_since(found: dict[str, Any]):
    gone, again = found["dp=2/roll_back/"]["starts"]
    errors = {seen["error"] for seen in gone["ranks"]}
    assert len(errors) == 1 and "RolledBackError: step 2: loss " in errors.pop()
    (incident,) = found["dp=2/roll_back/"]["incidents"]
    assert (incident["step"], incident["to"], incident["passed"], incident["data"]) == (2, 0, 2, ["1"])
    # From the first weights, on which the steps learn from the batches 2 to 5.
    assert len(again["ranks"][0]["after"]) == 4
    assert again["ranks"][0]["before"][0] == gone["ranks"][0]["before"][0]
    assert again["ranks"][0]["after"][0] != gone["ranks"][0]["after"][0]
