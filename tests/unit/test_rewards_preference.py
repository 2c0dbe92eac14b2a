"""Comparisons of two answers: votes, orders, gaps, and what is no vote."""

import random
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from r1mega.errors import EndpointError
from r1mega.rewards.asker import Message
from r1mega.rewards.judge_forms import RULES, VERDICT_SYSTEM
from r1mega.rewards.preference import Comparing, JudgedVote, PairVerdict, compare
from r1mega.rewards.safety import Marking, mark
from r1mega.samples import VerdictStatus

Pair = tuple[str, str]
GOOD, BAD = "the good one", "the bad one, which is longer"


class Said:
    """An asker whose model says at once what `say` makes of what it is sent."""

    def __init__(self, say: Callable[[str], str]) -> None:
        self._say = say
        self.asked: list[dict[str, Any]] = []

    def ask(self, messages: Any, *, seed: int, temperature: float, max_tokens: int) -> Future[str]:
        said: list[Message] = list(messages)
        self.asked.append({"messages": said, "seed": seed, "temperature": temperature, "max_tokens": max_tokens})
        future: Future[str] = Future()
        try:
            future.set_result(self._say(said[-1]["content"]))
        except Exception as error:
            future.set_exception(error)
        return future


def first_is_good(prompt: str) -> bool:
    return prompt.index(GOOD) < prompt.index(BAD)


def consistent(prompt: str) -> str:
    return "The good one is good.\n[[A>>B]]" if first_is_good(prompt) else "So it is.\n\n**[[B>>A]]**\n"


def judged(say: Callable[[str], str], answers: Pair = (GOOD, BAD), seed: int = 1, **settings: Any) -> PairVerdict:
    return compare(Said(say), "Which?", answers, Comparing(**settings), seed=seed).result(0)


def test_a_consistent_judges_pair_is_kept_whichever_way_round():
    for seed in range(6):
        for order in ("balanced", "independent"):
            found = judged(consistent, seed=seed, order=order)
            assert (found.status, found.gap, found.preferred(1.0)) == ("scored", 3.0, 0)
            turned = judged(consistent, (BAD, GOOD), seed=seed, order=order)
            assert (turned.gap, turned.preferred(1.0), turned.characters) == (-3.0, 1, (len(BAD), len(GOOD)))
            assert len(found.votes) == 4 and {vote.gap for vote in found.votes} == {3.0}


def test_a_judge_that_always_prefers_the_first_has_no_gap_where_orders_are_balanced():
    orders = set()
    for seed in range(20):
        found = judged(lambda _: "[[A>>B]]", seed=seed)
        assert (found.gap, found.preferred(0.0)) == (0.0, None)
        assert all(vote.for_first for vote in found.votes)
        orders.add(tuple(vote.first for vote in found.votes))
        assert sum(orders_of(found)) == 2
    assert len(orders) > 3  # of the six that there are: drawn, not fixed
    odd = [judged(lambda _: "[[A>B]]", seed=seed, votes=3).gap for seed in range(20)]
    assert {round(3 * gap) for gap in odd} == {-1, 1}


def orders_of(verdict: PairVerdict) -> list[int]:
    return [vote.first for vote in verdict.votes]


def test_orders_drawn_independently_are_the_reports_letter():
    """Of 4 fair draws one in eight has them all alike, and 3 in 8 two of each: 400 seeds, 5 standard deviations."""
    shown = [sum(orders_of(judged(lambda _: "[[A=B]]", seed=s, order="independent"))) for s in range(400)]
    alike, even = sum(num in (0, 4) for num in shown), sum(num == 2 for num in shown)
    assert abs(alike - 50) < 34 and abs(even - 150) < 49


