"""Preference data made at a real HTTP server: what is asked, what is kept and why, and runs that are broken off."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer, fails, reply, sends
from preference_run import NUM_ASKED, NUM_QUESTIONS, answer, judge, made, quality, rows, run, say, shown, write

from r1mega.data.split import HELD_OUT
from r1mega.errors import DataError, EndpointError, EndpointLostError
from r1mega.runtime.interrupt import Interrupted

ROOT = Path(__file__).parents[2]
WIDE = "pairs.length_step=1000"
"""All lengths are alike: what is dropped is dropped for its direction alone."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointServer]:
    monkeypatch.setenv("A_KEY", "sk-not-to-be-seen")
    with EndpointServer(say) as server:
        yield server


def asked_of(server: EndpointServer, model: str) -> list[dict[str, Any]]:
    return [body for body in server.bodies if body["model"] == model]


def summary_of(question: str, seed: int) -> str:
    """What the policy's answer says behind its thought."""
    said = answer({"messages": [{"content": question}], "seed": seed})
    return said.partition("</think>")[2].strip()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, EndpointServer]]:
    """An uninterrupted run, one request at a time, and what its server was asked."""
    folder = tmp_path_factory.mktemp("whole")
    with EndpointServer(say) as server:
        before = os.environ.get("A_KEY")
        os.environ["A_KEY"] = "k"
        run(write(folder, server), folder / "run", WIDE, *ONE_BY_ONE)
        os.environ.pop("A_KEY") if before is None else None
        yield folder / "run", server


ONE_BY_ONE = ("endpoint.concurrency=1", "judge.endpoint.concurrency=1")


def test_pairs_are_what_the_judge_says_of_the_summaries(whole: Any):
    folder, server = whole
    pairs, judged, of = rows(folder, "pairs.jsonl"), rows(folder, "judged.jsonl"), made(folder)
    asked = of["counts"]["questions"]
    assert (
        asked == NUM_QUESTIONS - json.loads((folder / "questions.json").read_text())["questions"]["own"]["held_out"]
    )
    assert 0 < asked < NUM_QUESTIONS and not any(row["prompt"] in HELD_OUT for row in pairs)
    assert len(asked_of(server, "policy")) == 4 * asked and len(judged) == of["counts"]["pairs judged"] <= 2 * asked
    for row in pairs:
        of_answers = row["provenance"]["answers"]
        for side in ("chosen", "rejected"):
            assert row[side] == summary_of(row["prompt"], of_answers[side]["seed"])
        assert quality(row["chosen"]) - quality(row["rejected"]) >= 2 and row["gap"] == 3.0
        assert [vote["gap"] for vote in row["votes"]] == [3.0] * 4
        assert Counter(vote["shown_first"] for vote in row["votes"]) == {"chosen": 2, "rejected": 2}
    # Two of quality two apart are kept, and of these as many of either direction of length.
    far = [row for row in judged if row["outcome"] in ("kept", "unbalanced")]
    assert {abs(row["gap"]) for row in far} == {3.0}
    assert {abs(row["gap"]) for row in judged if row["outcome"] == "gap_too_small"} == {0.0, 1.0}
    longer = [row["lengths"][row["gap"] < 0] > row["lengths"][row["gap"] > 0] for row in far]
    equal = sum(row["lengths"][0] == row["lengths"][1] for row in far)
    assert len(pairs) == 2 * min(sum(longer), len(far) - equal - sum(longer)) + equal == 10


def test_the_judge_sees_the_summaries_alone_each_as_often_first(whole: Any):
    folder, server = whole
    bodies = asked_of(server, "judge")
    assert len(bodies) == 4 * made(folder)["counts"]["pairs judged"] == len({body["seed"] for body in bodies})
    seen = Counter(shown(body) for body in bodies)
    assert all(seen[q, first, second] == seen[q, second, first] == 2 for q, first, second in seen)
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0.7, 2048)}
    assert not any("let me see" in json.dumps(body) for body in bodies)


