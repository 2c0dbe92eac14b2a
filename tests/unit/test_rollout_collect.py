"""Answers are judged as they come, after they are journalled, and come back in the order of what was asked."""

from pathlib import Path
from typing import Any

import pytest
from journal_data import PARAMS, CountingEngine, completions, counted, policies_of, request

from r1mega.rewards.judges import gathered
from r1mega.rollout.collect import Count, collect
from r1mega.rollout.journal import Journal
from r1mega.rollout.replay import JournalledEngine


def test_groups_are_judged_as_they_complete_and_returned_in_order():
    engine, events = CountingEngine(), list[Any]()

    def judge(prompt: Any, answers: Any) -> Any:
        assert len(engine.asked) == len(events) // 2 + 1  # the next one is not even asked for
        events.append(("judged", prompt.id, [a.token_ids for a in answers]))
        return gathered([], lambda _: f"verdict on {prompt.id}")

    requests = [request(i) for i in range(6)]
    found = collect(engine, requests, PARAMS, version=3, judge=judge, on_judged=lambda i, j: events.append((i, j)))
    assert found == [f"verdict on p{i}" for i in range(6)]
    order = [int(name.removeprefix("p")) for name in engine.asked]
    assert order != sorted(order)
    assert events == [
        event
        for i in order
        for event in (("judged", f"p{i}", [c.token_ids for c in completions(i)]), (i, f"verdict on p{i}"))
    ]


def test_an_answer_whose_judge_breaks_is_journalled(tmp_path: Path):
    def breaks(prompt: Any, answers: Any) -> None:
        raise OSError("the verifier's disk is full")

    with Journal(tmp_path) as journal:
        engine = JournalledEngine(CountingEngine(), journal, policies=policies_of, replay="journal")
        with pytest.raises(OSError, match="disk is full"):
            collect(engine, [request(1), request(2)], PARAMS, version=3, judge=breaks)
        assert journal.state() == counted(v3=1)


def test_people_are_told_how_many_answers_have_come():
    said = list[tuple[str, str]]()
    count = Count(lambda *words: said.append(words), "rollout", 2, 700)
    count(1, None)
    count(0, None)
    assert said == [
        ("rollout", "waiting for the first of 1,400 answers"),
        ("rollout", "700 of 1,400 answers"),
        ("rollout", "1,400 of 1,400 answers"),
    ]