def test_the_mean_of_the_votes_decides():
    """Votes 3, 1, 0 and -1 of answer 0, whatever the order: 0.75 is not more than 1, but more than 0.7."""
    left = ["A>>B", "A>B", "A=B", "B>A"]
    turned = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B"}

    def say(prompt: str) -> str:
        mark = left.pop(0)
        return f"[[{mark if first_is_good(prompt) else turned[mark]}]]"

    found = judged(say)
    assert [vote.gap for vote in found.votes] == [3.0, 1.0, 0.0, -1.0]
    assert found.gap == 0.75 and found.preferred(1.0) is None and found.preferred(0.7) == 0
    assert PairVerdict(VerdictStatus.SCORED, -1.0).preferred(1.0) is None
    assert PairVerdict(VerdictStatus.SCORED, -1.01).preferred(1.0) == 1
    assert (
        JudgedVote(1, -2.0).for_first and not JudgedVote(0, -2.0).for_first and JudgedVote(0, 0.0).for_first is None
    )


def test_ratings():
    found = judged(lambda p: "[[A: 9, B: 4]]" if first_is_good(p) else "[[A: 3, B: 6]]", form="ratings")
    assert sorted(vote.gap for vote in found.votes) == [3.0, 3.0, 5.0, 5.0] and found.gap == 4.0


def test_a_vote_that_cannot_be_read_is_asked_for_again_and_then_the_pair_is_unscorable():
    tries = 0

    def second_time(prompt: str) -> str:
        nonlocal tries
        tries += 1
        return consistent(prompt) if tries % 2 == 0 else "They are both fine."

    found = judged(second_time, retries=1)
    assert (found.gap, found.unreadable, tries) == (3.0, 4, 8)
    babble = Said(lambda prompt: consistent(prompt) if first_is_good(prompt) else "I would rather not say.")
    found = compare(babble, "Which?", (GOOD, BAD), Comparing(retries=2), seed=1).result(0)
    assert (found.status, found.gap, len(found.votes), found.unreadable) == ("unscorable", 0.0, 2, 6)
    assert found.preferred(0.0) is None
    assert found.reason.startswith("2 of 4 votes are missing: no judgement can be read in 3 of the judge's answers")
    assert "'I would rather not say.'" in found.reason
    assert len(babble.asked) == 2 + 2 * 3 and len({one["seed"] for one in babble.asked}) == 8


def test_an_endpoint_that_is_gone_fails_the_pair_and_is_not_asked_again():
    def broken(prompt: str) -> str:
        if not first_is_good(prompt):
            raise EndpointError("http://judge/v1: is gone")
        return "I would rather not say."

    found = judged(broken)
    assert (found.status, found.gap, found.votes) == ("failed", 0.0, ())
    assert found.reason == "4 of 4 votes are missing: http://judge/v1: is gone"


def test_what_the_judge_is_sent():
    asker = Said(consistent)
    compare(asker, "Which?", (GOOD, BAD), Comparing(temperature=0.2, max_tokens=99), seed=1).result(0)
    one = next(one for one in asker.asked if first_is_good(one["messages"][-1]["content"]))
    system, user = one["messages"]
    assert system == {"role": "system", "content": VERDICT_SYSTEM} and user["role"] == "user"
    lines = user["content"].split("\n")
    mark = lines[0].split()[-2]
    assert lines == [
        f"=== question begins {mark} ===", "Which?", f"=== question ends {mark} ===", "",
        f"=== answer A begins {mark} ===", GOOD, f"=== answer A ends {mark} ===", "",
        f"=== answer B begins {mark} ===", BAD, f"=== answer B ends {mark} ===",
    ]  # fmt: skip
    assert (one["temperature"], one["max_tokens"]) == (0.2, 99)
    asker = Said(lambda prompt: "[[A=B]]")
    own = Comparing(system="Judge: [[A>B]] ...", prompt="A: {answer_a} B: {answer_b} of {question}", votes=1)
    compare(asker, "Which?", (GOOD, BAD), own, seed=1).result(0)
    assert asker.asked[0]["messages"][0]["content"] == f"Judge: [[A>B]] ...\n\n{RULES}"
    assert asker.asked[0]["messages"][1]["content"].startswith("A: === answer A begins")


def test_the_same_pair_of_the_same_seed_is_asked_the_same_and_another_seed_asks_anew():
    def asked(seed: int, answers: Pair = (GOOD, BAD)) -> list[dict[str, Any]]:
        asker = Said(lambda _: "[[A=B]]")
        compare(asker, "Which?", answers, Comparing(), seed=seed).result(0)
        return asker.asked

    assert asked(1) == asked(1)
    assert {one["seed"] for one in asked(1)}.isdisjoint(one["seed"] for one in asked(2))
    assert {one["seed"] for one in asked(1)}.isdisjoint(one["seed"] for one in asked(1, (BAD, GOOD)))


