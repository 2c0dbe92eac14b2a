"""Places in a distributed checkpoint: what the pure function says is what Megatron's own sharded_state_dict says."""

import sys
from pathlib import Path

import pytest
from conversion_data import tiny_spec

from r1mega.families.registry import model_of
from r1mega.families.score_head import with_score_head
from r1mega.families.spec import Kind
from r1mega.layout.sharded import boxes, extra_states, places

sys.path.append(str(Path(__file__).parents[1] / "distributed"))
from family_models import MODELS

TINIES = [tiny_spec(), tiny_spec(q_lora_rank=None), tiny_spec(num_nextn_predict_layers=0)]
SCORES = [with_score_head(tiny_spec()), with_score_head(model_of(MODELS["qwen2_tied"], Path("config.json")))]
FAMILIES = [model_of(fields, Path(name)) for name, fields in MODELS.items()]


@pytest.mark.parametrize(
    "model", [*TINIES, *FAMILIES, *SCORES], ids=["tiny", "no_q_lora", "no_mtp", *MODELS, "scores", "qwen2_scores"]
)
def test_every_place_is_megatrons(make_policy, model):
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory

    network = make_policy(spec=model).network
    metadata = {"singleton_local_shards": False, "non_homogeneous_layers": True}
    state = network.sharded_state_dict(metadata=metadata)
    theirs, objects = {}, set()
    for name, shard in state.items():
        if isinstance(shard, ShardedObject):
            objects.add(shard.unique_key)
            continue
        built = shard.build() if isinstance(shard, ShardedTensorFactory) else [shard]
        for part in built:
            assert isinstance(part, ShardedTensor)
            sizes = (1,) * part.prepend_axis_num + tuple(part.local_shape)
            theirs.setdefault(name, []).append((part.key, part.global_shape, tuple(part.global_offset), sizes))
    table = [row for row in model.tensors() if row.kind is not Kind.COPY]
    found = places(model.tensors())
    ours = {
        row.megatron: [
            (found[row.megatron].key, found[row.megatron].shape, offset, sizes)
            for offset, sizes in boxes(row, found[row.megatron])
        ]
        for row in table
    }
    assert ours == theirs
    assert objects <= set(extra_states(model.tensors()))
    has_experts = model.moe is not None and model.num_layers > model.moe.num_dense_layers
    assert any("/shard_7_8" in key for key in objects) is has_experts


def test_a_vocabulary_is_stored_with_the_padding_of_the_ranks():
    """As tests/distributed/test_convert_layouts.py finds it in checkpoints of two ranks."""
    spec = model_of(MODELS["deepseek_tied"], Path("config.json"))
    one, two = places(spec.tensors()), places(spec.tensors(), tp=2)
    embedding = two.pop("embedding.word_embeddings.weight")
    assert (embedding.shape, embedding.sizes) == ((132, 64), (131, 64))
    assert one.pop("embedding.word_embeddings.weight").shape == (131, 64)
    assert one == two


def test_a_single_expert_has_its_axis():
    spec = tiny_spec(n_routed_experts=1, num_experts_per_tok=1, n_group=1, topk_group=1)
    place = places(spec.tensors())["decoder.layers.1.mlp.experts.local_experts.0.linear_fc2.weight"]
    assert (place.shape[0], len(place.shape)) == (1, 3)
    assert "decoder.layers.1.mlp.experts.experts.linear_fc2._extra_state/shard_0_1" in extra_states(spec.tensors())
