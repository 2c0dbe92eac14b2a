"""Schedules of an RL run: sampling that changes in its course, and laws of what is asked, judged and drawn when."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from r1mega.config.scheduled import Scheduled
from r1mega.data.sources.source import QuestionSource
from r1mega.recipe.asking import Drawing, Sampling
from r1mega.rewards.overlong import Overlong
from r1mega.rewards.reward import Reward, RuleReward


class ScheduledSampling(Drawing):
    """How answers are drawn at each step of an RL run: `Sampling`, of which two settings may be schedules."""

    temperature: Scheduled[Annotated[float, Field(ge=0.01)]] = Scheduled.always(1.0)
    """T, no less than the engine takes (0.01). The engine's logprobs and the policy's, old and reference logprobs
    are all of logits / T, with the T that a rollout was sampled at. A number or a schedule (`config.scheduled`)."""
    max_new_tokens: Scheduled[Annotated[int, Field(gt=0)]]
    """Length limit of an answer; one that reaches it is truncated. A number or a schedule (report, R1-Zero: 32,768,
    from step 8.2k on 65,536); model and chunks must hold its largest value."""

    @property
    def longest(self) -> int:
        return self.max_new_tokens.largest

    def at(self, step: int, num_steps: int) -> Sampling:
        """Of the answers that are drawn after `step` of the run's `num_steps` optimiser steps."""
        return Sampling(
            temperature=self.temperature.at(step, num_steps),
            max_new_tokens=self.max_new_tokens.at(step, num_steps),
            top_p=self.top_p,
            stop=self.stop,
        )

    def schedules(self) -> dict[str, Scheduled[Any]]:
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}


def _schedules(
    sampling: ScheduledSampling, questions: Sequence[QuestionSource], rewards: Mapping[str, Reward]
) -> dict[str, Scheduled[Any]]:
    """By their names as `--set` has them."""
    schedules = {f"sampling.{name}": schedule for name, schedule in sampling.schedules().items()}
    schedules |= {f"questions.{i}.weight": s.weight for i, s in enumerate(questions) if s.weight is not None}
    return schedules | {f"rewards.{name}.weight": reward.weight for name, reward in rewards.items()}


def changes_at(
    sampling: ScheduledSampling,
    questions: Sequence[QuestionSource],
    rewards: Mapping[str, Reward],
    *,
    step: int,
    num_steps: int,
) -> dict[str, str | int | float]:
    """What changes after `step` steps: name -> its value there, and where it is on its way to if to another one."""
    found: dict[str, str | int | float] = {}
    for name, schedule in _schedules(sampling, questions, rewards).items():
        if step in schedule.changes(num_steps):
            value, ahead = schedule.at(step, num_steps), schedule.on_its_way(step, num_steps)
            found[name] = value if ahead is None else f"{value:g}, on its way to {ahead[1]:g} at step {ahead[0]}"
    for name, reward in rewards.items():
        if step and step == reward.begins(num_steps):
            found[f"rewards.{name}"] = "asked"
    return found


def change_faults(
    sampling: ScheduledSampling,
    questions: Sequence[QuestionSource],
    rewards: Mapping[str, Reward],
    *,
    num_steps: int,
    every: int,
) -> list[str]:
    """Changes that do not come between two rollouts of `every` steps each, or not in this order, or not at all."""
    return [
        *(f"sampling.{n}.{f}" for n, s in sampling.schedules().items() for f in s.faults(num_steps, every)),
        *(
            f"questions.{i}.{f}"
            for i, source in enumerate(questions)
            for f in _weight_faults(source, num_steps, every)
        ),
        *(f"rewards.{n}.{f}" for n, r in rewards.items() for f in r.schedule_faults(num_steps, every)),
    ]


def _weight_faults(source: QuestionSource, num_steps: int, every: int) -> list[str]:
    if source.weight is None:
        return []
    if not source.weight.largest:
        return ["weight: is 0 throughout, so that none of its questions is ever asked: leave the table out"]
    return [f"weight.{fault}" for fault in source.weight.faults(num_steps, every)]


def coverage_faults(
    questions: Sequence[QuestionSource], rewards: Mapping[str, Reward], *, num_steps: int
) -> list[str]:
    """Steps at which nothing is asked, or questions are asked whose answers are worth nothing."""
    if not any(reward.weight.largest for reward in rewards.values()):
        return []  # which is a fault of its own
    asked = {i: source.weight_or_1 for i, source in enumerate(questions)}
    schedules = [*asked.values(), *(reward.weight for reward in rewards.values())]
    steps = borders(schedules, num_steps) | {reward.begins(num_steps) for reward in rewards.values()}
    faults: dict[str, str] = {}
    for step in sorted(step for step in steps | {0} if 0 <= step < num_steps):
        now = [i for i, weight in asked.items() if weight.at(step, num_steps) > 0]
        if not now:
            faults.setdefault("", f"questions: from step {step} on every table's weight is 0: nothing can be asked")
        for i in now:
            if not any(_is_worth(r, questions[i].domain, step, num_steps) for r in rewards.values()):
                faults.setdefault(
                    str(i),
                    f"questions.{i}: asked from step {step} on, where no reward with a weight is for domain = "
                    f'"{questions[i].domain}": name it in the domains of a reward that is asked then, or give the '
                    "table weight = 0 until then",
                )
    return list(faults.values())


