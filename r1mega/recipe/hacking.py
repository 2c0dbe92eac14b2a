"""What an RL run watches of reward hacking, made of its [hacking] and [rewards], and the laws between them."""

from collections import Counter
from collections.abc import Mapping, Sequence

from r1mega.data.sources.source import QuestionSource
from r1mega.diagnostics.hacking import SYMPTOMS, Watched
from r1mega.diagnostics.settings import Hacking
from r1mega.rewards.reward import Reward, RuleReward


def trained_at(reward: Reward, step: int, num_steps: int) -> bool:
    """Whether the updates of a rollout that is sampled after `step` optimiser steps learn from a reward."""
    return step >= reward.begins(num_steps) and reward.weight.at(step, num_steps) > 0


def watched(
    settings: Hacking,
    rewards: Mapping[str, Reward],
    questions: Sequence[QuestionSource],
    *,
    num_steps: int,
    each: int,
) -> Watched:
    """What is held against what.

    Args:
        questions: the run's, whose weights say in which rollouts a reward has answers to judge.
        num_steps: optimiser steps of the run.
        each: optimiser steps of a rollout.
    """
    by_models = [name for name, reward in rewards.items() if _given_by_a_model(reward) and reward.weight.largest]
    trained = [name for name in dict.fromkeys(settings.trained or by_models) if name in rewards]
    measured = [name for name, reward in rewards.items() if not reward.weight.largest]
    truths = [name for name in dict.fromkeys(settings.truths or measured) if name in rewards]
    rollouts = (_rollouts([rewards[name]], questions, num_steps, each) for name in trained)
    return Watched(
        {n: tuple(t for t in truths if t != n and _meet(rewards[n], rewards[t])) for n in trained},
        max(rollouts, default=0),
    )


def _rollouts(compared: Sequence[Reward], questions: Sequence[QuestionSource], num_steps: int, each: int) -> int:
    """Rollouts in which the first of some rewards is learnt from, and all of them judge some answer."""
    trained, *others = compared

    def judged(step: int) -> bool:
        return any(
            source.weight_or_1.at(step, num_steps) > 0
            and all(not reward.domains or source.domain in reward.domains for reward in compared)
            for source in questions
        )

    return sum(
        trained_at(trained, step, num_steps) and all(step >= o.begins(num_steps) for o in others) and judged(step)
        for step in range(0, num_steps, each)
    )


def hacking_faults(
    settings: Hacking,
    rewards: Mapping[str, Reward],
    questions: Sequence[QuestionSource],
    *,
    num_steps: int,
    each: int,
) -> list[str]:
    """What is wrong with a [hacking] that a config states; arguments as of `watched`."""
    faults: list[str] = []
    known = f"there are {', '.join(rewards)}"
    for setting, names in (("trained", settings.trained), ("truths", settings.truths)):
        unknown = [name for name in names if name not in rewards]
        faults += [f"hacking.{setting}: there is no reward {name!r}: {known}" for name in unknown]
        twice = [name for name, num in Counter(names).items() if num > 1]
        faults += [f"hacking.{setting}: {name!r} is there twice; leave one out" for name in twice]
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
    found = watched(settings, rewards, questions, num_steps=num_steps, each=each)
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
    return faults or _window_faults(settings, found, rewards, questions, num_steps=num_steps, each=each)


def _window_faults(
    settings: Hacking,
    found: Watched,
    rewards: Mapping[str, Reward],
    questions: Sequence[QuestionSource],
    *,
    num_steps: int,
    each: int,
) -> list[str]:
    """Rewards and truths that are in too few rollouts for anything ever to be said of them."""
    least = settings.window + settings.patience - 1
    wanted = (
        f"hacking.window: {settings.window} rollouts, and hacking.patience = {settings.patience} such windows in a "
        f"row, take {least} rollouts"
    )

    def num(*names: str) -> int:
        return _rollouts([rewards[name] for name in names], questions, num_steps, each)

    short = {name: num(name) for name in found.truths}
    faults = [
        f"{wanted} that the reward is learnt from; of rewards.{name} the run has {has} of {each} steps each"
        for name, has in short.items()
        if has < least
    ]
    if faults:
        return faults
    best = {truth: max((num(n, truth) for n, of in found.truths.items() if truth in of)) for truth in settings.truths}
    return [
        f"{wanted} in which rewards.{truth} judges answers that a trained reward judges; the run has {has}: ask it "
        "as early, or take it out of hacking.truths"
        for truth, has in best.items()
        if has < least
    ]


def _given_by_a_model(reward: Reward) -> bool:
    return not isinstance(reward, RuleReward)


def _meet(one: Reward, other: Reward) -> bool:
    """Whether some answer may be judged by both."""
    return not one.domains or not other.domains or bool(set(one.domains) & set(other.domains))