def test_everything_that_is_left_out_is_counted(whole: Any):
    folder, _ = whole
    bias = made(folder)["judge"]["bias"]
    assert bias["position"]["bias"] == 0 and bias["position"]["low"] < 0 < bias["position"]["high"]
    won = [
        row["lengths"][row["gap"] < 0] - row["lengths"][row["gap"] > 0]
        for row in rows(folder, "judged.jsonl")
        if row["gap"]
    ]
    unequal = [more for more in won if more]
    assert bias["length"]["bias"] == pytest.approx(sum(more > 0 for more in unequal) / len(unequal) - 0.5)
    assert bias["length"]["pairs"] == len(unequal)
    of, judged, policy = made(folder), rows(folder, "judged.jsonl"), asked_of(whole[1], "policy")
    outcomes = Counter(row["outcome"] for row in judged)
    assert outcomes.pop("kept") == of["counts"]["pairs"] == len(rows(folder, "pairs.jsonl"))
    assert outcomes == {why: of["left_out"][why] for why in ("gap_too_small", "unbalanced")}
    assert of["lengths"]["before"]["pairs"] == of["counts"]["pairs"] + of["left_out"]["unbalanced"]
    assert of["lengths"]["after"]["share_longer"] == 0.5 != of["lengths"]["before"]["share_longer"]
    said = Counter(
        (b["messages"][-1]["content"], summary_of(b["messages"][-1]["content"], b["seed"])) for b in policy
    )
    assert of["left_out"]["equal"] == len(policy) - len(said) == 1


def test_a_row_says_where_it_comes_from(whole: Any):
    folder, server = whole
    row = rows(folder, "pairs.jsonl")[0]
    of = row["provenance"]
    assert of["question"] == {"id": of["question"]["id"], "source": "own", "domain": "helpful"}
    assert of["policy"]["endpoint"] == server.url and of["policy"]["model"] == "policy"
    assert of["policy"]["start"] == json.loads((folder / "run.json").read_text())["start"] != ""
    assert of["sampling"]["temperature"] == 0.6 and of["sampling"]["n"] == 4 and of["scope"] == "summary"
    assert {of["judge"][name] for name in ("model", "votes", "form", "order")} == {"judge", 4, "verdict", "balanced"}
    for row in rows(folder, "pairs.jsonl"):
        said = {name: value for name, value in row.items() if name != "sha256"}
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert row["sha256"] == hashlib.sha256(text.encode()).hexdigest()


# ---- runs that end in the middle -----------------------------------------------------------------------------------


def same(folder: Path, whole: Path) -> None:
    """The files that a run is made for are those of the uninterrupted one, but for the server's port."""

    def read(file: Path) -> str:
        text = re.sub(r"127\.0\.0\.1:\d+", "here", file.read_text())
        return re.sub(r'"(sha256|start)": "[0-9a-f]+"', r'"\1": ""', text)  # which depend on the port

    for name in ("pairs.jsonl", "judged.jsonl"):
        assert read(folder / name) == read(whole / name)
    assert made(folder)["counts"] == made(whole)["counts"] and made(folder)["lengths"] == made(whole)["lengths"]


def requests(server: EndpointServer) -> Counter[str]:
    names = ("model", "messages", "seed")
    return Counter(json.dumps([body[name] for name in names]) for body in server.bodies)


AFTER = {"answers": 15, "judgements": 60}
"""Half of a run -> a request in the middle of it."""


@pytest.mark.parametrize("half", AFTER)
def test_a_killed_run_goes_on_and_asks_nothing_twice(half: str, whole: Any, server: EndpointServer, tmp_path: Path):
    config, killed = write(tmp_path, server), list[subprocess.Popen[str]]()
    answered = [lambda h: reply(h, server.answer(h.body, h.path))] * AFTER[half]

    def kill(_: Any) -> None:
        killed[0].kill()
        killed[0].wait()

    server.faults = [*answered, kill]
    overrides = [part for one in (WIDE, *ONE_BY_ONE) for part in ("--set", one)]
    command = [sys.executable, "-m", "r1mega.cli", "run", str(config), "--run-dir", str(tmp_path / "run"), *overrides]
    killed.append(subprocess.Popen([*command, "--cluster", str(ROOT / "configs/cluster/laptop.toml")], text=True))
    assert killed[0].wait(timeout=120) == -signal.SIGKILL and len(server.bodies) == AFTER[half] + 1
    assert not (tmp_path / "run/summary.json").exists()
    server.bodies.pop()  # it was not answered
    run(config, tmp_path / "run", WIDE, *ONE_BY_ONE, resume=True)
    same(tmp_path / "run", whole[0])
    assert requests(server) == requests(whole[1]) and max(requests(server).values()) == 1


@pytest.mark.parametrize("half", AFTER)
def test_a_signal_breaks_off_at_once(half: str, whole: Any, server: EndpointServer, tmp_path: Path):
    config = write(tmp_path, server)
    answered = [lambda h: reply(h, server.answer(h.body, h.path))] * AFTER[half]
    server.faults = [*answered, lambda h: os.kill(os.getpid(), signal.SIGTERM)]
    with pytest.raises(Interrupted, match="continue with --resume") as stopped:
        run(config, tmp_path / "run", WIDE, *ONE_BY_ONE)
    assert stopped.value.exit_code == 128 + signal.SIGTERM and len(server.bodies) == AFTER[half] + 1
    server.bodies.pop()
    run(config, tmp_path / "run", WIDE, *ONE_BY_ONE, resume=True)
    same(tmp_path / "run", whole[0])
    assert requests(server) == requests(whole[1])


