"""A model that judges is asked through this: an endpoint (`endpoint.asker`), or our own fleet (`rollout.asker`).

Rewards know neither: who has one hands it in. What a model says is read by a function that knows what a judgement
looks like; where it finds none, the model is asked again with another seed, and after that the judgement is missing.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from r1mega.endpoint.replies import Told
from r1mega.errors import EndpointError
from r1mega.samples import VerdictStatus

T = TypeVar("T")
R = TypeVar("R")

Message = Mapping[str, str]
"""{"role": "system" or "user", "content": ...}"""
Read = Callable[[str], T | None]
"""What a model's words say; None where no judgement can be read in them."""

SHOWN_CHARACTERS = 120
"""Of words that cannot be read, in reasons: the end, where a judgement should stand."""


class Asker(Protocol):
    """Asks a model; from any thread, and without keeping it."""

    def ask(self, messages: Sequence[Message], *, seed: int, temperature: float, max_tokens: int) -> "Future[str]":
        """What the model says.

        Args:
            seed: with the rest it decides the answer as far as the server can; equal questions of equal seeds may be
                answered once.

        The future raises EndpointError or EndpointLostError where no answer is to be had.
        """
        ...


class Caller(Asker, Protocol):
    """Asks an endpoint, which has other routes as well (`endpoint.asker.EndpointAsker`)."""

    def call(self, route: str, body: Mapping[str, Any], read: Callable[[bytes], Told]) -> "Future[Any]":
        """What `read` makes of the answer to a request that is no conversation; the future raises as `ask`'s."""
        ...

    def count_unreadable(self) -> None:
        """An answer came in which nothing could be read."""
        ...


@dataclass(frozen=True)
class Drawn:
    """How a model's judgement is drawn."""

    temperature: float
    max_tokens: int
    """Of what it says, its reasons included."""


@dataclass(frozen=True)
class Heard(Generic[T]):
    """What came of asking for one judgement."""

    value: T | None
    """None where it could not be read, or not be had."""
    said: str = ""
    """The model's words that were read, or the last that could not be."""
    unreadable: int = 0
    """Answers in which no judgement could be read."""
    lost: str = ""
    """Why no answer was to be had: the endpoint's fault, not the answer's."""

    @property
    def reason(self) -> str:
        """Why there is no value."""
        if self.lost:
            return self.lost
        end = " ".join(self.said[-4 * SHOWN_CHARACTERS :].split())[-SHOWN_CHARACTERS:]
        return f"no judgement can be read in {self.unreadable} of the judge's answers; the last ends with {end!r}"


def missing_votes(found: Sequence[Heard[Any]]) -> tuple[VerdictStatus, str] | None:
    """What becomes of something of whose votes some are missing, and why: failed where the endpoint is at fault, else
    unscorable; None where all are there."""
    missing = [one for one in found if one.value is None]
    if not missing:
        return None
    lost = [one for one in missing if one.lost]
    reason = f"{len(missing)} of {len(found)} votes are missing: {(lost or missing)[0].reason}"
    return (VerdictStatus.FAILED if lost else VerdictStatus.UNSCORABLE), reason


def heard(
    asker: Asker,
    messages: Sequence[Message],
    read: Read[T],
    drawn: Drawn,
    seeds: Sequence[int],
    on_unreadable: Callable[[], None] = lambda: None,
) -> Future[Heard[T]]:
    """Ask once with each seed until what is said can be read. The future never raises.

    Args:
        seeds: at least one; the attempts' in order, which is what makes them different questions.
        on_unreadable: called for every answer that cannot be read, in whichever thread brings it.
    """
    return _Hearing(asker, messages, read, drawn, seeds, on_unreadable).heard


class _Hearing(Generic[T]):
    def __init__(
        self,
        asker: Asker,
        messages: Sequence[Message],
        read: Read[T],
        drawn: Drawn,
        seeds: Sequence[int],
        on_unreadable: Callable[[], None],
    ) -> None:
        self.heard: Future[Heard[T]] = Future()
        self._asker, self._messages, self._read, self._drawn = asker, messages, read, drawn
        self._seeds, self._attempt, self._on_unreadable = seeds, 0, on_unreadable
        self._ask()

    def _ask(self) -> None:
        try:
            said = self._asker.ask(
                self._messages, seed=self._seeds[self._attempt], temperature=self._drawn.temperature,
                max_tokens=self._drawn.max_tokens,
            )  # fmt: skip
        except Exception as error:  # an asker that is closed or broken: nobody may wait for ever
            self.heard.set_result(Heard(None, lost=_told(error), unreadable=self._attempt))
            return
        said.add_done_callback(self._take)

    def _take(self, said: "Future[str]") -> None:
        try:
            words = said.result()
            value = self._read(words)
        except Exception as error:
            self.heard.set_result(Heard(None, lost=_told(error), unreadable=self._attempt))
            return
        if value is None:
            self._attempt += 1
            self._on_unreadable()
        if value is not None or self._attempt == len(self._seeds):
            self.heard.set_result(Heard(value, words, self._attempt))
        else:
            self._ask()


def received(future: "Future[Any]", make: Callable[[Any], R], lost: Callable[[str], R]) -> Future[R]:
    """What `make` makes of an asker's answer, or `lost` of why there is none. The future never raises."""
    whole: Future[R] = Future()

    def take(future: "Future[Any]") -> None:
        try:
            whole.set_result(make(future.result()))
        except Exception as error:
            whole.set_result(lost(_told(error)))

    future.add_done_callback(take)
    return whole


def _told(error: Exception) -> str:
    """Why there is no answer."""
    if isinstance(error, CancelledError):
        return "given up: the run is ending"
    return str(error) if isinstance(error, EndpointError) else f"{type(error).__name__}: {error}"


def drawn_seeds(num: int, *parts: Any) -> list[int]:
    """So many 31-bit seeds that follow from the parts' text."""
    rng = drawn_from(*parts)
    return [rng.getrandbits(31) for _ in range(num)]


def drawn_from(*parts: Any) -> random.Random:
    """What follows from the parts' text, whatever it is: JSON can spell half a character, which UTF-8 cannot."""
    return random.Random("/".join(map(str, parts)).encode("utf-8", "surrogatepass"))
