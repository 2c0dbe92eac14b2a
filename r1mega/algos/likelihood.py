"""The next-token loss of pretraining and SFT: weighted negative log-likelihood."""

from collections.abc import Mapping

from torch import Tensor


def likelihood_loss(logp: Tensor, fields: Mapping[str, Tensor], doc: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the target tokens.

    Args:
        logp: [T] fp32 with gradient, log-probabilities of the target tokens.
        fields: `weight` [T], normalised over the whole mini-batch (1 / number of its targets).
        doc: [T], unused: every token counts alone.

    Returns:
        (loss, metrics): the scalar loss in nats per token once summed over micro-batches; no extra metrics.
    """
    del doc
    return -(fields["weight"] * logp).sum(), {}
