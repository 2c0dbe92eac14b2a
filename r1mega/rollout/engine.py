"""What a sampling engine does for the loop: prompts in, completions with logprobs out."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from r1mega.samples import Completion, Prompt


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
    """A sampler: `rollout.fleet.Fleet` over vLLM servers, `rollout.journal.JournalledEngine` over another one."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """Answer every request.

        Args:
            requests: in any number; the engine decides how many run at once.
            temperature: T of softmax(logits / T); 0 is greedy, and its logprobs are those of T = 1.
            max_new_tokens: an answer that reaches it is cut (`FinishReason.LENGTH`).
            version: of the weights that must answer; the engine refuses to sample from any other.
            on_answer: called with a request's index and its completions, once for each request, as they arrive.

        Returns:
            For each request, in order, exactly n completions, index 0 to n - 1.

        Raises:
            RolloutError: a request that cannot be answered, or a server that keeps failing.
        """
        ...
