"""What an RL run watches of reward hacking, made of its [hacking] and [rewards], and the laws between them."""

from collections.abc import Mapping

from r1mega.diagnostics.hacking import SYMPTOMS, Watched
from r1mega.diagnostics.settings import Hacking
from r1mega.rewards.reward import Reward, RuleReward


def trained_at(reward: Reward, step: int, num_steps: int) -> bool:
    """Whether the updates of a rollout that is sampled after `step` optimiser steps learn from a reward."""
    return step >= reward.begins(num_steps) and reward.weight.at(step, num_steps) > 0


def watched(settings: Hacking, rewards: Mapping[str, Reward], *, num_steps: int, each: int) -> Watched:
    """What is held against what.

    Args:
        num_steps: optimiser steps of the run.
        each: optimiser steps of a rollout.
    """
    by_models = [name for name, reward in rewards.items() if _given_by_a_model(reward) and reward.weight.largest]
    trained = [name for name in settings.trained or by_models if name in rewards]
    measured = [name for name, reward in rewards.items() if not reward.weight.largest]
    truths = [name for name in settings.truths or measured if name in rewards]
    steps = range(0, num_steps, each)
    rollouts = (sum(trained_at(rewards[name], step, num_steps) for step in steps) for name in trained)
    return Watched(
        {n: tuple(t for t in truths if t != n and _meet(rewards[n], rewards[t])) for n in trained},
        max(rollouts, default=0),
    )


def hacking_faults(settings: Hacking, rewards: Mapping[str, Reward], *, num_steps: int, each: int) -> list[str]:
    """What is wrong with a [hacking] that a config states; arguments as of `watched`."""
    faults: list[str] = []
    known = f"there are {', '.join(rewards)}"
    for setting, names in (("trained", settings.trained), ("truths", settings.truths)):
        unknown = [name for name in names if name not in rewards]
        faults += [f"hacking.{setting}: there is no reward {name!r}: {known}" for name in unknown]
    faults += [
        f"rewards.{name}: hacking calls a figure of its own so; give the reward another name"
        for name in SYMPTOMS
        if name in rewards
    ]
    faults += [
        f"hacking.trained: rewards.{name} has weight 0, so nothing is learnt from it; give it one, or take it out"
        for name in settings.trained
        if name in rewards and not rewards[name].weight.largest
    ]
    for name in settings.truths:
        if name in rewards and rewards[name].weight.largest and _given_by_a_model(rewards[name]):
            weight = rewards[name].weight.largest
            faults.append(
                f"hacking.truths: a model gives rewards.{name}, and it is learnt from (weight {weight:g}), so it may "
                "be hacked itself; take a model of another seed at weight 0, or a rule"
            )
    if faults:
        return faults
    found = watched(settings, rewards, num_steps=num_steps, each=each)
    if not found.truths:
        return [
            "hacking: no reward that is learnt from is given by a model, so there is nothing to watch; name one in "
            "hacking.trained, or take [hacking] out"
        ]
    met = {truth for truths in found.truths.values() for truth in truths}
    for truth in settings.truths:
        if truth not in met:
            faults.append(
                f"hacking.truths: rewards.{truth} judges no answer that {', '.join(found.truths)} "
                f"judge{'s' * (len(found.truths) == 1)}: their domains have nothing in common"
            )
    least = settings.window + settings.patience - 1
    if found.rollouts < least:
        faults.append(
            f"hacking.window: {settings.window} rollouts, and hacking.patience = {settings.patience} such windows in "
            f"a row, take {least} rollouts that the reward is learnt from; the run has {found.rollouts} of {each} "
            "steps each"
        )
    return faults


def _given_by_a_model(reward: Reward) -> bool:
    return not isinstance(reward, RuleReward)


def _meet(one: Reward, other: Reward) -> bool:
    """Whether some answer may be judged by both."""
    return not one.domains or not other.domains or bool(set(one.domains) & set(other.domains))
