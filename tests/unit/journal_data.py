"""Requests, keys and answers for the tests of the journal, and an engine that answers."""

import random
from collections.abc import Sequence
from typing import Any

from r1mega.buffers import Float32s, Int32s
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.rollout.journal import Journal
from r1mega.rollout.segment import Key
from r1mega.samples import Completion, FinishReason, Prompt

PARAMS = SamplingParams(temperature=0.7, max_new_tokens=4)


def request(i: int, n: int = 2) -> Request:
    return Request(Prompt(f"p{i}", "task", "question", "truth", Int32s([i])), n, seed=10 * i)


def key(i: int, version: int = 3) -> Key:
    return Key.of(request(i), PARAMS, version=version, policy=policies_of(version)[0])


def policies_of(version: int) -> tuple[str, ...]:
    return (f"mine at {version}",)


def counted(**entries: int) -> dict[str, Any]:
    return {"format": 3, "entries": {name[1:]: num for name, num in entries.items()}}


def entry(journal: Journal, i: int, version: int = 3) -> tuple[Completion, ...] | None:
    return journal.get(key(i, version), f"p{i}")


def completions(i: int, version: int = 3, *, n: int = 2, salt: int = 0) -> tuple[Completion, ...]:
    rng = random.Random(f"{i}/{version}/{salt}")
    return tuple(
        Completion(
            prompt_id=f"p{i}",
            index=k,
            token_ids=Int32s(rng.randrange(500) for _ in range(4)),
            logp=Float32s([-0.0, -rng.random() * 1e-38, -rng.random() / 3, -1e-45]),  # as small as there are
            text=f"é\n\u2028 {i} {k} \ud800",
            finish_reason=FinishReason.LENGTH if k else FinishReason.STOP,
            weight_version=version,
            seed=10 * i + k,
        )
        for k in range(n)
    )


class CountingEngine:
    """Answers everything, and remembers what it was asked for."""

    def __init__(self, salt: int = 0, dies_after: int | None = None) -> None:
        self.asked, self.salt, self.dies_after = list[str](), salt, dies_after
        self.versions = list[int]()
        """Of the weights, call by call."""

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        self.versions.append(version)
        answers = {}
        for i in random.Random(len(requests)).sample(range(len(requests)), len(requests)):  # as they arrive
            if len(answers) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(requests[i].prompt.id)
            number = requests[i].seed // 10
            answers[i] = completions(number, version, n=requests[i].n, salt=self.salt)
            if on_answer:
                on_answer(i, answers[i])
        return [answers[i] for i in range(len(requests))]


def reopened(journal: Journal) -> Journal:
    journal.close()
    return Journal(journal.folder)


def bits(group: tuple[Completion, ...] | None) -> Any:
    return [(c, [x.hex() for x in c.logp]) for c in group or ()]
