"""Group-relative advantages, report Eq. 3: A_i = (r_i - mean(r)) / std(r) over the G answers to one question.

A constant group is max == min, not std == 0: in floating point sixteen rewards of 0.1 have a non-zero standard
deviation and a spurious advantage of -0.42. Its advantages are exactly 0.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from r1mega.samples import Group, Sample

Std = Literal["population", "sample", "none"]
ConstantGroups = Literal["keep", "drop"]


def is_constant(rewards: Sequence[float]) -> bool:
    """Whether the group carries no preference at all."""
    return max(rewards) == min(rewards)


def group_advantages(rewards: Sequence[float], *, std: Std = "population") -> list[float]:
    """Eq. 3 for the scored answers of one group.

    Args:
        rewards: one reward per scored answer (unscorable and failed ones are not in the baseline).
        std: "population" divides the variance by G, "sample" by G - 1, "none" leaves the division out (Dr.GRPO).

    Returns:
        One advantage per reward, computed in double precision.

    Raises:
        ValueError: fewer than two rewards make no group.
    """
    if len(rewards) < 2:
        raise ValueError(f"a group needs at least two scored answers, got {len(rewards)}")
    if is_constant(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [r - mean for r in rewards]
    if std == "none":
        return centred
    divisor = len(rewards) if std == "population" else len(rewards) - 1
    scale = math.sqrt(math.fsum(c * c for c in centred) / divisor)
    return [c / scale for c in centred]


def samples_from_groups(groups: Iterable[Group], *, std: Std, constant_groups: ConstantGroups) -> list[Sample]:
    """What the trainer learns from: every scored completion with its advantage.

    Unscorable and failed completions enter neither the baseline nor the batch; a group left with fewer than two
    scored ones is dropped, since it has no baseline.

    Args:
        groups: completions with their verdicts.
        std: see `group_advantages`.
        constant_groups: "keep" leaves groups without preference in the batch (advantage 0, so they count in the
            denominators and carry the KL term); "drop" takes them out.
    """
    samples: list[Sample] = []
    for group in groups:
        scored = [(c, v.reward) for c, v in zip(group.completions, group.verdicts, strict=True) if v.scored]
        rewards = [reward for _, reward in scored]
        if len(scored) < 2 or (constant_groups == "drop" and is_constant(rewards)):
            continue
        for (completion, _), adv in zip(scored, group_advantages(rewards, std=std), strict=True):
            samples.append(
                Sample(
                    prompt_ids=group.prompt.token_ids,
                    completion_ids=completion.token_ids,
                    adv=adv,
                    behaviour_logp=completion.logp,
                )
            )
    return samples