def test_a_judges_budget_stops_the_run_and_another_start_has_another(server: EndpointServer, tmp_path: Path):
    config, budget = write(tmp_path, server), "judge.endpoint.budget_requests=50"
    with pytest.raises(EndpointError, match=r"budget_requests = 50 is used up: 50.*continue with --resume"):
        run(config, tmp_path / "run", WIDE, budget)
    assert len(asked_of(server, "judge")) == 50
    run(config, tmp_path / "run", WIDE, budget, resume=True)
    assert max(requests(server).values()) == 1 and rows(tmp_path / "run", "pairs.jsonl")


def test_a_dead_judge_stops_the_run_and_what_it_said_is_kept(server: EndpointServer, tmp_path: Path):
    config, few = write(tmp_path, server), ("judge.endpoint.attempts=2", *ONE_BY_ONE)
    run_dir, judging = tmp_path / "run", 4 * NUM_ASKED
    server.faults = [lambda h: reply(h, server.answer(h.body, h.path))] * (judging + 40) + [fails(503)] * 1000
    with pytest.raises(
        EndpointLostError, match=r"judge.max_failed = 0.05 lets pass.*answered 503.*continue with --re"
    ):
        run(config, run_dir, WIDE, *few)
    assert not (run_dir / "pairs.jsonl").exists()
    server.faults, before = [], len(server.bodies)
    run(config, run_dir, WIDE, *few, resume=True)
    assert len(server.bodies) - before == 4 * made(run_dir)["counts"]["pairs judged"] - 40


def test_a_judgement_that_fails_by_itself_is_counted_and_no_pair(server: EndpointServer, tmp_path: Path):
    """One request is refused as too long for the judge's model."""
    config = write(tmp_path, server)
    answered = [lambda h: reply(h, server.answer(h.body, h.path))] * (4 * NUM_ASKED + 9)
    server.faults = [*answered, fails(400, {"error": {"message": "too many tokens"}})]
    run(config, tmp_path / "run", WIDE, *ONE_BY_ONE)
    (failed,) = (row for row in rows(tmp_path / "run", "judged.jsonl") if row["outcome"] == "failed")
    assert made(tmp_path / "run")["left_out"]["failed"] == 1
    assert "too many tokens" in failed["reason"] and "gap" not in failed


# ---- judges that are none ------------------------------------------------------------------------------------------


def judging(server: EndpointServer, say_so: Any) -> None:
    server.say = lambda body: say_so(body) if body["model"] == "judge" else answer(body)


def test_a_babbling_judge_leaves_pairs_unscorable(server: EndpointServer, tmp_path: Path):
    """It finds no words for answers of quality 0."""
    judging(server, lambda body: "Well." if "Quality 0" in json.dumps(body) else judge(body))
    run(write(tmp_path, server), tmp_path / "run", WIDE)
    judged = rows(tmp_path / "run", "judged.jsonl")
    unscorable = [row for row in judged if row["outcome"] == "unscorable"]
    assert len(unscorable) == made(tmp_path / "run")["left_out"]["unscorable"] > 2
    assert all("no judgement can be read" in row["reason"] and "gap" not in row for row in unscorable)
    assert not any("Quality 0" in row[side] for row in rows(tmp_path / "run", "pairs.jsonl") for side in ("chosen",))
    assert len(asked_of(server, "judge")) == 4 * len(judged) + 8 * len(unscorable)  # asked twice more for each vote
    assert made(tmp_path / "run")["judge"]["unreadable"] == 12 * len(unscorable)


def test_a_judge_that_goes_by_the_order_leaves_no_pair(server: EndpointServer, tmp_path: Path):
    judging(server, lambda body: "[[A>>B]]")
    with pytest.raises(
        DataError, match=r"no pair is left of \d+ judged ones \(1 equal, \d+ gap too small\): none has a gap"
    ):
        run(write(tmp_path, server), tmp_path / "run")
    assert {row["gap"] for row in rows(tmp_path / "run", "judged.jsonl")} == {0.0}
    assert not (tmp_path / "run/pairs.jsonl").exists() and not (tmp_path / "run/summary.json").exists()