def _is_worth(reward: Reward, domain: str, step: int, num_steps: int) -> bool:
    for_it = not reward.domains or domain in reward.domains
    return for_it and step >= reward.begins(num_steps) and reward.weight.at(step, num_steps) > 0


def borders(schedules: Iterable[Scheduled[Any]], num_steps: int) -> set[int]:
    """The steps at which one of them begins to change, or ends to."""
    return {step for schedule in schedules for step in schedule.changes(num_steps)}


def schedule_notes(
    sampling: ScheduledSampling,
    questions: Sequence[QuestionSource],
    rewards: Mapping[str, Reward],
    *,
    num_steps: int,
) -> list[str]:
    """What a run of this length never comes to, whom nothing is asked of, and what is asked before it is judged:
    nothing of it is wrong by itself."""
    end = f"the run's num_steps = {num_steps}"
    notes = [
        f"{name}.{place}.from_step: {entry.from_step} is not before {end}: it never comes, unless the run goes on "
        "for longer"
        for name, schedule in _schedules(sampling, questions, rewards).items()
        for place, entry in enumerate(schedule.entries)
        if entry.from_step is not None and entry.from_step >= num_steps
    ]
    domains = dict.fromkeys(source.domain for source in questions)
    for name, reward in rewards.items():
        if reward.from_step >= num_steps:
            notes.append(f"rewards.{name}.from_step: {reward.from_step} is not before {end}: it is never asked")
        elif reward.domains and not set(reward.domains) & set(domains):
            notes.append(
                f"rewards.{name}: is asked of nothing: it is for domains = {json.dumps(reward.domains)}, and "
                f"[[questions]] are of {json.dumps([*domains])}"
            )
        elif reward.domains and not isinstance(reward, RuleReward):
            notes += _asked_before(name, reward, questions, num_steps)
    return notes


def _asked_before(name: str, reward: Reward, questions: Sequence[QuestionSource], num_steps: int) -> Iterator[str]:
    """Tables that only this reward of a model is for by name, asked before it is."""
    begins = reward.begins(num_steps)
    for i, source in enumerate(questions):
        steps = {0, *source.weight_or_1.changes(num_steps)}
        early = [step for step in steps if step < begins and source.weight_or_1.at(step, num_steps) > 0]
        if source.domain in reward.domains and early:
            yield (
                f"rewards.{name}: is asked from step {begins} on, and questions.{i}, of its domain, from step "
                f"{min(early)} on: until then other rewards alone say what their answers are worth; to ask them from "
                f"there on, weight = [{{ value = 0 }}, {{ from_step = {begins}, value = 1 }}]"
            )


def overlong_faults(
    rewards: Mapping[str, Reward], limit: Scheduled[int], *, truncated: str, num_steps: int
) -> list[str]:
    """Overlong shaping that an answer would do well to escape, or cannot reach, or that is left behind by its limit.

    Args:
        limit: sampling.max_new_tokens.
    """
    faults: list[str] = []
    for name, reward in rewards.items():
        if not isinstance(reward, Overlong):
            continue
        if truncated == "zero":
            faults.append(
                f"rewards.{name}: with objective.truncated = zero an answer that is cut scores 0, more than one "
                "that ends just before the limit; take judge, or mask, which leaves cut ones out"
            )
        own = reward.max_tokens
        if own is None:
            if reward.buffer > limit.smallest:
                faults.append(
                    f"rewards.{name}.buffer: {reward.buffer} tokens before sampling.max_new_tokens = "
                    f"{limit.smallest} would begin before the answer"
                )
            continue
        if own.constant and not limit.constant:
            faults.append(
                f"rewards.{name}.max_tokens: {own.largest} stays as it is where sampling.max_new_tokens changes; "
                "leave it out, so that it follows, or give it tables of its own"
            )
        for step in sorted(borders([own, limit], num_steps) | {0}):
            if (begins := own.at(step, num_steps) - reward.buffer) >= (now := limit.at(step, num_steps)):
                faults.append(
                    f"rewards.{name}: begins at {begins} tokens (max_tokens - buffer), "
                    f"and no answer is longer than sampling.max_new_tokens = {now}"
                    f"{'' if limit.constant else f' from step {step} on'}"
                )
                break
    return faults
