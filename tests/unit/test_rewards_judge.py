"""Rewards that an endpoint gives: what is asked, what comes of it, and whose fault it is when nothing does."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, fails, hangs
from journal_data import PARAMS, request
from judging import PROMPT, RIGHT, WRONG, by_rule, completion, judge, server, verdicts
from one_pool import this_process_pool
from recording import stop_signal
from rule_judge_here import rule_judge

from r1mega.algos.advantage import samples_from_groups
from r1mega.buffers import Int32s
from r1mega.errors import ConfigError, RewardError
from r1mega.rewards.callers import connected
from r1mega.rewards.failures import Failures
from r1mega.rewards.format import Format
from r1mega.rewards.judge import Judge
from r1mega.rewards.judge_forms import RIGHT_SYSTEM, RULES
from r1mega.rewards.judges import Judges
from r1mega.rewards.reward import Reward
from r1mega.rewards.rubric import Rubric
from r1mega.rollout.collect import collect, judged
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams
from r1mega.runtime.interrupt import Interrupt, StopNow
from r1mega.samples import Completion, Group, Prompt

__all__ = ["server"]  # a fixture


def test_a_judges_word_is_a_part_of_the_reward(server: EndpointServer):
    rewards: dict[str, Reward] = {
        "judge": judge(server, weight=2.0),
        "format": Format.model_validate({"weight": 0.5}),
    }
    right, wrong, bare = verdicts(rewards, [RIGHT, WRONG, "Mary Shelley"])
    assert (right.reward, right.parts) == (2.5, {"judge": 1.0, "format": 1.0})
    assert (wrong.reward, wrong.parts) == (0.5, {"judge": 0.0, "format": 1.0})
    assert (bare.reward, bare.parts) == (2.0, {"judge": 1.0, "format": 0.0})
    assert right.reason == "By rule. [[right]]"


def test_what_a_judge_is_sent(server: EndpointServer):
    verdicts({"judge": judge(server, endpoint={"extra": {"top_k": 1}})}, [RIGHT])
    (body,) = server.bodies
    system, user = body["messages"]
    assert system == {"role": "system", "content": RIGHT_SYSTEM}
    assert rule_judge.framed(user["content"]) == {
        "question": "Who wrote it?", "reference answer": "Mary Shelley", "model's answer": "Mary Shelley",
    }  # fmt: skip
    assert (body["temperature"], body["max_tokens"], body["n"], body["top_k"]) == (0.0, 2048, 1, 1)
    server.bodies.clear()
    drawn = {"temperature": 0.5, "max_tokens": 7}
    own = judge(server, scope="response", system="[[right]]?", prompt="{answer} to {question}", **drawn)
    verdicts({"judge": own}, [RIGHT])
    (body,) = server.bodies
    told, user = body["messages"]
    assert told["content"] == f"[[right]]?\n\n{RULES}"
    assert rule_judge.framed(user["content"]) == {"model's answer": RIGHT, "question": "Who wrote it?"}
    assert (body["temperature"], body["max_tokens"]) == (0.5, 7)


def test_a_share_is_the_mean_of_the_votes(server: EndpointServer):
    grades = iter(["[[3]]", "[[8]]", "[[10]]"])
    server.say = lambda body: next(grades)
    (found,) = verdicts({"judge": judge(server, form="share", votes=3)}, [RIGHT])
    assert found.parts["judge"] == pytest.approx(0.7)
    assert len({body["seed"] for body in server.bodies}) == 3


def test_equal_answers_are_judged_once_and_alike(server: EndpointServer):
    coin = iter([f"[[{'right' if i % 2 else 'wrong'}]]" for i in range(9)])
    server.say = lambda body: next(coin)
    found = verdicts({"judge": judge(server)}, [RIGHT, RIGHT, "<think>Or so.</think><answer>Mary Shelley</answer>"])
    assert len(server.bodies) == 1 and len({verdict.reward for verdict in found}) == 1


def test_what_an_answer_itself_is_at_fault_for_is_scored(server: EndpointServer):
    long, open_thought, empty = "x" * 101, "<think>It was", "<think></think>"
    found = verdicts({"judge": judge(server, max_characters=100)}, [long, open_thought, empty])
    assert [(v.status, v.reward) for v in found] == [("scored", 0.0)] * 3 and not server.bodies
    assert "101 characters are too many" in found[0].reason and "there is no summary in it" in found[1].reason
    (found,) = verdicts({"judge": judge(server, floor=-1.0)}, [open_thought])
    assert found.reward == -1.0


def test_a_question_without_a_reference_answer_cannot_be_judged_by_it(server: EndpointServer):
    prompt = Prompt("p", "none", "Write a poem.", " ", Int32s([1]), domain="helpful")
    (found,) = verdicts({"judge": judge(server)}, [RIGHT], prompt)
    assert found.status == "unscorable" and "no reference answer" in found.reason and not server.bodies
    server.say = lambda body: "[[7]]"
    (found,) = verdicts({"judge": judge(server, form="share", prompt="{question} {answer}")}, [RIGHT], prompt)
    assert found.reward == 0.7


# ---- what can go wrong ---------------------------------------------------------------------------------------------


def reckon(group: Group) -> dict[tuple[int, ...], float]:
    samples = samples_from_groups([group], std="population", constant_groups="keep")
    return {tuple(sample.completion_ids): sample.adv for sample in samples}


def shown(body: dict[str, Any]) -> str:
    """The answer that a judge is sent."""
    return rule_judge.framed(body["messages"][-1]["content"])["model's answer"]


def babbles(body: dict[str, Any]) -> str:
    return "Who can say?" if shown(body) == "odd" else by_rule(body)


def dead_for_odd(handler_body: dict[str, Any]) -> bool:
    return "\nodd\n" in handler_body["messages"][-1]["content"]


ENDPOINTS = {
    "babbling": ("unscorable", "reward judge: no judgement can be read in 3 of the judge's answers"),
    "dead": ("failed", "reward judge: http://"),
    "slow": ("failed", "reward judge: http://"),
    "refusing": ("failed", "reward judge: http://"),
}


@pytest.mark.parametrize("fault", ENDPOINTS)
def test_an_answer_without_a_judgement_leaves_the_group_and_changes_nothing(fault: str, server: EndpointServer):
    """It is never a zero: the siblings' advantages are those that they have without it."""
    status, reason = ENDPOINTS[fault]
    take = server.take

    def faulty(handler: Any) -> None:
        if dead_for_odd(handler.body) and fault != "babbling":
            server.faults.insert(0, {"dead": fails(503), "slow": hangs(3), "refusing": fails(400)}[fault])
        take(handler)

    server.take = faulty  # pyright: ignore[reportAttributeAccessIssue]
    server.say = babbles
    limit = {"timeout_s": 0.2} if fault == "slow" else {}
    rewards: dict[str, Reward] = {"judge": judge(server, endpoint={**limit, "concurrency": 1}), "format": Format()}
    answers = [RIGHT, WRONG, "odd", "Mary Shelley"]
    found = verdicts(rewards, answers)
    assert found[2].status == status and found[2].reason.startswith(reason) and found[2].parts == {}
    assert [verdict.reward for verdict in found if verdict.scored] == [2.0, 1.0, 1.0]
    completions = tuple(completion(text, i) for i, text in enumerate(answers))
    kept = [0, 1, 3]
    alone = Group(PROMPT, tuple(completions[i] for i in kept), tuple(found[i] for i in kept))
    assert reckon(Group(PROMPT, completions, found)) == reckon(alone)
    tries = [body for body in server.bodies if dead_for_odd(body)]
    assert len(tries) == (1 if fault == "refusing" else 3)
    seeds = {body["seed"] for body in tries}
    assert len(seeds) == (3 if fault == "babbling" else 1)  # another question, or the same again


