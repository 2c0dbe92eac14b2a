"""Estimators of KL(pi || pi_ref) per token, report Eq. 2. Shapes: T tokens."""

from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k2", "k3", "k3_weighted"]
"""k1 = log(pi/ref) is none: as a term of the loss its gradient is that of log pi, whatever the reference is."""


def kl_per_token(logp: Tensor, ref_logp: Tensor, ratio: Tensor, estimator: Estimator = "k3") -> Tensor:
    """KL estimate of each sampled token.

    Args:
        logp: [T] fp32, log pi of the sampled tokens, with gradient.
        ref_logp: [T] fp32, log pi_ref of the same tokens.
        ratio: [T] fp32, pi / pi_old with gradient; used by "k3_weighted" alone.
        estimator: k2 = log(pi/ref)^2 / 2; k3 = ref/pi - log(ref/pi) - 1 (Eq. 2). Both are unbiased or low-bias only
            where the samples come from pi itself: on samples of an older policy k3 is biased, and
            k3_weighted = ratio * k3 corrects it.

    Returns:
        [T] fp32, never negative.
    """
    log_ratio = ref_logp - logp
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    # expm1 keeps the digits that exp(x) - 1 loses near x = 0, where most tokens are.
    k3 = torch.expm1(log_ratio) - log_ratio
    return k3 if estimator == "k3" else ratio * k3
