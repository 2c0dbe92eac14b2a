"""Prompts of several sources in shares that follow their weights, each source with an order and epochs of its own."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from r1mega.config.scheduled import Scheduled
from r1mega.data.asked_questions import AskedQuestions
from r1mega.data.prompts import PromptStream
from r1mega.errors import DataError
from r1mega.samples import Prompt

GRID = 2**40
"""Shares of weights that are on their way to others are multiples of 1 / GRID, so that their sums stay short."""


class Stream(Protocol):
    """An endless stream of prompts that goes on where it was: `PromptStream`, `Mixture`."""

    def take(self, n: int, step: int) -> list[Prompt]:
        """The next `n` prompts, no two alike, for the rollout after `step` optimiser steps."""
        ...

    def leave_out(self, ids: Iterable[str]) -> None:
        """Draw the prompts of these ids no more."""
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with the very next prompt; plain JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises DataError when it belongs to other prompts."""
        ...


def stream_of(prompts: Sequence[Prompt], asked: AskedQuestions, seed: int, num_steps: int) -> Stream:
    """The prompts in the shares that their tables of [[questions]] say in a run of so many optimiser steps; without
    weights, shuffled together."""
    weights = {label: weight.of_run(num_steps) for label, weight in weights_of(asked).items()}
    return Mixture(prompts, weights, seed) if weights else PromptStream(prompts, seed)


def weights_of(asked: AskedQuestions) -> dict[str, Scheduled[float]]:
    """Label of a source -> its weight, 1 where others alone say one; nothing where none does."""
    if all(source.weight is None for source in asked.sources.values()):
        return {}
    return {label: source.weight_or_1 for label, source in asked.sources.items()}


def refuse_unfillable(asked: AskedQuestions, left: Mapping[str, int], num_prompts: int, num_steps: int) -> None:
    """Raises DataError where a source has fewer questions left than its share of a rollout, which asks none twice, at
    some step of a run of `num_steps`."""
    weights = {label: weight.of_run(num_steps) for label, weight in weights_of(asked).items()}
    # Between two of these steps weights are straight lines, and a share of them rises or falls throughout.
    for step in _borders(weights.values()) if weights else ():
        for label, share in shares(weights, step).items():
            if left[label] < num_prompts * share:
                since = "" if all(w.constant for w in weights.values()) else f" from step {step} on"
                weight = f"weight = {weights[label].at(step):g}"
                raise DataError(
                    f"{asked.sources[label].title}: with {weight} its share of a rollout's "
                    f"{num_prompts} prompts is {float(num_prompts * share):g}{since}, and it has {left[label]} "
                    "question(s) to train on: lower its weight, or add questions"
                )


def shares(weights: Mapping[str, Scheduled[float]], step: int) -> dict[str, Fraction]:
    """What of a rollout's prompts is each source's after `step` steps; they sum to 1.

    Raises DataError where every weight is 0.
    """
    now = {label: Fraction(weight.at(step)) for label, weight in weights.items()}
    if not (total := sum(now.values())):
        raise DataError(f"step {step}: every weight of [[questions]] is 0, so that nothing can be asked")
    return {label: weight / total for label, weight in now.items()}


def _borders(weights: Iterable[Scheduled[float]]) -> list[int]:
    """The steps from which on weights are constant or straight lines, in order."""
    return sorted({0, *(step for weight in weights for step in weight.changes())})