def test_an_endpoint_that_is_gone_stops_the_run_with_its_reason(server: EndpointServer):
    server.close()
    found = verdicts({"judge": judge(server), "format": Format()}, [f"answer {i}" for i in range(64)])
    group = Group(PROMPT, tuple(completion(f"answer {i}", i) for i in range(64)), found)
    assert {verdict.status for verdict in found} == {"failed"}
    with pytest.raises(RewardError, match=r"64 of the latest 64 verdicts have failed[^$]*reward judge: http://"):
        Failures(0.25).see(0, [group])


def test_babble_does_not_stop_the_run_but_is_counted(server: EndpointServer):
    server.say = lambda body: "Who can say?"
    rewards: dict[str, Reward] = {"judge": judge(server)}
    with this_process_pool() as pool, connected(rewards, None) as callers:
        judges = Judges(pool, callers)
        asked = [completion(f"answer {i}", i) for i in range(64)]
        found = judges.judge(Rubric(rewards, "zero"), PROMPT, asked, 0).result(60)
        figures = judges.take_figures()
        Failures(0.25).see(0, [Group(PROMPT, tuple(asked), found)])
        assert judges.take_figures()["judging/asked"] == 0.0
    assert {verdict.status for verdict in found} == {"unscorable"}
    assert (figures["judging/asked"], figures["judging/unreadable"]) == (192.0, 192.0)
    assert (figures["judging/cached"], figures["judging/given_up"]) == (0.0, 0.0)


