"""Which server is asked for what: hand-worked rollouts on servers whose answers' lengths are known."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import pytest

from r1mega.rollout.dispatch import Dispatch, Portion


class Policy(Protocol):
    def take(self, server: int) -> Portion | None: ...

    def came(self, server: int, index: int, answer: int) -> None: ...


class Whole:
    """A prompt's answers go to whoever has a free place, never divided."""

    def __init__(self, wanted: Sequence[int], rooms: Sequence[int]) -> None:
        self.waiting, self.free = [Portion(i, 0, n) for i, n in enumerate(wanted)], list(rooms)

    def take(self, server: int) -> Portion | None:
        if not self.waiting or self.free[server] <= 0:
            return None
        self.free[server] -= self.waiting[0].n
        return self.waiting.pop(0)

    def came(self, server: int, index: int, answer: int) -> None:
        self.free[server] += 1


class Fleet:
    """Servers that compute the first so many of what they were sent, a token of each in a step."""

    def __init__(self, policy: Policy, lengths: Sequence[Sequence[int]], rooms: Sequence[int]) -> None:
        self.policy, self.lengths, self.rooms = policy, lengths, rooms
        self.sent: list[dict[tuple[int, int], int]] = [{} for _ in rooms]
        """Tokens that are left of each answer."""
        self.came, self.portions = Counter[tuple[int, int]](), list[tuple[int, Portion]]()
        self.steps, self.seconds = 0, 0
        """Steps of all servers side by side; and of time, where each takes as long as the most answers at work."""

    def run(self, turns: Sequence[int] | None = None) -> "Fleet":
        self.deal(turns or range(len(self.rooms)))
        while any(self.sent):
            self.step()
            self.deal(turns or range(len(self.rooms)))
        return self

    def deal(self, turns: Sequence[int]) -> None:
        dealt = True
        while dealt:
            dealt = False
            for server in turns:
                if (portion := self.policy.take(server)) is not None:
                    self.portions.append((server, portion))
                    self.sent[server] |= {
                        (portion.index, i): self.lengths[portion.index][i] for i in portion.answers()
                    }
                    dealt = True

    def step(self) -> None:
        self.steps += 1
        self.seconds += max(min(len(sent), room) for sent, room in zip(self.sent, self.rooms, strict=True))
        for server, room in enumerate(self.rooms):
            for answer in list(self.sent[server])[:room]:
                self.sent[server][answer] -= 1
                if not self.sent[server][answer]:
                    del self.sent[server][answer]
                    self.came[answer] += 1
                    self.policy.came(server, *answer)


def test_the_last_prompt_is_divided_over_places_that_are_free():
    """Two servers of four places. After the first step one has three free, the other one.

    Whole, the last prompt goes to the first server: three of its answers run from step 1 to 9, the fourth waits for
    them and runs to 17. Divided 3 to 1, all of them run from 1 to 9, when the second prompt ends as well.
    """
    lengths, rooms = [(1, 1, 1, 9), (9, 9, 9, 1), (8, 8, 8, 8)], (4, 4)
    assert Fleet(Whole((4, 4, 4), rooms), lengths, rooms).run().steps == 17
    divided = Fleet(Dispatch((4, 4, 4), rooms), lengths, rooms).run()
    assert divided.steps == 9
    assert divided.portions == [(0, (0, 0, 4)), (1, (1, 0, 4)), (0, (2, 0, 3)), (1, (2, 3, 1))]