def longer(body: dict[str, Any]) -> str:
    _, first, second = shown(body)
    return f"[[{'A>>B' if len(first) > len(second) else 'A=B' if len(first) == len(second) else 'B>>A'}]]"


def test_a_judge_of_length_leaves_no_pair_and_what_can_be_had_is_said(server: EndpointServer, tmp_path: Path):
    """The same command goes on with another choice, and asks nobody anything."""
    config = write(tmp_path, server)
    judging(server, longer)
    said = r"longer answer chosen in 100\.0%.*can keep 0 with \"lengths\", 0 with \"difference\", (\d+) with \"none\""
    with pytest.raises(DataError, match=said) as refused:
        run(config, tmp_path / "run")
    found, num = re.search(said, str(refused.value)), len(server.bodies)
    run(config, tmp_path / "run", "pairs.balance=none")
    pairs = rows(tmp_path / "run", "pairs.jsonl")
    assert found is not None and len(pairs) == int(found[1]) > 5 and len(server.bodies) == num
    assert all(len(row["chosen"]) > len(row["rejected"]) for row in pairs)


# ---- answers that are none -----------------------------------------------------------------------------------------


def test_answers_without_a_summary_and_cut_ones_and_equal_ones_are_counted(server: EndpointServer, tmp_path: Path):
    """Of every question the first answer thinks for ever, the second is cut, the third and the fourth are equal."""
    texts = [
        "<think>for ever",
        "<think>a</think> Quality 4",
        "<think>b</think> Quality 3",
        "<think>c</think>Quality 3 ",
    ]

    def choice(i: int) -> bytes:
        ended = "length" if i == 1 else "stop"
        choices = [{"index": 0, "finish_reason": ended, "message": {"content": texts[i]}}]
        return json.dumps({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 5}}).encode()

    server.faults = [sends(choice(i % 4)) for i in range(4 * NUM_ASKED)]
    settings = ("pairs.per_question=1", *ONE_BY_ONE)
    n = NUM_ASKED
    with pytest.raises(DataError, match=f"{n} no summary, {n} truncated, {n} equal, {n} no pair"):
        run(write(tmp_path, server), tmp_path / "run", *settings)
    assert asked_of(server, "judge") == []
    said = rf"{n} judged ones \({n} no summary, {n} equal, {n} gap too small\): none has a gap of more than"
    with pytest.raises(DataError, match=said):
        run(write(tmp_path, server), tmp_path / "run", "answers.truncated=keep", *settings)


# ---- safety --------------------------------------------------------------------------------------------------------


def safety(folder: Path, server: EndpointServer) -> Path:
    config = write(folder, server)
    text = config.read_text().replace("[pairs]\nper_question = 2\n", "")
    config.write_text(text.replace('stage = "preferences"', 'stage = "preferences"\nlabel = "safety"'))
    return config


def test_answers_are_marked_safe_or_unsafe_as_a_whole(server: EndpointServer, tmp_path: Path):
    run(safety(tmp_path, server), tmp_path / "run")
    found, of = rows(tmp_path / "run", "labelled.jsonl"), made(tmp_path / "run")
    assert len(found) == of["counts"]["safe"] + of["counts"]["unsafe"] == 4 * NUM_ASKED
    for row in found:
        given = row["provenance"]["answers"]["response"]
        assert row["response"] == answer({"messages": [{"content": row["prompt"]}], "seed": given["seed"]})
        assert row["safe"] is (quality(row["response"]) >= 2) and row["votes"] == [row["safe"]] * 4
    assert {row["safe"] for row in found} == {True, False}
    assert all("let me see" in shown(body)[1] for body in asked_of(server, "judge"))
    assert found[0]["provenance"]["scope"] == "response"


def test_answers_on_which_the_votes_are_split_are_left_out(server: EndpointServer, tmp_path: Path):
    """The judge is of two minds about quality 2: half of the votes, by the seed's place among the four."""
    seen = Counter[str]()

    def torn(body: dict[str, Any]) -> str:
        text = shown(body)[1]
        if quality(text) != 2:
            return judge(body)
        seen[text + shown(body)[0]] += 1
        return f"[[{'safe' if seen[text + shown(body)[0]] % 2 else 'unsafe'}]]"

    judging(server, torn)
    run(safety(tmp_path, server), tmp_path / "run", "judge.endpoint.concurrency=1")
    found, of = rows(tmp_path / "run", "labelled.jsonl"), made(tmp_path / "run")
    assert of["left_out"]["undecided"] == len(seen) > 0 and len(found) == 4 * NUM_ASKED - len(seen)
    assert all(quality(row["response"]) != 2 for row in found)
