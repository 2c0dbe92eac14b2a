"""Reward hacking seen: a trained reward rises while what it stands for falls, or while answers only grow.

Two grades of warning. "parted": over the last W rollouts the trained reward's trend is up and a held-out truth's is
down. "suspected": the reward's trend is up, no truth's is, and answers grow much longer or repeat themselves much
more; a symptom alone, since answers grow in honest training too. Each trend is tested by itself
(`diagnostics.trend`), and both must be there in `patience` rollouts in a row (an intersection-union test: the pair
errs no oftener than one of its tests). False alarms of a whole run are bounded by Bonferroni's inequality: of
`patience` looks in a row one has a number that patience divides, so that L looks at P pairs err with a chance of at
most alpha where each test errs with

    alpha / (P x ceil(L / patience))

Both figures of a pair are means over the same answers: those of which both are measured. Means of a few answers say
little; what moves by less than `min_change` of the answers' own standard deviation is passed over, however certain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from r1mega.diagnostics.repetition import mean_repetition
from r1mega.diagnostics.settings import Hacking
from r1mega.diagnostics.trend import Trend, trend_test
from r1mega.samples import Completion, Group, Verdict

SYMPTOMS = ("response_length", "repetition")
"""Tokens per answer, and the share of its 4-grams that stood in it before; no rewards may have these names."""

Grade = Literal["parted", "suspected"]
Read = tuple[float, float, float, float]
"""Of one rollout: the reward's mean and standard deviation over answers, then the other figure's."""


@dataclass(frozen=True)
class Watched:
    """What a run compares, and how often: made of its settings by `recipe.hacking`."""

    truths: Mapping[str, tuple[str, ...]]
    """Trained reward -> the rewards that it is held against."""
    rollouts: int
    """In which the trained reward that is trained longest is."""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, other) for name, truths in self.truths.items() for other in (*truths, *SYMPTOMS))

    def looks(self, window: int) -> int:
        return max(0, self.rollouts - window + 1)


@dataclass(frozen=True)
class Warned:
    """One warning."""

    grade: Grade
    reward: str
    against: str
    """The truth that fell, or the symptom that grew."""
    p: float
    """The larger p of the two trends."""
    text: str


class HackingWatch:
    """Sees every rollout of a run in turn; each pair is warned of once."""

    def __init__(self, settings: Hacking, watched: Watched) -> None:
        self._settings, self._watched = settings, watched
        looks = watched.looks(settings.window)
        self._test = trend_test(settings.window) if looks else None
        tests = max(1, len(watched.pairs) * math.ceil(looks / settings.patience))
        self.level = settings.alpha / tests
        """At which each trend is tested."""
        self._read: dict[str, list[Read]] = {}
        """Of "REWARD/OTHER" the latest rollouts, as many as a window has."""
        self._lasted: dict[str, int] = {}
        self._said: set[str] = set()

    def see(self, groups: Sequence[Group], trained: Sequence[str]) -> tuple[list[Warned], dict[str, float]]:
        """Take in a rollout.

        Args:
            trained: names of the rewards that the update after it learns from.

        Returns: what is to be warned of from now on, and the rollout's figures: hacking/REWARD/trained and
            hacking/REWARD/OTHER, means over the answers that both are known of.
        """
        figures: dict[str, float] = {}
        now = [(name, other) for name, other in self._watched.pairs if name in trained]
        for name, other in now:
            if (read := _read(groups, name, other)) is None:
                continue
            self._read[f"{name}/{other}"] = [*self._read.get(f"{name}/{other}", ()), read][-self._settings.window :]
            figures.setdefault(f"hacking/{name}/trained", read[0])
            figures[f"hacking/{name}/{other}"] = read[2]
        return [warned for pair in now if (warned := self._look(*pair)) is not None], figures

    def _look(self, name: str, other: str) -> Warned | None:
        key = f"{name}/{other}"
        found = self._found(name, other)
        self._lasted[key] = self._lasted.get(key, 0) + 1 if found else 0
        if found is None or self._lasted[key] < self._settings.patience or key in self._said:
            return None
        self._said.add(key)
        return replace(found, text=f"{found.text}, in {self._settings.patience} rollouts in a row")

    def _found(self, name: str, other: str) -> Warned | None:
        """What the last window says of a pair."""
        trends = self._trends(name, other)
        if trends is None:
            return None
        (reward, spread), (against, other_spread) = trends
        settings = self._settings
        rises = reward.p_up <= self.level and reward.change >= settings.min_change * spread
        if not rises:
            return None
        head = f"over {settings.window} rollouts the trained reward {name} rose by {reward.change:.3g}"
        if other not in SYMPTOMS:
            if against.p_down > self.level or -against.change < settings.min_change * other_spread:
                return None
            text = f"{head} while {other} fell by {-against.change:.3g}"
            return Warned("parted", name, other, max(reward.p_up, against.p_down), text)
        least = settings.length_growth * against.start if other == "response_length" else settings.repetition_growth
        if against.p_up > self.level or against.change < least or self._some_truth_rises(name):
            return None
        text = f"{head}, no truth did, and {other} grew from {against.start:.3g} by {against.change:.3g}"
        return Warned("suspected", name, other, max(reward.p_up, against.p_up), text)

    def _some_truth_rises(self, name: str) -> bool:
        """Whether growing answers may be what made a truth rise: one look's chance of error is alpha here."""
        found = [self._trends(name, truth) for truth in self._watched.truths[name]]
        return any(trends is not None and trends[1][0].p_up <= self._settings.alpha for trends in found)

    def _trends(self, name: str, other: str) -> tuple[tuple[Trend, float], tuple[Trend, float]] | None:
        """Trend and answers' standard deviation of both figures; None before there is a window."""
        rows = self._read.get(f"{name}/{other}", ())
        if self._test is None or len(rows) < self._settings.window:
            return None
        columns = list(zip(*rows, strict=True))
        spread, other_spread = (math.sqrt(math.fsum(s * s for s in columns[i]) / len(rows)) for i in (1, 3))
        return (self._test(columns[0]), spread), (self._test(columns[2]), other_spread)

    def state(self) -> dict[str, Any]:
        """Plain JSON, for `restore`: a resumed run warns when the uninterrupted one does."""
        return {"read": self._read, "lasted": self._lasted, "said": sorted(self._said)}

    def restore(self, state: Mapping[str, Any]) -> None:
        window = self._settings.window
        self._read = {key: [tuple(row) for row in rows][-window:] for key, rows in state["read"].items()}
        self._lasted, self._said = dict(state["lasted"]), set(state["said"])


def _read(groups: Sequence[Group], name: str, other: str) -> Read | None:
    """A rollout's figures of a pair, None where no answer has both."""
    answers = [
        (completion, verdict)
        for group in groups
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
        if verdict.scored and name in verdict.parts and (other in verdict.parts or other in SYMPTOMS)
    ]
    if not answers:
        return None
    rewards = _moments([verdict.parts[name] for _, verdict in answers])
    return *rewards, *_other(answers, other)


def _other(answers: Sequence[tuple[Completion, Verdict]], other: str) -> tuple[float, float]:
    if other == "repetition":
        return mean_repetition([completion.token_ids for completion, _ in answers]), 0.0
    if other == "response_length":
        return _moments([float(completion.num_tokens) for completion, _ in answers])
    return _moments([verdict.parts[other] for _, verdict in answers])


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A run's warnings from its metrics' rows: how many of each grade, and the first one's step."""
    warned = [row for row in rows if row["kind"] == "hacking"]
    grades = [row.get("grade") for row in warned]
    found = {grade: float(grades.count(grade)) for grade in ("parted", "suspected") if grade in grades}
    return {**found, "first step": float(min(row.get("step", 0) for row in warned))} if warned else {}
