"""Places in a distributed checkpoint: what the pure function says is what Megatron's own sharded_state_dict says."""

import pytest
from conversion_data import tiny_spec

from r1mega.families.spec import Kind, Row
from r1mega.layout.sharded import boxes, extra_states, places


@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None}, {"num_nextn_predict_layers": 0}])
def test_every_place_is_megatrons(make_policy, changes):
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory

    spec = tiny_spec(**changes)
    network = make_policy(spec=spec).network
    state = network.sharded_state_dict(metadata={"singleton_local_shards": False})
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
    table = [row for row in spec.tensors() if row.kind is not Kind.COPY]
    found = places(spec.tensors())
    ours = {
        row.megatron: [
            (found[row.megatron].key, found[row.megatron].shape, offset, sizes)
            for offset, sizes in boxes(row, found[row.megatron])
        ]
        for row in table
    }
    assert ours == theirs
    assert objects <= set(extra_states(spec.tensors()))
    assert any("/shard_7_8" in key for key in objects)


def test_layers_that_are_all_alike_may_be_stacked():
    rows = [
        Row("embedding.word_embeddings.weight", ("e",), ((10, 4),)),
        *(Row(f"decoder.layers.{i}.linear.weight", (f"l{i}",), ((3, 4),)) for i in range(12)),
    ]
    found = places(rows, layers_stacked=True)
    assert found["embedding.word_embeddings.weight"].stacked == 0
    place = found["decoder.layers.11.linear.weight"]
    assert (place.key, place.shape) == ("decoder.layers.linear.weight", (12, 3, 4))
    assert (place.offset, place.sizes) == ((11, 0, 0), (1, 3, 4))
    assert places(rows)["decoder.layers.11.linear.weight"].key == "decoder.layers.11.linear.weight"
