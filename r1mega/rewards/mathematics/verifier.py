"""The verifier of mathematics for prompts. Its libraries are imported where it judges."""

import re
from collections.abc import Mapping
from typing import Any

from r1mega.rewards.mathematics.answer import find_answer, find_boxes
from r1mega.rewards.pool import TaskOutcome, judged


class Mathematics:
    """A `Verifier` whose answers stand in the answer tags or in a box."""

    false_negatives = 0.00263
    """Upper end of the 95% interval in docs/measurements/math_verifier.json."""

    def find_answer(self, text: str) -> str | None:
        return find_answer(text)

    def last_answer(self, text: str) -> str:
        """The content of the last box, or the last number."""
        found = find_boxes(text) or re.findall(r"-?[0-9][0-9,]*(?:\.[0-9]+)?", text)
        return found[-1] if found else ""

    def verify(self, answer: str, truth: str, entry: Mapping[str, Any]) -> bool:
        """Whether they are equal, judged in a worker unless both are plain numbers.

        Raises RuntimeError where no worker can judge it.
        """
        from r1mega.rewards.math import PLAIN, judge

        plain = PLAIN.fullmatch(answer.strip()) and PLAIN.fullmatch(truth.strip())
        outcome = TaskOutcome("done", judge(answer, truth)) if plain else judged(judge, answer, truth)
        if outcome.status == "failed":
            raise RuntimeError(outcome.reason)
        return outcome.status == "done" and outcome.value.right

    def same(self, a: str, b: str) -> TaskOutcome:
        """Whether two answers mean the same (`rewards.math.same`), as a worker found it, or why it did not."""
        from r1mega.rewards.math import PLAIN, same

        plain = PLAIN.fullmatch(a.strip()) and PLAIN.fullmatch(b.strip())
        return TaskOutcome("done", same(a, b)) if plain else judged(same, a, b)
