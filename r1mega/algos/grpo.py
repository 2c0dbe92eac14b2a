"""The GRPO objective, report Eq. 1-2, as a loss to minimise.

    J = mean_i [ min(rho_i A_i, clip(rho_i, 1 - eps_low, 1 + eps_high) A_i) - beta KL(pi || pi_ref) ]

Deviations, each a named choice of the caller: Eq. 1 writes one ratio per output, the default here is the token
ratio inside a mean over the output's tokens (`ratio`, `reduction`). Denominators belong to the whole mini-batch
and arrive as per-token weights (`token_weights`), so the losses of micro-batches add up to the mini-batch's loss.

Shapes: T target tokens of a micro-batch, D documents (outputs) in it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from r1mega.algos.kl import Estimator, kl_per_token
from r1mega.buffers import Float32s
from r1mega.samples import Document, Sample

Ratio = Literal["token", "sequence", "sequence_mean"]
Reduction = Literal["sequence_mean", "token_mean", "fixed_length"]


def token_weights(lengths: Sequence[int], reduction: Reduction, *, max_length: int) -> list[float]:
    """The weight of every token of each output in a mini-batch.

    Args:
        lengths: |o_i| in tokens of every output in the whole mini-batch, over all micro-batches and ranks; none on a
            rank that does not hold the rollout.
        reduction: "sequence_mean" 1 / (N |o_i|) (Eq. 1); "token_mean" 1 / sum |o_i| (DAPO); "fixed_length"
            1 / (N max_length) (Dr.GRPO).
        max_length: length limit of an answer in tokens; used by "fixed_length".

    Returns:
        One weight per output; each holds for all of its tokens.
    """
    if not lengths:
        return []
    num_outputs, num_tokens = len(lengths), sum(lengths)
    if reduction == "sequence_mean":
        return [1.0 / (num_outputs * length) for length in lengths]
    if reduction == "token_mean":
        return [1.0 / num_tokens] * num_outputs
    return [1.0 / (num_outputs * max_length)] * num_outputs


def split_at_random(samples: Sequence[Sample], num_minibatches: int, rng: random.Random) -> list[list[Sample]]:
    """A rollout's outputs shuffled into mini-batches whose sizes differ by at most one."""
    shuffled = rng.sample(samples, len(samples))
    return [shuffled[i::num_minibatches] for i in range(num_minibatches)]


def weighted(samples: Sequence[Sample], reduction: Reduction, *, max_length: int) -> list[Sample]:
    """The samples of a whole mini-batch, over all ranks, with the weights of their tokens.

    Args:
        samples: every output of the mini-batch.
        reduction: see `token_weights`.
        max_length: length limit of an answer in tokens.
    """
    weights = token_weights([len(s.completion_ids) for s in samples], reduction, max_length=max_length)
    return [replace(s, weight=w) for s, w in zip(samples, weights, strict=True)]


def documents(samples: Sequence[Sample]) -> list[Document]:
    """A rank's samples as training documents, each target token with the fields of `GRPOLoss`.

    Args:
        samples: with weight and old_logp attached, and ref_logp where there is a KL term.
    """
    made: list[Document] = []
    for sample in samples:
        length = len(sample.completion_ids)
        fields = {
            "weight": Float32s.repeated(sample.weight, length),
            "adv": Float32s.repeated(sample.adv, length),
            "old_logp": sample.old_logp,
            "behaviour_logp": sample.behaviour_logp,
        }
        if sample.ref_logp:
            fields["ref_logp"] = sample.ref_logp
        made.append(Document(sample.prompt_ids + sample.completion_ids, len(sample.prompt_ids), fields))
    return made


@dataclass(frozen=True)
class GRPOLoss:
    """Eq. 1-2 on one micro-batch; call it with the policy's logprobs.

    Fields per token: `weight`, `adv` (A_i), `old_logp`; `ref_logp` where kl_coef > 0; `behaviour_logp` where
    `importance_cap` is set.
    """

    clip_low: float
    clip_high: float
    kl_coef: float
    kl_estimator: Estimator = "k3"
    ratio: Ratio = "token"
    importance_cap: float | None = None
    """Truncated importance sampling from engine to trainer: weight tokens by min(pi_old / pi_behaviour, cap)."""

    def __call__(self, logp: Tensor, fields: Mapping[str, Tensor], doc: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and sums for logging.

        Args:
            logp: [T] fp32 with gradient, log pi of the target tokens at the sampling temperature.
            fields: per-token tensors [T] named above.
            doc: [T] int64, index of each token's document.

        Returns:
            (loss, metrics): the scalar loss, already normalised over the mini-batch; and scalars to be summed over
            micro-batches, after which `kl/mean`, `clip_fraction` and `ratio/mean` are means over the mini-batch's
            tokens with the weights of the loss, and `policy_loss` is the loss without the KL term.
        """
        weight, adv = fields["weight"], fields["adv"]
        log_ratio = _log_ratio(logp, fields["old_logp"], doc, self.ratio)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        surrogate = torch.minimum(ratio * adv, clipped * adv)
        token_weight = weight
        if self.importance_cap is not None:
            shift = (fields["old_logp"] - fields["behaviour_logp"]).exp()
            token_weight = weight * shift.clamp(max=self.importance_cap)
        policy_loss = -(token_weight * surrogate).sum()
        metrics = {
            "policy_loss": policy_loss.detach(),
            # Clipped: the bound is active for this token, so its surrogate has no gradient.
            "clip_fraction": (weight * (clipped * adv < ratio * adv)).sum().detach(),
            "ratio/mean": (weight * ratio).sum().detach(),
        }
        if self.kl_coef == 0.0:
            return policy_loss, metrics
        kl = kl_per_token(logp, fields["ref_logp"], ratio, self.kl_estimator)
        metrics["kl/mean"] = (weight * kl).sum().detach()
        return policy_loss + self.kl_coef * (token_weight * kl).sum(), metrics


def _log_ratio(logp: Tensor, old_logp: Tensor, doc: Tensor, kind: Ratio) -> Tensor:
    """[T] log rho of each token: its own, or its output's sum or mean."""
    log_ratio = logp - old_logp
    if kind == "token":
        return log_ratio
    num_docs = int(doc.max()) + 1 if doc.numel() else 0
    total = torch.zeros(num_docs, dtype=log_ratio.dtype, device=log_ratio.device).index_add(0, doc, log_ratio)
    if kind == "sequence_mean":
        total = total / torch.bincount(doc, minlength=num_docs).clamp(min=1)
    return total[doc]
