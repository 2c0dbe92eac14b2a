"""Models of scores at any layout: scores, loss, norm, gradients and weights of one process, and who holds the head.

A tiny DeepSeek-V3 learns pairs for three updates. Score heads begin on two language models with tied heads, one of
them with an MTP layer. Every layout's reward model reads the folder that one process has left.
"""

from pathlib import Path

import pytest
import torch
from family_models import write
from rank_pool import Pool
from test_layouts import same_gradients, same_weights

BEGUN = ("qwen2_tied", "deepseek_tied")
TINY = ["tp=2", "pp=2,vpp=2", "dp=2,ep=2"]
MORE = ["dp=2", "pp=2,pipeline=Ettt|tL", "tp=2,ep=2", "cp=2", "dp=2,distributed_optimizer=false"]
FOUR = ["tp=2,pp=2", "pp=2,dp=2,ep=2"]
OF_BEGUN = [("qwen2_tied", "pp=2"), ("qwen2_tied", "dp=2,ep=2"), ("deepseek_tied", "pp=2"), ("deepseek_tied", "tp=2")]


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    for name in BEGUN:
        write(name, folder / name)
    ranks.run(1, "score_layouts.of", folder, [":tiny", *(f":{name}" for name in BEGUN)])
    ranks.run(1, "score_layouts.in_smaller_micro_batches", folder, ["tiny"])
    ranks.run(2, "score_layouts.of", folder, [f"{layout}:tiny" for layout in TINY])
    ranks.run(1, "score_layouts.loaded", folder, [""])
    ranks.run(2, "score_layouts.of", folder, [f"{layout}:{name}" for name, layout in OF_BEGUN])
    return folder


@pytest.fixture(scope="module")
def more(ranks: Pool, folder: Path) -> Path:
    ranks.run(2, "score_layouts.of", folder, [f"{layout}:tiny" for layout in MORE])
    ranks.run(4, "score_layouts.of", folder, [f"{layout}:tiny" for layout in FOUR])
    return folder


def found(folder: Path, layout: str, name: str) -> dict:
    return torch.load(folder / f"{layout}.{name}.pt", weights_only=False)


def same_scores(one: dict, many: dict, step: int, bound: float = 1e-5) -> None:
    ours, theirs = one["scores"][step], many["scores"][step]
    assert theirs.keys() == ours.keys() and len(ours) == 13
    for pair, scores in ours.items():
        assert theirs[pair] == pytest.approx(scores, abs=bound)
    assert torch.tensor(list(ours.values())).std() > 0.05


def assert_same_training(folder: Path, layout: str) -> None:
    one, rounded, many = (found(folder, which, "tiny") for which in ("one", "rounded", layout))
    for step in range(3):
        same_scores(one, many, step, 1e-5 if step == 0 else 5e-5)  # an update makes much of rounding
        assert many["loss"][step].keys() == one["loss"][step].keys() == {"loss"}
        assert many["loss"][step]["loss"] == pytest.approx(one["loss"][step]["loss"], abs=2e-6)
        assert many["norm"][step] == pytest.approx(one["norm"][step], rel=1e-6 if step == 0 else 5e-6)
        same_gradients(one, many, rounded, step)
        assert one["gradients"][step]["score.weight"].any()
        ours, theirs = one["experts"][step].layers, many["experts"][step].layers
        assert list(theirs) == list(ours) == ["1", "2", "3"]
        assert all(theirs[layer].load == ours[layer].load for layer in ours)
    same_weights(one, many, rounded)
    assert many["rewards"] == pytest.approx(one["rewards"], abs=1e-5)


@pytest.mark.parametrize("layout", TINY)
def test_two_ranks_equal_one(folder: Path, layout: str):
    assert_same_training(folder, layout)


def test_a_checkpoint_of_two_ranks_is_loaded_by_one(folder: Path):
    weights = torch.load(folder / "loaded.pt", weights_only=False)
    assert sorted(weights) == sorted(TINY)
    for layout, loaded in weights.items():
        saved = found(folder, layout, "tiny")["weights"]
        assert loaded.keys() == saved.keys() and "score.weight" in saved
        assert all(torch.equal(loaded[n], t) for n, t in saved.items()), layout


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*MORE, *FOUR])
def test_more_layouts_equal_one(more: Path, layout: str):
    assert_same_training(more, layout)


@pytest.mark.parametrize(("name", "layout"), OF_BEGUN)
def test_a_head_begun_on_a_tied_language_model(folder: Path, name: str, layout: str):
    one, two = found(folder, "one", name), found(folder, layout, name)
    assert two["rewards"] == pytest.approx(one["rewards"], abs=1e-5)
    assert max(one["rewards"]) - min(one["rewards"]) > 0.1
    if "ep" in layout:  # a dense reward model beside a policy with experts
        assert two.keys() == {"rewards"}
        return
    same_scores(one, two, 0)
    assert two["loss"][0]["loss"] == pytest.approx(one["loss"][0]["loss"], abs=2e-6)
    assert two["norm"][0] == pytest.approx(one["norm"][0], rel=1e-6)
    for n, gradient in one["gradients"][0].items():
        assert (two["gradients"][0][n] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), n


@pytest.mark.parametrize("name", BEGUN)
def test_the_last_stage_has_the_head_and_no_embedding(folder: Path, name: str):
    """Of a tied language model it would hold a copy of the embedding, and with MTP layers one more."""
    embedding, head = "embedding.word_embeddings.weight", "score_head.weight"
    first, last = found(folder, "pp=2", name)["held"]
    assert embedding in first and head not in first
    assert head in last and embedding not in last
    ((*all_of_one,),) = found(folder, "one", name)["held"]
    assert sorted([*first, *last]) == all_of_one
    assert not [n for n in all_of_one if n.startswith(("mtp.", "output_layer."))]
