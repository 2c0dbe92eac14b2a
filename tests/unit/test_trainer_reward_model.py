"""A reward model beside the trainer: a policy's scores from its folder, its weights once in memory, lent and back."""

import gc
import json
import math

import pytest
import torch
from score_models import bradley_terry, make_pairs, texts_of
from sft_data import TINY
from trainer_data import make_documents

from r1mega.buffers import Int32s
from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch
from r1mega.errors import ConfigError, DataError
from r1mega.families.registry import read_model
from r1mega.families.score_head import with_score_head
from r1mega.families.spec import Kind
from r1mega.layout.laws import model_faults
from r1mega.layout.placement import held, layout_for, stage_contents, tiling_faults
from r1mega.samples import Document


@pytest.fixture(scope="module")
def policy(make_policy):
    policy = make_policy(spec=with_score_head(read_model(TINY / "deepseek_v3.json")), expert_bias_rate=0.05)
    for _ in range(2):
        policy.forward_backward(make_pairs(6, 3), bradley_terry)
        policy.optim_step(1e-2)
    return policy


@pytest.fixture(scope="module")
def folder(policy, tmp_path_factory):
    from r1mega.weights.hf_io import export

    to = tmp_path_factory.mktemp("reward") / "hf"
    export(policy, to, None)
    return to


@pytest.fixture(scope="module")
def documents():
    return [Document.of_texts([Int32s(ids)]) for ids in texts_of(make_pairs(8, 5))]


@pytest.fixture
def make(mesh, folder):
    from r1mega.trainer.reward_model import RewardModel

    return lambda folder=folder, **changes: RewardModel(folder, mesh, **{"chunk_tokens": 64, **changes})


def test_it_scores_as_the_policy_that_was_exported(make, policy, documents):
    want = [float(value) for (value,) in policy.scores(documents)]
    assert make(chunks_per_micro_batch=32).score(documents) == want  # as the policy computes: in every bit
    other = make(chunk_tokens=32)
    assert other.score(documents) == pytest.approx(want, abs=1e-5)
    assert other.score(documents[::-1])[::-1] == pytest.approx(want, abs=1e-5)
    assert max(want) - min(want) > 0.1


def test_an_answer_longer_than_a_chunk_is_scored_all_the_same(make, documents):
    long = [Document.of_texts([Int32s(range(3, 3 + length))]) for length in (65, 150)]
    (short, *_), want = make().score(documents), make(chunk_tokens=256).score([*documents, *long])
    for at_once in (1, 2):
        found = make(chunks_per_micro_batch=at_once).score([*documents, *long])
        assert found == pytest.approx(want, abs=1e-5)
    assert short == pytest.approx(want[0], abs=1e-5)


def test_scoring_changes_nothing(make, documents):
    model = make()
    before, random_state = {n: t.clone() for n, t in model.state().items()}, torch.get_rng_state()
    assert model.score(documents) == model.score(documents)
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state().items())
    assert not any(p.requires_grad or p.grad is not None for x in model.networks for p in x.parameters())


def held_bytes() -> int:
    """Of all tensors that live, each storage once; their gradients' too."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    return sum({s.data_ptr(): s.size() for s in (t.untyped_storage() for t in tensors)}.values())


def test_its_weights_once_are_all_that_it_takes(make, documents):
    make().score(documents)  # whatever libraries keep from the first time on
    before = held_bytes()
    model = make()
    own = sum(math.prod(row.shape) for row in model.spec.tensors() if row.kind is not Kind.COPY) * 4
    assert own <= held_bytes() - before <= 1.01 * own
    model.score(documents)
    assert held_bytes() - before <= 1.01 * own


def test_a_loan_comes_and_goes_bit_for_bit(make, documents):
    """What a GPU does, between two parts of the host's memory."""
    from r1mega.trainer.offload import Loan

    model = make()
    want, state = model.score(documents), {n: t.clone() for n, t in model.state().items()}
    loan = Loan(model._tensors())
    own = sum(t.nbytes for t in state.values())
    assert own <= loan.num_bytes <= own + 1024  # routers have counters too
    assert all(t.untyped_storage().size() == 0 for t in model.state().values())
    model._loan = loan
    for _ in range(2):
        assert model.score(documents) == want
        assert all(t.untyped_storage().size() == 0 for t in model.state().values())
    with pytest.raises(DataError, match="document 0: 2 texts"):
        model.score(make_pairs(1, 0))
    with loan.here():
        assert all(torch.equal(t, state[n]) for n, t in model.state().items())


def test_another_kind_of_model_or_document_is_refused(make, documents):
    with pytest.raises(ConfigError, match=r"a language model \(DeepseekV3ForCausalLM\), which gives no scores"):
        make(TINY.parent / "models/DeepSeek-V3-Base")
    with pytest.raises(DataError, match="document 0: is not scored"):
        make().score(make_documents(1, 0))
    with pytest.raises(DataError, match="document 1: 2 texts"):
        make().score([documents[0], *make_pairs(1, 0)])


def test_a_layout_that_does_not_hold_it_is_named(mesh, folder):
    from dataclasses import replace

    from r1mega.trainer.reward_model import RewardModel

    with pytest.raises(ConfigError, match=rf"reward model {folder}: .*\n.*tp = 3 does not divide"):
        RewardModel(folder, replace(mesh, layout=TrainerLayout(tp=3)), 64)


@pytest.mark.parametrize(
    ("name", "layout", "pipeline"),
    [
        ("deepseek_v3", {"pp": 2, "pipeline": "Et|ttmL"}, "Ett|tL"),
        ("deepseek_v3", {"pp": 3, "pipeline": "Et|t|tmL"}, "Et|t|tL"),
        ("qwen2", {"pp": 2, "vpp": 2, "pipeline": "Et|tt|t|mL"}, "Et|t|t|L"),  # 3 layers on 4 stages
        ("qwen2", {"dp": 2, "ep": 2, "dispatcher": "alltoall"}, "EtttL"),
        ("deepseek_v3", {"dp": 2, "ep": 2, "dispatcher": "alltoall"}, "EtttL"),
    ],
)
def test_the_trainers_ranks_hold_another_model(name, layout, pipeline):
    spec = with_score_head(read_model(TINY / f"{name}.json"))
    own = layout_for(spec, TrainerLayout.model_validate(layout))
    assert "|".join(stage_contents(spec, own)) == pipeline and own.ranks == TrainerLayout.model_validate(layout).ranks
    assert (own.ep, own.dispatcher) == ((2, "alltoall") if spec.moe and "ep" in layout else (1, None))
    faults = model_faults(spec, own, Batch(chunk_tokens=64))
    if "vpp" in layout:
        assert faults and "3 layers" in faults[0]
        return
    assert faults == []
    pieces = list(held(spec, own))
    assert tiling_faults(spec, own, pieces) == []
    assert "score_head.weight" in {p.row.megatron for p in dict(pieces)[own.ranks - 1]}


def test_a_folder_that_lacks_weights_is_refused(make, folder, tmp_path):
    from r1mega.errors import WeightMappingError

    fields = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 4}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(WeightMappingError, match=r"model\.layers\.3\.input_layernorm\.weight: missing"):
        make(tmp_path)
