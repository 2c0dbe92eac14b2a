"""What a reward model learns from: pairs of answers (report 2.3.4, helpfulness) or labelled ones (harmlessness).

Pairwise is Bradley-Terry: P(chosen > rejected) = sigmoid(s_chosen - s_rejected). A margin asks for a larger
difference where the judge saw one (Llama 2, Eq. 2). Pointwise is binary cross-entropy: P(safe) = sigmoid(s).

Weights hold the denominators of the whole mini-batch, so the losses of micro-batches and ranks add up to its loss.
The metrics are sums of the same kind; `shares` makes figures of them.

Shapes: T texts of a micro-batch. A pair is two of them that stand side by side, the chosen one first.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

WORSE_LONGER, WORSE_SHORTER = "longer_worse", "longer_better"


def pairwise_loss(scores: Tensor, fields: Mapping[str, Tensor], doc: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """-log sigmoid(s_chosen - s_rejected - margin), weighted.

    Args:
        scores: [T] fp32 with gradient; of each pair the chosen answer's, then the rejected one's.
        fields: `weight` [T], one over the pairs of the whole mini-batch, the same on both of a pair; `margin` [T],
            on both of a pair, 0 where none is asked for; `tokens` [T], of each answer.
        doc: [T] int64, the same of the two of a pair.

    Returns:
        (loss, metrics): the scalar loss in nats a pair; and scalars to be summed over micro-batches, after which
        `accuracy` is the share of pairs whose chosen answer has the higher score (equal ones count half),
        `margin/mean` the mean of s_chosen - s_rejected, `brier` the mean of (1 - sigmoid of that) squared, and
        `accuracy/longer_worse`, `pairs/longer_worse` (the rejected answer has more tokens) and the same of
        longer_better are shares of all pairs; the margin counts in the loss alone.

    Raises:
        ValueError: a text without the other one of its pair.
    """
    if len(scores) % 2 or not torch.equal(doc[::2], doc[1::2]):
        raise ValueError("pairs: every document must have two texts, in one micro-batch, side by side")
    weight, margin, tokens = fields["weight"][::2], fields["margin"][::2], fields["tokens"]
    difference = scores[::2] - scores[1::2]
    loss = -(weight * logsigmoid(difference - margin)).sum()
    found = difference.detach()
    right = weight * _above(found)
    worse, better = tokens[1::2] > tokens[::2], tokens[1::2] < tokens[::2]
    return loss, {
        "accuracy": right.sum(),
        "margin/mean": (weight * found).sum(),
        "brier": (weight * torch.sigmoid(-found).square()).sum(),
        f"accuracy/{WORSE_LONGER}": (right * worse).sum(),
        f"pairs/{WORSE_LONGER}": (weight * worse).sum(),
        f"accuracy/{WORSE_SHORTER}": (right * better).sum(),
        f"pairs/{WORSE_SHORTER}": (weight * better).sum(),
    }


def pointwise_loss(scores: Tensor, fields: Mapping[str, Tensor], doc: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy of the labels, weighted: -log sigmoid(s) of a safe answer, -log sigmoid(-s) of another.

    Args:
        scores: [T] fp32 with gradient; above 0 means safe.
        fields: `safe` [T], 1 or 0; `weight` [T], which sum to 1 over the whole mini-batch; `share` [T], one over its
            answers.
        doc: [T], unused: every answer counts alone.

    Returns:
        (loss, metrics): the scalar loss in nats an answer; and scalars to be summed over micro-batches, after which
        `accuracy` is the share of answers on the right side of 0 (on it counts half), `brier` the mean of
        (sigmoid(s) - safe) squared, and `accuracy/safe`, `answers/safe` and the same of unsafe are shares of all
        answers. No balance of the classes counts in the metrics.
    """
    del doc
    safe, share = fields["safe"], fields["share"]
    # The label's side of the score: log sigmoid(s) where it is safe, log sigmoid(-s) where it is not.
    signed = scores * (2.0 * safe - 1.0)
    loss = -(fields["weight"] * logsigmoid(signed)).sum()
    found = signed.detach()
    right = share * _above(found)
    return loss, {
        "accuracy": right.sum(),
        "brier": (share * torch.sigmoid(-found).square()).sum(),
        "accuracy/safe": (right * safe).sum(),
        "answers/safe": (share * safe).sum(),
        "accuracy/unsafe": (right * (1.0 - safe)).sum(),
        "answers/unsafe": (share * (1.0 - safe)).sum(),
    }


def shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics with every `accuracy/NAME` made a mean over its own pairs or answers, absent where there are none.

    Args:
        metrics: sums over micro-batches and ranks; others than those of this file pass through. `pairs/NAME` and
            `answers/NAME` stay shares of the mini-batch.
    """
    found = dict(metrics)
    for name in [n.removeprefix("accuracy/") for n in metrics if n.startswith("accuracy/")]:
        right, of = found.pop(f"accuracy/{name}"), metrics.get(f"pairs/{name}", metrics.get(f"answers/{name}", 0.0))
        if of > 0:
            found[f"accuracy/{name}"] = min(right / of, 1.0)  # rounding of fp32 sums
    return found


def _above(difference: Tensor) -> Tensor:
    """1 above 0, 1/2 at 0, 0 below."""
    return (difference > 0).to(difference.dtype) + 0.5 * (difference == 0)