def test_nobody_is_asked_without_a_connection(server: EndpointServer):
    rewards: dict[str, Reward] = {"judge": judge(server)}
    with this_process_pool() as pool, pytest.raises(ConfigError, match="judge: an endpoint gives it"):
        Judges(pool).judge(Rubric(rewards, "zero"), PROMPT, [completion(RIGHT)], 0)


def test_a_reward_that_is_not_asked_yet_is_not_connected_to(server: EndpointServer):
    rewards: dict[str, Reward] = {"judge": judge(server, from_step=1), "format": Format()}
    (found,) = verdicts(rewards, [RIGHT])
    assert found.parts == {"format": 1.0} and not server.bodies


# ---- beside sampling -----------------------------------------------------------------------------------------------


class Sampling:
    """An engine that brings group by group, each after `between` has been called."""

    def __init__(self, between: Callable[[int], None] = lambda index: None) -> None:
        self._between = between

    def generate(
        self, requests: Sequence[Request], params: SamplingParams, *, version: int, on_answer: OnAnswer | None = None
    ) -> list[tuple[Completion, ...]]:
        assert on_answer is not None
        for index, asked in enumerate(requests):
            self._between(index)
            on_answer(index, tuple(completion(f"{index} {i}", i) for i in range(asked.n)))
        return []


def rollout(rewards: dict[str, Reward], engine: Any, folder: Path | None = None, **how: Any) -> list[Group]:
    with this_process_pool() as pool, connected(rewards, folder) as callers:
        judge = partial(judged, Judges(pool, callers), Rubric(rewards, "zero"), 0)
        asked = [request(i, n=4) for i in range(5)]
        return collect(engine, asked, PARAMS, version=0, judge=judge, **how)


def ranked(server: EndpointServer) -> dict[str, Reward]:
    """Grades an answer "3 1" with 3."""
    server.say = lambda body: f"[[{shown(body)[0]}]]"
    return {"judge": judge(server, form="share", prompt="{question}{answer}")}


def test_answers_are_judged_while_others_are_sampled(server: EndpointServer):
    """The second group is not sampled before the first one's four requests are with the judge; none is answered
    before all groups are there."""
    gate, rewards = threading.Event(), ranked(server)
    say = server.say
    server.say = lambda body: say(body) if gate.wait(60) else ""

    def between(index: int) -> None:
        while len(server.bodies) < 4 * index:
            time.sleep(0.005)
        if index == 4:
            gate.set()

    groups = rollout(rewards, Sampling(between))
    assert [[v.reward for v in group.verdicts] for group in groups] == [[i / 10] * 4 for i in range(5)]


def test_a_signal_breaks_off_waiting_and_what_was_said_is_not_asked_again(server: EndpointServer, tmp_path: Path):
    rewards = ranked(server)
    say, hold = server.say, threading.Event()

    def slow(body: dict[str, Any]) -> str:
        if shown(body).startswith("4"):
            hold.wait(60)
        return say(body)

    def stop_when_all_others_are_judged() -> None:
        while len(lines()) < 16:
            time.sleep(0.005)
        stop_signal()

    def lines() -> list[str]:
        file = tmp_path / "judgements.jsonl"
        return file.read_text().splitlines() if file.exists() else []

    server.say = slow
    threading.Thread(target=stop_when_all_others_are_judged, daemon=True).start()
    with Interrupt() as interrupt, pytest.raises(StopNow):
        rollout(rewards, Sampling(), tmp_path, breakable=interrupt.at_once)
    asked = len(server.bodies)
    # A judge that has changed its mind: only what it had not said is its new word.
    server.say = lambda body: "[[9]]"
    groups = rollout(rewards, Sampling(), tmp_path)
    assert [[v.reward for v in g.verdicts] for g in groups] == [[i / 10] * 4 for i in range(4)] + [[0.9] * 4]
    assert len(server.bodies) - asked == 4 and len(lines()) == 20
    hold.set()  # not before: what was given up would still be said


def test_a_prompt_without_the_answer_is_refused():
    with pytest.raises(ValueError, match=r"\{answer\} should stand in it"):
        Judge.model_validate({"endpoint": {"url": "http://h/v1", "model": "m"}, "prompt": "{question}"})


def test_what_was_said_stands_in_the_run_directory_without_the_key(
    server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("JUDGE_KEY", "sk-not-to-be-seen")
    rewards: dict[str, Reward] = {"judge": judge(server, endpoint={"api_key_env": "JUDGE_KEY"})}
    verdicts(rewards, [RIGHT], folder=tmp_path)
    assert server.headers[0]["authorization"] == "Bearer sk-not-to-be-seen"
    (line,) = (tmp_path / "judgements.jsonl").read_text().splitlines()
    assert json.loads(line)["value"] == "By rule.\n[[right]]" and "sk-" not in line
