"""Packed documents train as they do one by one: loss and gradient, for both families, with several turns learnt."""

import json
import math
import random

import pytest
import torch
from rounding import LAST_BITS, LOSS, furthest, last_bits, with_last_bits
from sft_data import TINY
from trainer_data import nll

from r1mega.buffers import Float32s, Int32s
from r1mega.config.training import Batch
from r1mega.errors import DataError
from r1mega.families.deepseek_v3 import read
from r1mega.families.registry import read_model
from r1mega.samples import Document

LENGTHS = (64, 40, 24, 30, 20, 14, 17)
"""The first fills a chunk of 64, the next two and the three after them do so together."""


def conversations() -> list[Document]:
    """Two turns learnt of each, the second up to its end."""
    rng = random.Random(5)
    drafts = [
        Document(
            Int32s(rng.randrange(3, 384) for _ in range(length)), spans=((3, length // 3), (length // 2, length))
        )
        for length in LENGTHS
    ]
    total = sum(d.num_targets for d in drafts)
    return [
        Document(d.token_ids, fields={"weight": Float32s.repeated(1 / total, d.num_targets)}, spans=d.spans)
        for d in drafts
    ]


def gradient(policy) -> torch.Tensor:
    return torch.cat([g.flatten().double() for _, g in sorted(policy.gradients().items())])


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2"])
def test_packed_equals_one_by_one(make_policy, family: str):
    documents = conversations()
    spec = read_model(TINY / f"{family}.json")
    together, apart, moved = (make_policy(spec=spec, chunk_tokens=64) for _ in range(3))
    packed = together.forward_backward(documents, nll)
    alone = [apart.forward_backward([d], nll) for d in documents]
    with_last_bits(moved).forward_backward(documents, nll)
    found, expected = gradient(together), gradient(apart)
    assert packed["loss"] == pytest.approx(sum(one["loss"] for one in alone), rel=LOSS)
    assert packed["targets"] == sum(d.num_targets for d in documents)
    assert expected.norm() > 0.1
    last_bits([found], [gradient(moved)])
    assert (found - expected).norm() <= LAST_BITS * (found - gradient(moved)).norm()


def test_spans_are_the_targets_and_nothing_else_is(make_policy):
    """Where only spans are learnt, a loss on the whole that is masked to them is the same."""
    policy = make_policy(chunk_tokens=64)
    (document,) = conversations()[:1]
    whole = Document(document.token_ids)
    (by_span,), (of_all,) = (policy.logprobs([d], temperature=1.0) for d in (document, whole))
    (moved,) = with_last_bits(policy).logprobs([document], temperature=1.0)
    chosen = [t - 1 for start, stop in document.spans for t in range(start, stop)]
    assert document.num_targets == len(by_span) == len(chosen)
    assert furthest([by_span], [of_all[chosen]]) <= last_bits([by_span], [moved])


@pytest.mark.parametrize("spans", [((0, 2),), ((1, 9),), ((4, 6), (2, 3)), ((2, 5), (4, 6))])
def test_spans_that_are_no_ranges_of_the_document_are_refused(make_policy, spans):
    with pytest.raises(DataError, match="document 0: spans"):
        make_policy().logprobs([Document(Int32s.repeated(1, 8), spans=spans)], temperature=1.0)


def test_padding_is_where_no_document_is_and_not_where_a_token_is_0():
    """A chunk of 8 with documents of 4 and 2 tokens, zeros among them, and a chunk of 7."""
    documents = [Document(Int32s(ids)) for ids in ((0, 5, 0, 7), (9, 0), (0,) * 7)]
    from r1mega.trainer.batch import micro_batches

    batches = micro_batches(documents, Batch(chunk_tokens=8, chunks_per_micro_batch=2), mtp_depths=1)
    (batch,) = batches
    lengths = {7: [False] * 7 + [True], 6: [False] * 6 + [True] * 2}
    assert sorted(batch.padding_mask.tolist()) == sorted(lengths.values())
    # One token ahead there is none behind each document's last.
    ahead = batch.ahead[0].padding.tolist()
    assert sorted(ahead) == sorted([[False] * 6 + [True] * 2, [False] * 3 + [True, False] + [True] * 3])


def test_yarn_scales_the_attention_scores(make_policy):
    """DeepSeek's factor, 0.1 x mscale_all_dim x ln(factor) + 1, twice: on queries and on keys."""
    yarn = {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 0.7,
    }
    spec = read(json.loads((TINY / "deepseek_v3.json").read_text()) | {"rope_scaling": yarn})
    expected = (0.1 * 0.7 * math.log(40) + 1) ** 2 / math.sqrt(
        spec.attention.qk_nope_dim + spec.attention.qk_rope_dim
    )
    attention = make_policy(spec=spec).network.decoder.layers[0].self_attention
    assert attention.core_attention.softmax_scale == pytest.approx(expected)
