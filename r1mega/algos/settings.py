"""Settings of the objective: every choice that Eq. 1-3 leave open, by name. Imports pydantic alone."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from r1mega.config.section import Section


def _not_k1(name: object) -> object:
    if name == "k1":
        raise ValueError(
            "is no choice here: the gradient of log(pi/ref) does not depend on the reference, so it would hold "
            "nothing near it; k2 has the gradient that k1 is taken for, k3 is the report's"
        )
    return name


class Objective(Section):
    """Eq. 1-3 with every choice that the equations leave open, by name."""

    group_size: int = Field(ge=2)
    """G: answers per question."""
    ratio: Literal["token", "sequence", "sequence_mean"] = "token"
    """token: pi/pi_old per token (every known implementation); sequence: Eq. 1 to the letter, one product per
    output; sequence_mean: the output's geometric mean (GSPO)."""
    reduction: Literal["sequence_mean", "token_mean", "fixed_length"] = "sequence_mean"
    """sequence_mean: mean over an output's tokens, then over outputs (Eq. 1, DeepSeekMath); token_mean: over all
    tokens (DAPO); fixed_length: token sum / (outputs x max_new_tokens) (Dr.GRPO)."""
    clip_low: float = Field(default=0.2, ge=0)
    """Lower bound of the ratio is 1 - clip_low; at or above 1 it never clips."""
    clip_high: float = Field(default=0.2, ge=0)
    """Upper bound of the ratio is 1 + clip_high. The report's reasoning RL has eps = 10: bound at 11."""
    kl_coef: float = Field(default=0.001, ge=0)
    """beta. 0 needs no reference model and runs none."""
    kl_estimator: Annotated[Literal["k2", "k3", "k3_weighted"], BeforeValidator(_not_k1)] = "k3"
    """k3 is Eq. 2; k3_weighted multiplies it by pi/pi_old, which is unbiased on samples of an older policy; k2 has
    the gradient of the KL itself where samples are the policy's own."""
    reference_refresh_steps: int = Field(default=400, ge=0)
    """Optimiser steps after which the reference becomes the current policy (report: 400); 0 never."""
    std: Literal["population", "sample", "none"] = "population"
    """Whether std(r) of Eq. 3 divides by G, by G - 1, or is left out (Dr.GRPO)."""
    constant_groups: Literal["keep", "drop"] = "keep"
    """A group whose rewards are all equal has advantage 0 exactly. keep: its tokens still count in the
    denominators and carry the KL term; drop: it leaves the batch."""
    truncated: Literal["zero", "mask", "judge"] = "zero"
    """An answer cut at the limit: scores 0; or is left out of the baseline and the loss; or is judged as it is."""
    mtp: Literal["off", "detached", "joint"] = "off"
    """off: the MTP layer is neither run nor trained; detached: it learns the sampled tokens from a detached trunk;
    joint: its loss reaches the trunk, as in pretraining."""
    mtp_loss_weight: float = Field(default=0.1, ge=0)
    expert_bias: Literal["frozen", "update"] = "frozen"
    """Whether the router's load-balancing bias moves at each optimiser step in RL."""
    expert_bias_rate: float = Field(default=0.001, ge=0)
    importance: Literal["none", "truncated"] | None = None
    """Correction from engine to trainer: truncated multiplies each token's loss by
    min(pi_old / pi_behaviour, importance_cap) (TIS). None: truncated where trainer or engine compute in bf16 or fp8,
    none where both compute in fp32; config.json has which it is."""
    importance_cap: float = Field(default=2.0, gt=0)
