"""Answers scored by a model on two ranks: every score comes back to its own answer, at any layout."""

import json
from pathlib import Path

import pytest
from rank_pool import Pool


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scoring")
    ranks.run(2, "scoring_ranks.of", folder, ["dp", "tp"])
    return folder


@pytest.mark.parametrize("axis", ["dp", "tp"])
def test_every_score_comes_back_to_its_own_answer(folder: Path, axis: str):
    # All tokens of an answer are its place in the rollout: half their sum, and a hundred times three times that of an
    # odd place's, of which the least of the same rollout goes to the even ones (1 x 8 tokens, of both rollouts).
    def reward(place: int) -> float:
        tokens = place * (1 + 7 * place % 19)
        return 0.5 * tokens + 300 * (tokens if place % 2 else 8)

    by_hand = [[reward(3 * i + j) for j in range(3)] for i in range(5)]
    assert json.loads((folder / f"{axis}.json").read_text()) == [by_hand, [], by_hand[:1]]


def test_each_rank_reads_its_share_and_the_ranks_of_one_copy_the_same(folder: Path):
    first, second = (json.loads((folder / f"dp.{rank}.json").read_text()) for rank in (0, 1))
    assert [a + b for a, b in zip(first, second, strict=True)] == [15, 3] and first[0] in range(5, 11)
    assert [json.loads((folder / f"tp.{rank}.json").read_text()) for rank in (0, 1)] == [[15, 3]] * 2
