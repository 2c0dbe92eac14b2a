"""Real collectives of real ranks, one of which hangs or is stopped or is slow; and training that is only watched."""

import json
from pathlib import Path

import pytest
import torch
from rank_pool import Pool

from r1mega.runtime import events


@pytest.mark.parametrize(("what", "said"), [
    ("hang:1", "s for the data-parallel ranks (cluster.trainer.collective_timeout_s = 4 s); missing is rank 1"),
    ("stop:0", "rank 0 on "),
])  # fmt: skip
def test_a_rank_that_is_missing_in_a_collective_is_named_and_all_leave_with_75(
    ranks: Pool, tmp_path: Path, what: str, said: str
):
    with pytest.raises(AssertionError, match=r"rank 0 ended with 75:(?s:.)*rank 1 ended with 75:") as failure:
        ranks.run(2, "watched_ranks.play", tmp_path, [what])
    assert said in str(failure.value)
    kind, missing = what.split(":")
    (event,) = events.read(tmp_path / kind)
    assert (event.kind, event.figures["ranks"], said in event.text) == ("watchdog", [int(missing)], True)
    stacks = [(tmp_path / kind / f"logs/stacks/rank_{rank}.txt").read_text() for rank in (0, 1)]
    assert f" in {kind}\n" in stacks[int(missing)]
    assert " in all_reduce\n" in stacks[1 - int(missing)] and f" in {kind}\n" not in stacks[1 - int(missing)]
    # Whoever was stopped did not go on when it woke.
    assert [(tmp_path / kind / f"step_{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    ranks.run(2, "watched_ranks.learn", folder, ["bare", "watched", "slow"])
    return folder


def test_training_that_is_watched_is_the_same_in_every_bit(folder: Path):
    bare, watched, slow = (
        torch.load(folder / f"{how}.pt", weights_only=False) for how in ("bare", "watched", "slow")
    )
    for step, of_bare in enumerate(bare):
        for other in (watched[step], slow[step]):
            assert (other["loss"], other["norm"]) == (of_bare["loss"], of_bare["norm"])
            assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in of_bare["weights"].items())


def test_a_slow_rank_is_reported_by_name_and_a_healthy_run_reports_none(folder: Path):
    assert [event.kind for event in events.read(folder / "watched")] == []
    told = [event for event in events.read(folder / "slow") if event.kind == "straggler"]
    assert told and {event.figures["rank"] for event in told} == {1}
    assert "rank 1 on " in told[0].text and " is slow: " in told[0].text
    figures = json.loads((folder / "slow.json").read_text())["figures"]
    assert figures["ranks/slowest_rank"] == 1 and figures["ranks/slowest"] > 1.5
