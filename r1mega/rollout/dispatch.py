"""Which server is asked for which answers next: arithmetic alone, without wires or a clock.

A server takes what it can compute at once, and a few answers more that wait there for those that end. A prompt's
answers go to one server together, which then reads the prompt once, as long as there are prompts for all. No server
takes more than its share of what has not come yet: where that is less than a prompt's answers, it takes as many as it
can begin at once, and the rest goes to others. So the last prompts, on whose longest answers everybody waits, are
divided. Answer i is drawn with the prompt's seed + i wherever it is drawn, so that how they are divided changes no
token.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

AHEAD = 8
"""For so many answers that a server computes at once, one more waits there: until the client has heard of an answer's
end and sent another, a few more may end."""


class Portion(NamedTuple):
    """Answers to one request."""

    index: int
    """Of the request."""
    first: int
    """Of the answers, counted within the request."""
    n: int

    def answers(self) -> range:
        return range(self.first, self.first + self.n)


class Dispatch:
    """What waits, and what is where. A server is known by its number."""

    def __init__(self, wanted: Sequence[int], rooms: Sequence[int]) -> None:
        """
        Args:
            wanted: [requests] number of answers to each.
            rooms: [servers] answers that each computes at once.
        """
        self._waiting = deque(Portion(index, 0, n) for index, n in enumerate(wanted))
        self._num_waiting, self._rooms = sum(wanted), tuple(rooms)
        self._sent = [set[tuple[int, int]]() for _ in rooms]
        """(request, answer) that a server was sent and that have not come."""
        self._up = [True for _ in rooms]

    def take(self, server: int) -> Portion | None:
        """What this server is to be sent now, which counts as sent; None where it has enough."""
        held, room = len(self._sent[server]), self._rooms[server]
        if not self._waiting or held >= room + -(-room // AHEAD):
            return None
        up = [i for i, is_up in enumerate(self._up) if is_up]
        unfinished = self._num_waiting + sum(len(self._sent[i]) for i in up)
        share = -(-unfinished * room // sum(self._rooms[i] for i in up))
        whole, most = self._waiting[0], share - held
        n = whole.n if whole.n <= most else min(most, room - held)
        if n <= 0:
            return None
        self._waiting.popleft()
        portion = whole._replace(n=n)
        if rest := whole.n - portion.n:
            self._waiting.appendleft(Portion(whole.index, whole.first + portion.n, rest))
        self._num_waiting -= portion.n
        self._sent[server].update((portion.index, i) for i in portion.answers())
        return portion

    def came(self, server: int, index: int, answer: int) -> None:
        """An answer that this server was sent for has come. Raises KeyError where it was not, or has come before."""
        self._sent[server].remove((index, answer))

    def left_of(self, server: int, portion: Portion) -> list[Portion]:
        """What of a portion has not come."""
        return _runs((portion.index, i) for i in portion.answers() if (portion.index, i) in self._sent[server])

    def lost(self, server: int) -> int:
        """A server failed: what it was sent waits again, before all else, and it has no share until it is `back`.

        Returns: the number of requests of which something has to be asked again.
        """
        portions, self._sent[server], self._up[server] = _runs(sorted(self._sent[server])), set(), False
        self._waiting.extendleft(reversed(portions))
        self._num_waiting += sum(portion.n for portion in portions)
        return len({portion.index for portion in portions})

    def back(self, server: int) -> None:
        self._up[server] = True


def _runs(answers: Iterable[tuple[int, int]]) -> list[Portion]:
    """(request, answer) pairs in their order, as portions of answers that follow each other."""
    found = list[Portion]()
    for index, i in answers:
        last = found[-1] if found else None
        if last is not None and (last.index, last.first + last.n) == (index, i):
            found[-1] = last._replace(n=last.n + 1)
        else:
            found.append(Portion(index, i, 1))
    return found
