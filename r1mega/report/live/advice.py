"""What someone should look at in a run that runs: figures that left their own past behind. Pure functions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from r1mega.report.live.beats import IN_METRICS, RankBeat, silent
from r1mega.report.live.feed import PHASE, ROLLOUT_RATE, UPDATE_RATE, rates
from r1mega.report.live.spans import figure, span
from r1mega.report.rows import Row, number

LEAST = 8
"""Values of which a median means something."""
PAST, LATE = 50, 5
"""How many values are the past, and how many of the last are held against them."""
PHASE_TIMES, PHASE_LEAST_S = 3.0, 1.0
"""A phase is far over its median past so many times it, and so many seconds more."""
SLOWER = 0.7
"""Tokens a second below this share of the past's median are a fall."""
MISMATCH_TIMES = 3.0
NEAR_LIMIT = 0.5
"""Share of a limit at which the run would stop that is told of."""
LITTLE_LEARNT = 0.1
"""Share of a rollout's answers below which hardly anything is left to learn from."""
CUT_OFF = 0.5
"""Share of answers cut at the token limit that is told of."""
SPIKE_TIMES = 10.0
DISK_SHARE, DISK_BYTES = 0.03, 5 * 2**30


@dataclass(frozen=True)
class Advice:
    """Something to look at."""

    what: str
    """What it is about: a phase, speed, mismatch, ranks, ..."""
    text: str


def advise(
    train: Sequence[Row],
    beats: Sequence[RankBeat],
    now: float,
    *,
    running: bool,
    limits: Mapping[str, Any] | None = None,
    free: tuple[int, int] | None = None,
) -> list[Advice]:
    """All of it.

    Args:
        train: lines of training of late, oldest first.
        now: seconds since 1970.
        running: the run lives; of another one only what its figures say is told.
        limits: `mismatch` of the stage's config.
        free: bytes free and bytes in all of the file system of the run.
    """
    found = [*slow_phases(train), *speed(train), *mismatch(train, limits or {}), *learning(train)]
    if running:
        found = [*ranks(beats, now), *long_phase(train, beats, now), *found]
    if free is not None and free[1] and (free[0] < DISK_BYTES or free[0] < DISK_SHARE * free[1]):
        found.append(Advice("disk", f"{free[0] / 2**30:.1f} GiB are free of {free[1] / 2**30:,.0f}"))
    return found


def slow_phases(train: Sequence[Row]) -> Iterator[Advice]:
    """Phases whose last time is far over their median of late."""
    for name, values in _by_phase(train).items():
        *past, last = values[-PAST - 1 :]
        if len(past) >= LEAST and _far(last, usual := median(past)):
            yield Advice(
                f"phase {name}",
                f"{name} took {span(last)}, {last / max(usual, 1e-9):.1f} times its median of {span(usual)}",
            )


def long_phase(train: Sequence[Row], beats: Sequence[RankBeat], now: float) -> Iterator[Advice]:
    """A phase that goes on for much longer than it did before."""
    usual = {name: median(values[-PAST:]) for name, values in _by_phase(train).items() if len(values) >= LEAST}
    for name in dict.fromkeys(beat.phase for beat in beats):
        lasted = now - max(beat.since for beat in beats if beat.phase == name)
        phase = IN_METRICS.get(name, name)
        if phase in usual and _far(lasted, usual[phase]):
            yield Advice(
                f"phase {phase}",
                f"{phase} has lasted {span(lasted)}, {lasted / max(usual[phase], 1e-9):.1f} times its median of "
                f"{span(usual[phase])}, and goes on",
            )


def speed(train: Sequence[Row]) -> Iterator[Advice]:
    """Tokens a second that fell."""
    for key, name in ((ROLLOUT_RATE, "rollout"), (UPDATE_RATE, "update")):
        values = [value for row in train if (value := rates(row).get(key)) is not None]
        past, late = values[-PAST - LATE : -LATE], values[-LATE:]
        if len(past) >= LEAST and median(late) < SLOWER * median(past):
            yield Advice(
                f"speed of {name}",
                f"{name} has fallen to {figure(median(late))} tokens/s from {figure(median(past))}",
            )


def mismatch(train: Sequence[Row], limits: Mapping[str, Any]) -> Iterator[Advice]:
    """Engine and trainer that drift apart, or near the limit at which the run stops."""
    for key, name, limit in (
        ("mismatch/mean", "mean", "mean"),
        ("mismatch/max", "largest", "max_abs"),
        ("mismatch/kl", "KL", "kl"),
    ):
        values = [value for row in train if (value := number(row, key)) is not None]
        if not values:
            continue
        past, late = values[-PAST - LATE : -LATE], values[-LATE:]
        most = number(dict(limits), limit)
        if most and values[-1] > NEAR_LIMIT * most:
            yield Advice(
                "mismatch",
                f"the {name} mismatch is {figure(values[-1])}; past {figure(most)} (mismatch.{limit}) the run stops",
            )
        elif len(past) >= LEAST and median(late) > MISMATCH_TIMES * max(median(past), 1e-12):
            yield Advice(
                "mismatch", f"the {name} mismatch has risen to {figure(median(late))} from {figure(median(past))}"
            )


def learning(train: Sequence[Row]) -> Iterator[Advice]:
    """Rollouts that leave little to learn from, answers that are cut, gradients that leap, numbers that are none."""
    last = train[-1] if train else {}
    learnt, answers = number(last, "rollout/learnt_from"), number(last, "rollout/answers")
    if learnt is not None and answers and learnt < LITTLE_LEARNT * answers:
        yield Advice(
            "queue",
            f"{learnt:,.0f} of {answers:,.0f} answers are left to learn from: in the other groups all score alike",
        )
    cut = number(last, "response_length/truncated")
    if cut is not None and cut > CUT_OFF:
        yield Advice("length", f"{cut:.0%} of the answers are cut at the token limit")
    norms = [value for row in train if (value := number(row, "grad_norm")) is not None]
    past = norms[-PAST - 1 : -1]
    if len(past) >= LEAST and norms[-1] > SPIKE_TIMES * median(past) > 0:
        yield Advice("gradient", f"the gradient norm is {figure(norms[-1])}; its median is {figure(median(past))}")
    for key in ("loss", "grad_norm"):
        if key in last and number(last, key) is None:
            yield Advice("numbers", f"{key} of the last step is no finite number")


def ranks(beats: Sequence[RankBeat], now: float) -> Iterator[Advice]:
    """Ranks that have stopped beating while others go on, or all of them."""
    if gone := silent(beats, now):
        others = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        ago = span(now - gone[0].time)
        yield Advice(
            "ranks",
            f"{gone[0]}{others} of {len(beats)} ranks stopped beating {ago} ago, in {gone[0].phase or 'no phase'}",
        )


def _by_phase(train: Sequence[Row]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in train:
        for key in row:
            if key.startswith(PHASE) and (value := number(row, key)) is not None:
                found.setdefault(key.removeprefix(PHASE), []).append(value)
    return found


def _far(seconds: float, usual: float) -> bool:
    return math.isfinite(seconds) and seconds > PHASE_TIMES * usual and seconds - usual > PHASE_LEAST_S
