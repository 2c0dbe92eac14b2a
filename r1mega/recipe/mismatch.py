"""The laws between bounds on engine against trainer and the number formats that the two compute in."""

from collections.abc import Sequence

from r1mega.diagnostics.settings import Mismatch


def mismatch_faults(settings: Mismatch, roundings: Sequence[str]) -> list[str]:
    """Bounds that are stated and do not hold on a machine.

    Args:
        roundings: its settings below fp32 (`Cluster.roundings`).
    """
    stated = settings.model_fields_set
    if roundings:
        return [
            f"mismatch.{name}: bounds single tokens, which {' and '.join(roundings)} may put apart by any amount, so "
            "it would stop a sound run; leave it out, and set mismatch.mean and mismatch.kl where their defaults do "
            "not do"
            for name in ("max_abs", "tie_margin")
            if name in stated
        ]
    return [
        f"mismatch.{name}: is of rollouts whose engine or trainer computes in bf16 or fp8; here both compute in "
        "fp32, where mismatch.max_abs bounds every token; leave it out"
        for name in ("mean", "kl", "window", "alpha")
        if name in stated
    ]