@pytest.mark.parametrize(("prompts", "servers"), [(3, 2), (5, 4), (9, 8), (8, 8)])
def test_where_a_step_takes_as_long_as_answers_are_many_the_split_saves_what_the_fullest_server_has_more(
    prompts: int, servers: int
):
    """P prompts of G answers of L tokens, N servers with room for all: whole, the fullest one has G ceil(P / N) of
    them, divided ceil(P G / N), and each of its L steps takes as long as it has answers."""
    g, length, rooms = 8, 5, (1000,) * servers
    lengths = [(length,) * g] * prompts
    fullest = {Dispatch: -(-prompts * g // servers), Whole: -(-prompts // servers) * g}
    for policy, most in fullest.items():
        limits = rooms if policy is Dispatch else (most,) * servers  # or the first one would take all
        assert Fleet(policy((g,) * prompts, limits), lengths, rooms).run().seconds == length * most


def test_prompts_stay_whole_while_there_are_some_for_all():
    """Thirty prompts of long and short answers: those that are divided are the last, at most one for a server."""
    rng = random.Random(1)
    lengths = [tuple(rng.choice((3, 40)) for _ in range(4)) for _ in range(30)]
    rooms = (16, 16, 16)
    done = Fleet(Dispatch((4,) * 30, rooms), lengths, rooms).run()
    divided = {portion.index for _, portion in done.portions if portion.n < 4}
    assert 1 <= len(divided) <= len(rooms) and min(divided) >= 30 - len(rooms)
    whole = Fleet(Whole((4,) * 30, rooms), lengths, rooms).run()
    assert done.steps <= whole.steps


def test_a_server_has_what_it_computes_at_once_and_a_few_more():
    dispatch = Dispatch((4,) * 1000, (64, 32))
    portions = list(iter(lambda: dispatch.take(0), None))
    assert sum(portion.n for portion in portions) == 64 + 64 // 8
    dispatch.came(0, 0, 0)
    assert dispatch.take(0) == (18, 0, 4)  # a whole prompt for the first that ends
    for i in range(1, 4):
        dispatch.came(0, 0, i)
        assert dispatch.take(0) is None
    dispatch.came(0, 1, 0)
    assert dispatch.take(0) == (19, 0, 4)


def test_servers_share_by_what_they_compute_at_once():
    """A quarter and three quarters of less than either has room for, whichever is asked first."""
    for turns in ((0, 1), (1, 0)):
        fleet = Fleet(Dispatch((4,) * 8, (100, 300)), [(1,) * 4] * 8, (100, 300))
        fleet.deal(turns)
        assert [len(sent) for sent in fleet.sent] == [8, 24]


def test_one_that_takes_nothing_does_not_keep_the_others_waiting():
    """It is not ready yet, or hangs: the other one goes on to the end, without a share kept back for ever."""
    fleet = Fleet(Dispatch((4,) * 8, (8, 8)), [(3,) * 4] * 8, (8, 8)).run(turns=[1])
    assert sum(fleet.came.values()) == 32 and fleet.sent[0] == {}


def test_what_a_lost_server_had_is_asked_again_first_and_nothing_that_has_come():
    dispatch = Dispatch((4, 4, 4, 4), (8, 8))
    assert [dispatch.take(0) for _ in range(3)] == [(0, 0, 4), (1, 0, 4), None]
    dispatch.came(0, 0, 1)
    dispatch.came(0, 1, 3)
    assert dispatch.left_of(0, Portion(0, 0, 4)) == [(0, 0, 1), (0, 2, 2)]
    assert dispatch.lost(0) == 2
    # All is the other one's now, though it has room for eight.
    assert [dispatch.take(1) for _ in range(4)] == [(0, 0, 1), (0, 2, 2), (1, 0, 3), (2, 0, 4)]
    dispatch.back(0)
    assert dispatch.take(0) == (3, 0, 4)
    with pytest.raises(KeyError):
        dispatch.came(0, 1, 0)  # it is the other one's
    dispatch.came(1, 1, 0)
    with pytest.raises(KeyError):
        dispatch.came(1, 1, 0)  # and comes once


@pytest.mark.parametrize("seed", range(20))
def test_every_answer_comes_once_whatever_fails(seed: int):
    rng = random.Random(seed)
    rooms = [rng.choice((1, 2, 7, 16)) for _ in range(rng.randint(1, 5))]
    lengths = [tuple(rng.randint(1, 30) for _ in range(rng.choice((1, 3, 8)))) for _ in range(rng.randint(1, 40))]
    dispatch = Dispatch([len(row) for row in lengths], rooms)
    fleet, down = Fleet(dispatch, lengths, rooms), dict[int, int]()
    want = sum(map(len, lengths))
    while sum(fleet.came.values()) < want:
        fleet.deal([server for server in range(len(rooms)) if server not in down])
        assert any(fleet.sent) or down, "nobody has anything to do"
        fleet.step()
        for server in [server for server, until in down.items() if until <= fleet.steps]:
            del down[server]
            dispatch.back(server)
        server = rng.randrange(len(rooms))
        if rng.random() < 0.1 and server not in down:
            assert dispatch.lost(server) == len({index for index, _ in fleet.sent[server]})
            fleet.sent[server] = {}
            down[server] = fleet.steps + rng.randint(1, 10)
    assert set(fleet.came.values()) == {1} and len(fleet.came) == want
