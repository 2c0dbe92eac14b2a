"""Prompts of several sources in shares that follow their weights, each source with an order and epochs of its own."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Protocol

from r1mega.data.asked_questions import AskedQuestions
from r1mega.data.prompts import PromptStream
from r1mega.errors import DataError
from r1mega.samples import Prompt


class Stream(Protocol):
    """An endless stream of prompts that goes on where it was: `PromptStream`, `Mixture`."""

    def take(self, n: int) -> list[Prompt]:
        """The next `n` prompts, no two alike."""
        ...

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with the very next prompt; plain JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises DataError when it belongs to other prompts."""
        ...


def stream_of(prompts: Sequence[Prompt], asked: AskedQuestions, seed: int) -> Stream:
    """The prompts in the shares that their tables of [[questions]] say; without weights, shuffled together."""
    weights = weights_of(asked)
    return Mixture(prompts, weights, seed) if weights else PromptStream(prompts, seed)


def weights_of(asked: AskedQuestions) -> dict[str, float]:
    """Label of a source -> its weight, 1 where others alone say one; nothing where none does."""
    said = {label: source.weight for label, source in asked.sources.items()}
    if all(weight is None for weight in said.values()):
        return {}
    return {label: 1.0 if weight is None else weight for label, weight in said.items()}


def refuse_unfillable(asked: AskedQuestions, left: Mapping[str, int], num_prompts: int) -> None:
    """Raises DataError where a source has fewer questions left than its share of a rollout, which asks none twice."""
    weights = weights_of(asked)
    for label, weight in weights.items():
        share = num_prompts * Fraction(weight) / sum(map(Fraction, weights.values()))
        if left[label] < share:
            raise DataError(
                f"{asked.sources[label].title}: with weight = {weight:g} its share of a rollout's {num_prompts} "
                f"prompts is {float(share):g}, and it has {left[label]} question(s) to train on: lower its "
                "weight, or add questions"
            )


class Mixture:
    """A `Stream` whose takes have prompts of each source in proportion to its weight.

    What a take's whole numbers leave over is owed: each place goes to the source that is furthest behind its share of
    all prompts so far, so that the counts follow the weights over any number of takes. Counted in fractions: nothing
    drifts.
    """

    def __init__(self, prompts: Sequence[Prompt], weights: Mapping[str, float], seed: int) -> None:
        """Raises DataError as `PromptStream`, for each source.

        Args:
            weights: label of a source (`Prompt.source`) -> its share, relative to the others'.
        """
        by_source: dict[str, list[Prompt]] = {label: [] for label in weights}
        for prompt in prompts:
            by_source[prompt.source].append(prompt)
        self._streams = {label: PromptStream(some, seed) for label, some in by_source.items()}
        self._sizes = {label: len(some) for label, some in by_source.items()}
        total = sum(map(Fraction, weights.values()))
        self._shares = {label: Fraction(weight) / total for label, weight in weights.items()}
        self._weights = dict(weights)
        self._taken = dict.fromkeys(weights, 0)

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each source so far, with the fraction of the current one."""
        return {label: stream.epoch for label, stream in self._streams.items()}

    def take(self, n: int) -> list[Prompt]:
        """The next `n` prompts, source by source. Raises DataError when there are fewer than `n` in all."""
        if n > sum(self._sizes.values()):
            raise DataError(f"{n} prompts a step asked for, but there are only {sum(self._sizes.values())} of them")
        total = sum(self._taken.values()) + n
        owed = {label: total * share - self._taken[label] for label, share in self._shares.items()}
        counts = dict.fromkeys(owed, 0)
        for _ in range(n):
            open_yet = [label for label in owed if counts[label] < self._sizes[label]]
            label = max(open_yet, key=lambda label: owed[label] - counts[label])  # of equals the first table's
            counts[label] += 1
        drawn: list[Prompt] = []
        for label, num in counts.items():
            self._taken[label] += num
            drawn += self._streams[label].take(num) if num else []
        return drawn

    def state(self) -> dict[str, Any]:
        streams = {label: stream.state() for label, stream in self._streams.items()}
        return {"weights": self._weights, "taken": dict(self._taken), "streams": streams}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state.get("weights") != self._weights:
            raise DataError(
                f"the saved position belongs to another mixture: weights {state.get('weights')}, now {self._weights}"
            )
        for label, stream in self._streams.items():
            stream.restore(state["streams"][label])
        self._taken = dict(state["taken"])
