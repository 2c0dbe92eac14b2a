"""Packed documents train as they do one by one: loss and gradient, for both families, with several turns learnt."""

import random

import pytest
import torch
from rounding import LAST_BITS, LOSS, furthest, last_bits, with_last_bits
from sft_data import TINY
from trainer_data import nll

from r1mega.errors import DataError
from r1mega.families.registry import read_model
from r1mega.samples import Document

LENGTHS = (64, 40, 24, 30, 20, 14, 17)
"""The first fills a chunk of 64, the next two and the three after them do so together."""


def conversations() -> list[Document]:
    """Two turns learnt of each, the second up to its end."""
    rng = random.Random(5)
    drafts = [
        Document(tuple(rng.randrange(3, 384) for _ in range(length)), spans=((3, length // 3), (length // 2, length)))
        for length in LENGTHS
    ]
    total = sum(d.num_targets for d in drafts)
    return [Document(d.token_ids, fields={"weight": (1 / total,) * d.num_targets}, spans=d.spans) for d in drafts]


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
        make_policy().logprobs([Document((1,) * 8, spans=spans)], temperature=1.0)