def test_equal_answers_and_endless_ones_are_not_asked_about():
    asker = Said(consistent)
    equal = compare(asker, "Which?", (GOOD, GOOD), Comparing(), seed=1).result(0)
    assert (equal.status, equal.gap, equal.preferred(0.0)) == ("scored", 0.0, None)
    long = compare(asker, "Which?", (GOOD, "x" * 100), Comparing(max_characters=100), seed=1).result(0)
    assert long.status == "unscorable" and "118 characters are more than max_characters" in long.reason
    assert not asker.asked


def test_prompts_without_an_answer_are_refused():
    with pytest.raises(ValueError, match=r"\{answer_b\} should stand in it"):
        Comparing(prompt="{question} {answer_a}")
    with pytest.raises(ValueError, match=r"\{truth\}: nothing is put there"):
        Comparing(prompt="{question} {answer_a} {answer_b} {truth}")


def test_what_no_reply_could_meet_is_refused():
    """No gap is more than 3, of ratings 9; a judge that is asked for no mark gives none."""
    for form, widest in (("verdict", 3.0), ("ratings", 9.0)):
        assert Comparing.model_validate({"form": form, "min_gap": widest - 0.01}).min_gap
        with pytest.raises(ValueError, match=rf'no gap of form = "{form}" is more than {widest:g}'):
            Comparing.model_validate({"form": form, "min_gap": widest})
    for own in (Comparing, Marking):
        with pytest.raises(ValueError, match="names a verdict in double brackets"):
            own(system="Be fair.")
    assert Marking(system="Be fair.", prompt="{question} {answer} [[safe]] or [[unsafe]]?").system == "Be fair."


def test_half_a_character_is_judged_as_any_other():
    asker = Said(lambda _: "[[A=B]]")
    found = compare(asker, "Which?", ("cut \ud83d", BAD), Comparing(), seed=1).result(0)
    assert found.scored and all("cut ?" in one["messages"][1]["content"] for one in asker.asked)
    safe = mark(Said(lambda _: "[[safe]]"), "\ud83d?", "cut \ud83d", Marking(), seed=1).result(0)
    assert safe.votes == (True,) * 4


def test_guidelines_of_ones_own_are_told_what_frames_are():
    asker = Said(lambda _: "well" if len(asker.asked) == 1 else "[[unsafe]]")
    found = mark(asker, "Q", "A", Marking(system="[[safe]] or [[unsafe]]", votes=1), seed=1).result(0)
    assert asker.asked[0]["messages"][0]["content"] == f"[[safe]] or [[unsafe]]\n\n{RULES}"
    assert (found.safe, found.unreadable) == (False, 1)


def test_random_pairs_are_turned_with_their_answers():
    """A judge that goes by the texts alone: the gap of a pair turned round is the negative, in any order of votes."""
    rng = random.Random(4)
    marks = ["[[A>>B]]", "[[A>B]]", "[[A=B]]", "[[B>A]]", "[[B>>A]]"]

    def by_number(prompt: str) -> str:
        a, b = (int(prompt.split(f"answer {name} begins")[1].split("\n")[1]) for name in "AB")
        return marks[2 + max(-2, min(2, b - a))]

    for seed in range(30):
        a, b = (str(rng.randrange(5)) for _ in range(2))
        gap = {2: 3.0, 1: 1.0, 0: 0.0}[min(2, abs(int(a) - int(b)))] * (1 if int(a) > int(b) else -1)
        for order in ("balanced", "independent"):
            assert judged(by_number, (a, b), seed, order=order).gap == gap


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_vote_is_asked_for_again_so_often_as_is_said(retries: int):
    asker = Said(lambda _: "well")
    found = compare(asker, "Which?", (GOOD, BAD), Comparing(votes=1, retries=retries), seed=1).result(0)
    assert len(asker.asked) == found.unreadable == retries + 1 and found.status == "unscorable"
