"""An engine for the RL stages' loops, at a `recording.RecordingPolicy`'s weights; it writes down what it is asked."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from recording import stop_signal
from torch import Tensor

from r1mega.buffers import Float32s, Int32s
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.served import Lengthened
from r1mega.samples import Completion, FinishReason
from r1mega.weights.verify import Result


@dataclass(frozen=True)
class Asked:
    """One request that an engine answered."""

    version: int
    params: SamplingParams
    request: Request
    answers: tuple[Completion, ...]
    kinds: tuple[str, ...]
    """What each is: "right"; "wrong"; "bare", right and not in the format; "cut", right and truncated."""


GROUPS = (("right", "wrong", "bare", "cut"), ("wrong", "wrong", "wrong", "wrong"), ("right", "cut", "wrong", "wrong"))
"""What the first question of a run is answered with, the second, the third, and round again."""


@dataclass
class Engines:
    """Makes the engines of a run and of its resumed parts, and keeps what all of them were asked."""

    groups: Sequence[Sequence[str]] = GROUPS
    shift: float = 0.0
    """Token i's log-probability is off by shift x sin(i + 1): how far the engine is from the trainer."""
    only: int | None = None
    """Of the first answer to the request of this number alone; of all where there is none."""
    stop_after: int | None = None
    """A signal comes once so many requests are answered."""
    push_seconds: float = 0.0
    """What a push is said to take."""
    proof: Result | None = None
    """What a push is said to have proven."""
    places: dict[str, int] = field(default_factory=dict)
    """Of every question, in the order in which they first came."""
    asked: list[Asked] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)
    """With which each engine was made."""
    pushing: list[dict[str, Any]] = field(default_factory=list)
    """With which each pusher was made."""
    lengthened: list[tuple[int, int]] = field(default_factory=list)
    """For how many tokens an engine was laid out, and is now, each time that it was started anew for more."""

    def make(self, model_dir: Path, layout: Any, **options: Any) -> "RecordingEngine":
        self.options.append({"model_dir": model_dir, **options})
        return RecordingEngine(self, options["max_model_len"])

    def pusher(self, source: Any, servers: Sequence["RecordingEngine"], **options: Any) -> "RecordingPusher":
        self.pushing.append(options)
        return RecordingPusher(self, source, servers, options["announce"])

    def rollouts(self) -> dict[int, list[Asked]]:
        """What was asked for training, by the version of the weights: that which stands between two evaluations."""
        found: dict[int, list[Asked]] = {}
        for asked in self.asked:
            if len(asked.answers) == len(self.groups[0]):
                found.setdefault(asked.version, []).append(asked)
        return found

    def evaluations(self) -> dict[int, list[Asked]]:
        """What was asked for evaluations, by the version of the weights."""
        found: dict[int, list[Asked]] = {}
        for asked in self.asked:
            if len(asked.answers) != len(self.groups[0]):
                found.setdefault(asked.version, []).append(asked)
        return found


class RecordingPusher:
    """What `weights.push.Pusher` does, for `RecordingEngine`."""

    def __init__(
        self, engines: Engines, source: Any, servers: Sequence["RecordingEngine"], announce: Callable[[], None]
    ) -> None:
        self._engines, self._source, self._servers, self._announce = engines, source, servers, announce

    def close(self) -> None: ...

    def read_back(self) -> None: ...

    def push(self, version: int) -> Any:
        self._announce()
        theta = dict(self._source)["model.embed_tokens.weight"][:, 0].clone()
        for server in self._servers:
            server.take(version, theta)
        return SimpleNamespace(seconds=self._engines.push_seconds, recoveries=(), proof=self._engines.proof)


class RecordingEngine:
    """What `rollout.served.ServedModel`, its server and its client do, at the weights that were pushed."""

    def __init__(self, engines: Engines, max_model_len: int) -> None:
        self.asked_for = False
        self._engines, self._room = engines, max_model_len
        self._version, self._theta = -1, torch.zeros(0)

    def take(self, version: int, theta: Tensor) -> None:
        self._version, self._theta = version, theta

    def __enter__(self) -> "RecordingEngine":
        return self

    def __exit__(self, *error: object) -> None: ...

    @property
    def servers(self) -> tuple["RecordingEngine", ...]:
        return (self,)

    def start(self) -> None: ...

    def must_start(self, max_model_len: int) -> bool:
        return max_model_len > self._room or not self.asked_for

    def make_room(self, max_model_len: int) -> Lengthened | None:
        """As `rollout.served.ServedModel` does: one that is laid out for less is started anew, with other weights."""
        before, self._room = self._room, max(self._room, max_model_len)
        if before >= max_model_len:
            return None
        self._version, self._theta = -1, torch.zeros(0)
        self._engines.lengthened.append((before, max_model_len))
        return Lengthened(before, max_model_len, seconds=0.0)

    def client(self, *_: Any) -> "RecordingEngine":
        self.asked_for = True
        return self

    def peak_rss_gib(self) -> float:
        return 0.0

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: Callable[[int, tuple[Completion, ...]], None] | None = None,
    ) -> list[tuple[Completion, ...]]:
        assert version == self._version
        assert max(len(r.prompt.token_ids) for r in requests) + params.max_new_tokens <= self._room
        engines, found = self._engines, []
        for place, request in enumerate(requests):
            question = engines.places.setdefault(request.prompt.id, len(engines.places))
            kinds = tuple(engines.groups[question % len(engines.groups)][: request.n])
            answers = tuple(self._answer(request, i, kind, params) for i, kind in enumerate(kinds))
            found.append(answers)
            engines.asked.append(Asked(version, params, request, answers, kinds))
            if on_answer is not None:
                on_answer(place, answers)
            if len(engines.asked) == engines.stop_after:
                stop_signal()
        return found

    def _answer(self, request: Request, i: int, kind: str, params: SamplingParams) -> Completion:
        """Drawn with seed + i, as engines do; what it says follows from `kind` alone."""
        rng = random.Random(f"{request.prompt.id}/{request.seed + i}")
        limit = params.max_new_tokens
        tokens = rng.choices(range(5, len(self._theta)), k=limit if kind == "cut" else rng.randint(2, limit - 1))
        logp = torch.log_softmax(self._theta.double() / (params.temperature or 1.0), 0)[tokens]
        off = self._engines.shift * torch.arange(1, len(tokens) + 1).sin()
        if self._engines.only not in (None, len(self._engines.asked) + 1) or (self._engines.only and i):
            off = 0 * off
        said = str(int(request.prompt.truth) + 1) if kind == "wrong" else request.prompt.truth
        text = f"<answer>{said}</answer>" if kind == "bare" else f"<think>1=1</think><answer>{said}</answer>"
        ended = FinishReason.LENGTH if kind == "cut" else FinishReason.STOP
        seed = request.seed + i
        return Completion(
            request.prompt.id, i, Int32s(tokens), Float32s((logp + off).tolist()), text, ended, self._version, seed
        )
