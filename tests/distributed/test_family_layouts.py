"""Every family at every layout: transformers' logits, weights that come back bitwise, one rank's gradients.

Random weights in fp32; transformers computes its part in a process of its own. The models differ in what the families
may differ in (`family_models.py`): rope scaling past the original length, no q-LoRA, unequal head sizes, dense layers
beside mixtures of experts, tied heads, and a vocabulary that two ranks do not divide.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_models import MODELS, write
from rank_pool import Pool
from safetensors.torch import load_file

HERE = Path(__file__).parent
TWO_RANKS = {name: ["tp=2", "pp=2", *(["dp=2,ep=2"] if name.startswith("deepseek") else [])] for name in MODELS}
for tied, pipeline in (("deepseek_tied", "Et|t|t|mL"), ("llama_tied", "Et|t|t|L")):
    TWO_RANKS[tied].append(f"pp=2,vpp=2,pipeline={pipeline}")
EVERY = [(name, layout) for name, layouts in TWO_RANKS.items() for layout in ("one", *layouts)]


@pytest.fixture(scope="module")
def folder(ranks: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    for name in MODELS:
        write(name, folder / name)
    # Beside the trainer: one process each.
    command = [sys.executable, "-W", "ignore", str(HERE / "family_reference.py"), str(folder), *MODELS]
    with (folder / "reference.log").open("w") as log:
        reference = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        ranks.run(1, "family_layouts.of", folder, [f":{name}" for name in MODELS])
        several = [f"{layout}:{name}" for name, layouts in TWO_RANKS.items() for layout in layouts]
        ranks.run(2, "family_layouts.of", folder, several)
        code = reference.wait(timeout=1500)
    finally:
        reference.kill()
        reference.wait()
    assert code == 0, (folder / "reference.log").read_text()[-5000:]
    return folder


def found(folder: Path, layout: str, name: str) -> dict:
    return torch.load(folder / f"{layout}.{name}.pt", weights_only=False)


@pytest.mark.parametrize(("name", "layout"), EVERY)
def test_every_logit_equals_transformers(folder: Path, name: str, layout: str):
    """The log-softmax over the whole vocabulary at every position, and no probability left to padding."""
    reference = load_file(folder / f"{name}.reference.safetensors")
    logps = found(folder, layout, name)["logp"]
    assert len(logps) == len(reference) == 3
    for i, logp in enumerate(logps):
        torch.testing.assert_close(logp, reference[str(i)], atol=1e-5, rtol=0)
        torch.testing.assert_close(logp.double().exp().sum(-1), torch.ones(len(logp)).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "layout"), EVERY)
def test_weights_come_back_bitwise(folder: Path, name: str, layout: str):
    exported, before = found(folder, layout, name)["exported"], load_file(folder / name / "model.safetensors")
    assert exported.keys() == before.keys()
    assert all(torch.equal(exported[n], before[n]) for n in before)


@pytest.mark.parametrize(("name", "layout"), [pair for pair in EVERY if pair[1] != "one"])
def test_two_ranks_train_as_one(folder: Path, name: str, layout: str):
    one, two = found(folder, "one", name), found(folder, layout, name)
    for step in range(3):
        assert two["loss"][step] == pytest.approx(one["loss"][step], abs=2e-6)
        assert two["norm"][step] == pytest.approx(one["norm"][step], rel=1e-6)
        ours, theirs = one["gradients"][step], two["gradients"][step]
        assert theirs.keys() == ours.keys()
        for n, gradient in ours.items():
            assert gradient.any() or "e_score_correction_bias" in n
            assert (theirs[n] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), (step, n)


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("tied")])
def test_both_pipeline_stages_keep_the_same_embedding(folder: Path, name: str):
    before = load_file(folder / name / "model.safetensors")["model.embed_tokens.weight"]
    for layout in (layout for layout in TWO_RANKS[name] if layout.startswith("pp=2")):
        first, last = found(folder, layout, name)["embeddings"]
        assert torch.equal(first, last)
        assert not torch.equal(first, before)


@pytest.mark.parametrize("name", MODELS)
def test_padding_of_the_vocabulary_stays_zero(folder: Path, name: str):
    """131 ids on two ranks: the second has a row for none of them, after a step with weight decay too."""
    first, second = found(folder, "tp=2", name)["embeddings"]
    assert first.shape == second.shape == (66, 64)
    assert second[:65].any(-1).all()
    assert not second[65:].any()
