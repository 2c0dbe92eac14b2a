"""Losses of reward models against numbers worked by hand, closed forms of their gradients, and extreme scores."""

import math

import pytest
import torch

from r1mega.algos.preference import pairwise_loss, pointwise_loss, shares

LN2, LN3 = math.log(2.0), math.log(3.0)


def pairs(scores, margins, tokens):
    """Fields of pairs that weigh alike, as a mini-batch's documents have them."""
    num = len(scores) // 2
    fields = {"weight": [1 / num] * 2 * num, "margin": [m for m in margins for _ in (0, 1)], "tokens": tokens}
    doc = torch.arange(num).repeat_interleave(2)
    leaf = torch.tensor(scores, dtype=torch.float32, requires_grad=True)
    return leaf, {name: torch.tensor(of, dtype=torch.float32) for name, of in fields.items()}, doc


def test_pairs_by_hand():
    # Differences ln 3, 0, -ln 3 and ln 3 with a margin of ln 3: sigmoids 3/4, 1/2, 1/4 and, with the margin, 1/2.
    scores, fields, doc = pairs(
        [1 + LN3, 1.0, -2.0, -2.0, 0.0, LN3, LN3, 0.0], [0, 0, 0, LN3], [5, 9, 7, 7, 3, 8, 9, 2]
    )
    loss, metrics = pairwise_loss(scores, fields, doc)
    assert loss.item() == pytest.approx((math.log(4 / 3) + LN2 + math.log(4) + LN2) / 4)
    found = {name: float(value) for name, value in metrics.items()}
    assert found["accuracy"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found["margin/mean"] == pytest.approx((LN3 + 0 - LN3 + LN3) / 4)
    assert found["brier"] == pytest.approx((1 / 16 + 1 / 4 + 9 / 16 + 1 / 16) / 4)
    # The rejected answer is the longer one of the first and the third pair, the shorter one of the last.
    assert shares(found) == pytest.approx(
        {
            "accuracy": 2.5 / 4, "margin/mean": LN3 / 4, "brier": found["brier"],
            "accuracy/longer_worse": 0.5, "pairs/longer_worse": 0.5,
            "accuracy/longer_better": 1.0, "pairs/longer_better": 0.25,
        }
    )  # fmt: skip


def test_gradients_of_pairs_are_the_closed_form():
    # d/ds of -w log sigmoid(d - m) is -w sigmoid(m - d) for the chosen one and its opposite for the other.
    scores, fields, doc = pairs([0.3, -1.0, 2.0, 2.5], [0.0, 0.7], [1, 1, 1, 1])
    pairwise_loss(scores, fields, doc)[0].backward()
    pull = [1 / (1 + math.exp(1.3)) / 2, 1 / (1 + math.exp(-0.5 - 0.7)) / 2]
    assert scores.grad.tolist() == pytest.approx([-pull[0], pull[0], -pull[1], pull[1]])


def test_gradients_of_answers_are_the_closed_form():
    # d/ds of the cross-entropy is w (sigmoid(s) - label).
    scores = torch.tensor([0.4, -2.0, 1.5], requires_grad=True)
    fields = {"safe": [1.0, 1.0, 0.0], "weight": [0.5, 0.2, 0.3], "share": [1 / 3] * 3}
    loss, _ = pointwise_loss(scores, {n: torch.tensor(v) for n, v in fields.items()}, torch.arange(3))
    loss.backward()
    want = [
        w * (1 / (1 + math.exp(-s)) - y)
        for w, s, y in zip(fields["weight"], [0.4, -2.0, 1.5], [1, 1, 0], strict=True)
    ]
    assert scores.grad.tolist() == pytest.approx(want)


def test_answers_by_hand():
    # Safe at ln 3 (3/4), unsafe at ln 3 (1/4 for its label), unsafe at -ln 3 (3/4), unsafe at 0 (1/2).
    scores = torch.tensor([LN3, LN3, -LN3, 0.0])
    fields = {"safe": [1.0, 0.0, 0.0, 0.0], "weight": [0.5, 1 / 6, 1 / 6, 1 / 6], "share": [0.25] * 4}
    loss, metrics = pointwise_loss(scores, {n: torch.tensor(v) for n, v in fields.items()}, torch.arange(4))
    assert loss.item() == pytest.approx(math.log(4 / 3) / 2 + (math.log(4) + math.log(4 / 3) + LN2) / 6)
    found = shares({name: float(value) for name, value in metrics.items()})
    assert found == pytest.approx(
        {
            "accuracy": 2.5 / 4, "brier": (1 / 16 + 9 / 16 + 1 / 16 + 1 / 4) / 4,
            "accuracy/safe": 1.0, "answers/safe": 0.25, "accuracy/unsafe": 0.5, "answers/unsafe": 0.75,
        }
    )  # fmt: skip


@pytest.mark.parametrize("far", [60.0, 1e4, 1e30])
def test_extreme_scores_are_neither_infinite_nor_lost(far: float):
    scores, fields, doc = pairs([0.0, far, far, 0.0], [0, 0], [1, 1, 1, 1])
    loss, metrics = pairwise_loss(scores, fields, doc)
    loss.backward()
    assert loss.item() == pytest.approx(far / 2)  # of a pair that is wrong by `far`, and of one that is right
    assert scores.grad.tolist() == pytest.approx([-0.5, 0.5, 0.0, 0.0], abs=1e-20)
    assert all(math.isfinite(value) for value in metrics.values())
    label = {"safe": torch.zeros(1), "weight": torch.ones(1), "share": torch.ones(1)}
    assert float(pointwise_loss(torch.tensor([far]), label, torch.zeros(1))[0]) == pytest.approx(far)


def test_parts_of_a_mini_batch_add_up_to_the_whole():
    scores, fields, doc = pairs([0.3, -1.0, 2.0, 2.5, 1.0, 0.0], [0.1, 0, 0.3], [4, 2, 3, 5, 6, 6])
    whole, metrics = pairwise_loss(scores, fields, doc)
    cut = slice(0, 4), slice(4, 6), slice(6, 6)
    parts = [pairwise_loss(scores[c], {n: v[c] for n, v in fields.items()}, doc[c]) for c in cut]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item())
    for name, value in metrics.items():
        assert float(sum(of[name] for _, of in parts)) == pytest.approx(float(value)), name


def test_a_text_that_has_lost_its_other_one_is_refused():
    scores, fields, doc = pairs([0.3, -1.0, 2.0, 2.5], [0, 0], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="two texts"):
        pairwise_loss(scores[:3], {n: v[:3] for n, v in fields.items()}, doc[:3])
    with pytest.raises(ValueError, match="two texts"):
        pairwise_loss(scores, fields, torch.tensor([0, 1, 1, 2]))


def test_a_share_of_nothing_is_absent():
    found = shares({"loss": 0.5, "accuracy": 1.0, "accuracy/longer_worse": 0.0, "pairs/longer_worse": 0.0})
    assert found == {"loss": 0.5, "accuracy": 1.0, "pairs/longer_worse": 0.0}
