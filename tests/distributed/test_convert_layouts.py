"""A converted folder loads into any layout, and a checkpoint of any layout becomes the same Hugging Face folder.

Of every family, with a vocabulary that two ranks do not divide, heads of their own and tied ones.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from conversion_data import ONE, assert_same, load_all, unique_tensors, write_folder
from family_models import MODELS
from layouts import spec
from rank_pool import Pool

from r1mega.conversion.convert import convert
from r1mega.conversion.verify import verify
from r1mega.families.registry import model_of
from r1mega.formats.torch_dist import read_metadata
from r1mega.layout.sharded import places

SPECS = {"tiny": spec(), **{name: model_of(fields, Path(name)) for name, fields in MODELS.items()}}
EVERY = [("dp=2", "tiny"), ("dp=2,ep=2", "tiny"), ("tp=2,ep=2", "tiny"), ("dp=2", "llama3"), ("dp=2", "qwen2_tied")]
VIRTUAL = "pp=2,vpp=2"
EVERY += [
    (VIRTUAL, "tiny"),
    (f"{VIRTUAL},pipeline=Et|t|t|mL", "deepseek_tied"),
    (f"{VIRTUAL},pipeline=Et||tt|L", "qwen3"),
]
FOUR_RANKS = [("tp=2,dp=2,ep=2,etp=2", "tiny"), ("pp=4,pipeline=Et|ttt|m|L", "tiny")]
EVERY += [(layout, name) for name in SPECS for layout in ("tp=2", "pp=2")]


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    for name, model in SPECS.items():
        write_folder(folder / name / "hf", model, unique_tensors(model))
        convert(folder / name / "hf", folder / name / "megatron", "megatron", None, ONE)
    run(ranks, 2, folder, EVERY)
    return folder


def run(ranks: Pool, num_ranks: int, folder: Path, tasks: list[tuple[str, str]]) -> None:
    ranks.run(num_ranks, "convert_layouts.of", folder, [f"{layout}:{name}" for layout, name in tasks])


@pytest.mark.slow
def test_four_ranks_have_the_same_folder(ranks: Pool, folder: Path):
    """Experts divided twice over; MTP layers and head on stages of their own."""
    run(ranks, 4, folder, FOUR_RANKS)
    for layout, name in FOUR_RANKS:
        test_every_weight_arrives_and_comes_back(folder, layout, name)


@pytest.mark.parametrize(("layout", "name"), EVERY)
def test_every_weight_arrives_and_comes_back(folder: Path, layout: str, name: str):
    wanted = load_all(folder / name / "hf")
    assert_same(torch.load(folder / name / f"{layout}.pt"), wanted)
    step, out = folder / name / f"step_{layout}", folder / name / f"hf_{layout}"
    convert(step, out, "hf", None, replace(ONE, without_tokenizer=True))
    assert_same(load_all(out), wanted)
    assert verify(step, folder / name / "megatron", None).largest == 0


@pytest.mark.parametrize(("layout", "name"), EVERY)
def test_a_checkpoint_stores_what_the_layout_says(folder: Path, layout: str, name: str):
    """The padded vocabulary of two tensor-parallel ranks included."""
    model = SPECS[name]
    found = places(model.tensors(), tp=2 if "tp=2" in layout else 1)
    stored = read_metadata(folder / name / f"step_{layout}")
    assert {key: t.shape for key, t in stored.items() if "optimizer." not in key} == {
        place.key: place.shape for place in found.values()
    }
    if name != "tiny":
        rows = stored["embedding.word_embeddings.weight"].shape[0]
        assert (model.vocab_size, rows) == (131, 132 if "tp=2" in layout else 131)