class Mixture:
    """A `Stream` whose takes have prompts of each source in proportion to its weight.

    What a take's whole numbers leave over is owed: each place goes to the source that is furthest behind its share of
    all prompts so far, so that the counts follow the weights over any number of takes. Counted in fractions: nothing
    drifts. Where weights change, what was owed before is forgotten, so that counts from there on follow the new ones;
    while they are on their way, each take adds what its own step's shares are. A source of weight 0 is not asked.
    """

    def __init__(self, prompts: Sequence[Prompt], weights: Mapping[str, Scheduled[float]], seed: int) -> None:
        """Raises DataError as `PromptStream`, for each source.

        Args:
            weights: label of a source (`Prompt.source`) -> its share, relative to the others', at each step of the
                run (`Scheduled.of_run`).
        """
        by_source: dict[str, list[Prompt]] = {label: [] for label in weights}
        for prompt in prompts:
            by_source[prompt.source].append(prompt)
        self._streams = {label: PromptStream(some, seed) for label, some in by_source.items()}
        self._sizes = {label: len(some) for label, some in by_source.items()}
        self._ids = {label: {prompt.id for prompt in some} for label, some in by_source.items()}
        self._weights, self._borders = dict(weights), _borders(weights.values())
        self._since = 0
        """The last step at which weights began to change, or ended to; what follows is counted from there."""
        self._taken = dict.fromkeys(weights, 0)
        self._due = dict.fromkeys(weights, Fraction(0))
        """What each source's share was of all prompts taken."""

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each source so far, with the fraction of the current one."""
        return {label: stream.epoch for label, stream in self._streams.items()}

    def take(self, n: int, step: int = 0) -> list[Prompt]:
        """The next `n` prompts, source by source. Raises DataError when there are fewer than `n` in all that have a
        weight at this step."""
        share = self._shares(step)
        asked = {label: self._sizes[label] for label, part in share.items() if part}
        if n > sum(asked.values()):
            raise DataError(f"{n} prompts a step asked for, but there are only {sum(asked.values())} of them")
        if (since := max(border for border in self._borders if border <= step)) != self._since:
            self._since = since
            self._taken, self._due = dict.fromkeys(self._taken, 0), dict.fromkeys(self._due, Fraction(0))
        owed = {label: self._due[label] + n * share[label] - self._taken[label] for label in asked}
        counts = dict.fromkeys(self._streams, 0)
        for _ in range(n):
            open_yet = [label for label in asked if counts[label] < self._sizes[label]]
            label = max(open_yet, key=lambda label: owed[label] - counts[label])  # of equals the first table's
            counts[label] += 1
        drawn: list[Prompt] = []
        for label, num in counts.items():
            self._taken[label] += num
            self._due[label] += n * share[label]
            drawn += self._streams[label].take(num) if num else []
        return drawn

    def leave_out(self, ids: Iterable[str]) -> None:
        """Draw these prompts no more; where a source has too few others for its share, the other sources fill up."""
        for label, stream in self._streams.items():
            stream.leave_out(out := set(ids) & self._ids[label])
            self._ids[label] -= out
            self._sizes[label] = len(self._ids[label])

    def _shares(self, step: int) -> dict[str, Fraction]:
        found = shares(self._weights, step)
        since = max(border for border in self._borders if border <= step)
        following = next((border for border in self._borders if border > step), since + 1)
        if shares(self._weights, since) == shares(self._weights, following - 1):
            return found
        floors = {label: Fraction(int(share * GRID), GRID) for label, share in found.items()}
        largest = max(floors, key=lambda label: floors[label])
        return {**floors, largest: floors[largest] + 1 - sum(floors.values())}

    def state(self) -> dict[str, Any]:
        streams = {label: stream.state() for label, stream in self._streams.items()}
        found = {"weights": self._plain_weights(), "taken": dict(self._taken), "streams": streams}
        if len(self._borders) == 1:  # what is due follows from what was taken
            return found
        return {**found, "since": self._since, "due": {label: str(due) for label, due in self._due.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state.get("weights") != self._plain_weights():
            raise DataError(
                f"the saved position belongs to another mixture: weights {state.get('weights')}, now "
                f"{self._plain_weights()}"
            )
        for label, stream in self._streams.items():
            stream.restore(state["streams"][label])
        self._taken = dict(state["taken"])
        if len(self._borders) == 1:
            num = sum(self._taken.values())
            self._due = {label: num * share for label, share in shares(self._weights, 0).items()}
        else:
            self._since, self._due = state["since"], {label: Fraction(due) for label, due in state["due"].items()}

    def _plain_weights(self) -> dict[str, Any]:
        return {label: weight.plain() for label, weight in self._weights.items()}
