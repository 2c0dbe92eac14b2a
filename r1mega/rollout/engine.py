"""What a sampling engine does for the loop: prompts in, completions with logprobs out."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, Self

from r1mega.samples import Completion, Prompt


@dataclass(frozen=True)
class SamplingParams:
    """How answers are drawn: the settings of [sampling], as the engine and the journal's key take them.

    `SamplingParams(temperature=0.6, max_new_tokens=4096, top_p=0.95, stop=("</answer>",))`
    """

    temperature: float
    """T of softmax(logits / T); 0 is greedy, and its logprobs are those of T = 1."""
    max_new_tokens: int
    """An answer that reaches it is cut (`FinishReason.LENGTH`)."""
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities sum to this; below 1, logprobs are renormalised over them."""
    stop: tuple[str, ...] = ()
    """Strings of an answer's text that end it as well (`FinishReason.STOP_STRING`)."""

    def greedy(self) -> Self:
        """The most likely tokens instead of drawn ones, and the same ends."""
        return replace(self, temperature=0.0, top_p=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError where `row` has other fields than `to_json` writes."""
        if row.keys() != {field.name for field in fields(cls)}:
            raise KeyError(f"not the fields of {cls.__name__}: {sorted(row)}")
        return cls(**{**row, "stop": tuple(row["stop"])})


@dataclass(frozen=True)
class Request:
    """G answers to one prompt."""

    prompt: Prompt
    n: int
    """G, the number of answers."""
    seed: int
    """Answer i is drawn with seed + i. Give each prompt its own range: equal seeds correlate the samples."""


def derived_seed(run_seed: int, purpose: str, step: int, name: str) -> int:
    """A 31-bit seed from the run's seed, what it is for, the step and the prompt: the same in a resumed run."""
    text = f"{run_seed}/{purpose}/{step}/{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


OnAnswer = Callable[[int, tuple[Completion, ...]], None]
"""Takes the index of a request and its completions."""


class Engine(Protocol):
    """A sampler: `rollout.fleet.Fleet` over vLLM servers, `rollout.replay.JournalledEngine` over another one."""

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Answer every request.

        Args:
            requests: in any number; the engine decides how many run at once.
            params: how all of them are drawn.
            version: of the weights that must answer; the engine refuses to sample from any other.
            on_answer: called with a request's index and its completions, once for each request, as they arrive.

        Returns:
            For each request, in order, exactly n completions, index 0 to n - 1.

        Raises:
            RolloutError: a request that cannot be answered, or a server that keeps failing.
        """
        ...
