"""Runs of the rejection stage that break off, come in another order, or can keep nothing; and what check says."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import fails, reply
from own_questions import HELD, TRAINED
from preference_run import rows
from rejection_run import CONFIG, MADE, NUM, RIGHT, Server, made, run, say, write

from r1mega.errors import ConfigError, DataError, EndpointLostError
from r1mega.preflight.look import look
from r1mega.runtime.interrupt import Interrupted

ROOT = Path(__file__).parents[2]
LAPTOP = str(ROOT / "configs/cluster/laptop.toml")
ONE_BY_ONE = ("endpoint.concurrency=1", "verify.judge.endpoint.concurrency=1")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(say) as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Counter[str]]:
    """What an uninterrupted run leaves, and what it asked."""
    folder = tmp_path_factory.mktemp("whole")
    server.bodies.clear()
    run(write(folder, server), folder / "run", *ONE_BY_ONE)
    return left_in(folder / "run"), requests(server)


@pytest.fixture(autouse=True)
def quiet(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.bodies.clear()
    yield
    server.faults, server.say, server.delay_s = [], say, 0.0


def left_in(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("rows.jsonl", "decisions.jsonl")}


def requests(server: Server) -> Counter[str]:
    names = ("model", "messages", "seed")
    return Counter(json.dumps([body[name] for name in names]) for body in server.bodies)


def nothing_half_written(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return not names & {"rows.jsonl", "summary.json"} and not any(".tmp" in name for name in names)


AFTER = {"answers": 20, "judgements": NUM + 12}
"""Half of a run -> a request in the middle of it."""


@pytest.mark.parametrize("half", AFTER)
def test_a_killed_run_goes_on_asks_nothing_twice_and_writes_the_same(
    half: str, whole: Any, server: Server, tmp_path: Path
):
    config, killed = write(tmp_path, server), list[subprocess.Popen[str]]()

    def kill(_: Any) -> None:
        killed[0].kill()
        killed[0].wait()

    server.bodies.clear()
    server.faults = [lambda h: reply(h, server.answer(h.body, h.path))] * AFTER[half] + [kill]
    overrides = [part for one in ONE_BY_ONE for part in ("--set", one)]
    command = [sys.executable, "-m", "r1mega.cli", "run", str(config), "--run-dir", str(tmp_path / "run"), *overrides]
    killed.append(subprocess.Popen([*command, "--cluster", LAPTOP], text=True))
    assert killed[0].wait(timeout=300) == -signal.SIGKILL and len(server.bodies) == AFTER[half] + 1
    assert not {"rows.jsonl", "decisions.jsonl", "summary.json"} & {p.name for p in (tmp_path / "run").iterdir()}
    server.bodies.pop()  # it was not answered
    run(config, tmp_path / "run", *ONE_BY_ONE, resume=True)
    assert left_in(tmp_path / "run") == whole[0]
    assert requests(server) == whole[1] and max(whole[1].values()) == 1
    assert not any(".tmp" in path.name for path in (tmp_path / "run").iterdir())


@pytest.mark.parametrize("half", AFTER)
def test_a_signal_breaks_off_at_once(half: str, whole: Any, server: Server, tmp_path: Path):
    config = write(tmp_path, server)
    server.bodies.clear()
    answered = [lambda h: reply(h, server.answer(h.body, h.path))] * AFTER[half]
    server.faults = [*answered, lambda h: os.kill(os.getpid(), signal.SIGTERM)]
    with pytest.raises(Interrupted, match="continue with --resume") as stopped:
        run(config, tmp_path / "run", *ONE_BY_ONE)
    assert stopped.value.exit_code == 128 + signal.SIGTERM and nothing_half_written(tmp_path / "run")
    server.bodies.pop()
    run(config, tmp_path / "run", *ONE_BY_ONE, resume=True)
    assert left_in(tmp_path / "run") == whole[0] and requests(server) == whole[1]


def test_in_any_order_of_completion_it_writes_the_same(whole: Any, server: Server, tmp_path: Path):
    """Sixteen at once, each of which takes a time of its own."""
    draw = random.Random(3)

    def slowly(body: dict[str, Any]) -> str:
        time.sleep(draw.random() / 50)
        return say(body)

    server.say = slowly
    run(write(tmp_path, server), tmp_path / "run")
    assert left_in(tmp_path / "run") == whole[0] and server.most_under_way > 4


def test_blocks_of_questions_write_what_one_block_writes(
    whole: Any, server: Server, tmp_path: Path, monkeypatch: Any
):
    from r1mega.stages import rejection, sampled_answers

    for module in (rejection, sampled_answers):
        monkeypatch.setattr(module, "BLOCK", 2)
    run(write(tmp_path, server), tmp_path / "run")
    assert left_in(tmp_path / "run") == whole[0]


def test_another_seed_draws_others_of_the_good_ones(server: Server, tmp_path: Path):
    """Of four good answers that are kept one by one, whichever seed draws."""
    server.say = lambda body: f"<think>I think {body['seed']} times.</think> So it is \\boxed{{1}}."
    drop = ["filters.min_tokens=0", "answers.per_question=4", "answers.max_kept=1", "verify.min_value=0.0"]
    found = set[int]()
    for seed in range(5):
        run(write(tmp_path, server), tmp_path / str(seed), *drop, f"seed={seed}")
        of_sum = [
            row
            for row in rows(tmp_path / str(seed), "rows.jsonl")
            if row["provenance"]["question"]["domain"] == "math"
        ]
        assert len(of_sum) == 1
        found.add(of_sum[0]["provenance"]["answer"]["index"])
        assert made(tmp_path / str(seed))["outcomes"] == {"kept": 1, "enough": 3, "unscorable": 8}
    assert len(found) > 1


def test_over_a_copied_journal_other_filters_ask_nobody(server: Server, tmp_path: Path):
    config = write(tmp_path, server)
    run(config, tmp_path / "first")
    (tmp_path / "second").mkdir()
    shutil.copytree(tmp_path / "first/journal", tmp_path / "second/journal")
    shutil.copy(tmp_path / "first/judgements.jsonl", tmp_path / "second")
    server.bodies.clear()
    run(config, tmp_path / "second", "filters.code_blocks=keep", "filters.min_language=0", "answers.max_kept=15")
    of = {name: made(tmp_path / name)["outcomes"] for name in ("first", "second")}
    assert not server.bodies and of["first"]["kept"] == 5 and of["second"]["kept"] == 8
    assert (of["first"]["code_block"], of["second"].get("code_block")) == (1, None)


def test_a_dead_judge_stops_the_run_and_what_it_said_is_kept(whole: Any, server: Server, tmp_path: Path):
    config, few = write(tmp_path, server), ("verify.judge.endpoint.attempts=2", *ONE_BY_ONE)
    server.bodies.clear()
    server.faults = [lambda h: reply(h, server.answer(h.body, h.path))] * (NUM + 10) + [fails(503)] * 1000
    with pytest.raises(
        EndpointLostError, match=r"verify\.judge\.max_failed = 0.05 lets pass.*503.*continue with --re"
    ):
        run(config, tmp_path / "run", *few)
    assert nothing_half_written(tmp_path / "run") and not (tmp_path / "run/decisions.jsonl").exists()
    server.faults, before = [], len(server.bodies)
    run(config, tmp_path / "run", *few, resume=True)
    assert left_in(tmp_path / "run") == whole[0]
    assert len(server.bodies) - before == sum(whole[1].values()) - NUM - 10


def test_where_nothing_is_kept_it_says_why_and_what_to_do_and_goes_on_from_there(server: Server, tmp_path: Path):
    server.say = lambda body: (
        "[[wrong]]" if body["model"] == "judge" else "<think>I do not know.</think> So \\boxed{7}."
    )
    said = r"none of 45 answers is kept \(45 wrong\): ask easier questions.*decisions\.jsonl says it of each"
    config = write(tmp_path, server)
    with pytest.raises(DataError, match=said):
        run(config, tmp_path / "run")
    assert nothing_half_written(tmp_path / "run")
    assert [row["outcome"] for row in rows(tmp_path / "run", "decisions.jsonl")] == ["wrong"] * NUM
    server.bodies.clear()
    run(config, tmp_path / "run", "verify.min_value=0.0")
    assert made(tmp_path / "run")["outcomes"] == {"kept": 3, "double": NUM - 3} and not server.bodies


def test_a_full_disk_under_the_rows_leaves_none(whole: Any, server: Server, tmp_path: Path, monkeypatch: Any):
    config, sync = write(tmp_path, server), os.fsync

    def full(descriptor: int) -> None:
        if "rows.jsonl" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device", "rows.jsonl")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(config, tmp_path / "run", *ONE_BY_ONE)
    assert nothing_half_written(tmp_path / "run")
    monkeypatch.setattr(os, "fsync", sync)
    server.bodies.clear()
    run(config, tmp_path / "run", *ONE_BY_ONE, resume=True)
    assert left_in(tmp_path / "run") == whole[0] and not server.bodies


def test_marks_that_the_model_does_not_write_are_said(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    server.say = lambda body: "[[right]]" if body["model"] == "judge" else RIGHT
    run(write(tmp_path, server), tmp_path / "run", 'answers.marks=["|s|","|s|"]')
    assert made(tmp_path / "run")["thinking"]["none"] > 0
    assert "between answers.marks" in caplog.text
    caplog.clear()
    run(write(tmp_path, server), tmp_path / "other")
    assert "between answers.marks" not in caplog.text


# ---- examples ------------------------------------------------------------------------------------------------------


def shots(folder: Path, question: str) -> str:
    (folder / "shots.jsonl").write_text(json.dumps({"question": question, "response": "<think>So.</think> Yes."}))
    return f"prompt.few_shot={folder / 'shots.jsonl'}"


def test_examples_stand_before_every_question_and_in_no_row(server: Server, tmp_path: Path):
    config = write(tmp_path, server)
    run(config, tmp_path / "run", shots(tmp_path, "Is it so?"))
    asked = [body["messages"] for body in server.bodies if body["model"] == "policy"]
    before = [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "<think>So.</think> Yes."}]
    assert len(asked) == NUM and all(messages[:-1] == before for messages in asked)
    found = rows(tmp_path / "run", "rows.jsonl")
    assert all(len(row["messages"]) == 2 and "Is it so?" not in json.dumps(row["messages"]) for row in found)
    assert all(json.loads(row["provenance"]["policy"]["asked_as"])[:-1] == before for row in found)


def test_an_example_that_is_asked_or_held_out_is_refused(server: Server, tmp_path: Path):
    config = write(tmp_path, server)
    with pytest.raises(DataError, match=r"shots\.jsonl, line 1: the example asks what .*sums\.jsonl, line 1 asks"):
        look(config, LAPTOP, [shots(tmp_path, f" {TRAINED[0]}")])
    with pytest.raises(DataError, match=r"shots\.jsonl, line 1: the example's question is of the held-out side"):
        look(config, LAPTOP, [shots(tmp_path, HELD[0])])
    assert look(config, LAPTOP, [shots(tmp_path, "Is it so?")]).absent == ()


# ---- check ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("verify.judge.endpoint.ur=x", "did you mean 'url'"),
        ("answers.max_kept=16", "answers.max_kept: 16 of answers.per_question = 15"),
        ("questions.0.weight=2", "questions.0.weight: each question is asked alike here"),
        ("verify.unjudged=keep", "verify.unjudged: with a judge nothing is left unjudged"),
        ("filters.max_tokens=3", "filters.max_tokens: 3 is less than filters.min_tokens = 5"),
        ("filters.min_tokens=81", "filters.min_tokens: 81 is more than sampling.max_new_tokens = 80"),
        ("filters.language=xx", "does not know 'xx'"),
        ('answers.marks=["",""]', "answers.marks.0: is empty: give a value"),
        ("thinking.empty=none", "thinking.empty: has to hold both marks, '<think>' and '</think>'"),
        ("thinking.domains=['code']", "thinking.domains: no table of [[questions]] is of 'code': math, general"),
        ("thinking.domains=[]", "thinking: simple_words and empty have no effect without thinking.domains"),
        ("verify.words.system=Fair.", "neither system nor prompt names a verdict in double brackets"),
        ("evaluation.every_steps=1", "unknown key"),
    ],
)
def test_what_is_wrong_with_a_config(override: str, said: str, server: Server, tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(said)):
        look(write(tmp_path, server), LAPTOP, [override])
    assert not server.bodies


def test_questions_that_nobody_can_judge_are_refused_or_kept_unjudged(server: Server, tmp_path: Path):
    config = write(tmp_path, server, CONFIG[: CONFIG.index("[verify.judge.endpoint]")])
    with pytest.raises(
        DataError, match=r"(?s)2 question\(s\) that no rule can judge: name a judge.*general\.jsonl, line 1"
    ):
        look(config, LAPTOP)
    run(config, tmp_path / "run", "verify.unjudged=keep")
    verdicts = [row["provenance"]["verdict"] for row in rows(tmp_path / "run", "rows.jsonl")]
    assert verdicts == [{"by": "rule:math", "value": 1.0}] * 2 + [{"by": "none", "value": None}] * 4
    assert {body["model"] for body in server.bodies} == {"policy"} and made(tmp_path / "run")["judge"] is None
    assert sum(made(tmp_path / "run")["outcomes"].values()) == NUM == sum(map(len, MADE.values()))


def test_questions_without_a_truth_need_other_words(server: Server, tmp_path: Path):
    config = write(tmp_path, server)
    (tmp_path / "general.jsonl").write_text('{"question": "How are you?"}\n')
    with pytest.raises(
        DataError, match=r"(?s)1 question\(s\) without a truth for the judge; give them one, or leave \{truth\}"
    ):
        look(config, LAPTOP)
    words = ["verify.words.prompt={question} {answer}", "verify.words.system=Is it kind? [[right]] or [[wrong]]"]
    assert look(config, LAPTOP, words).absent == ()


def test_files_without_a_question_are_refused(server: Server, tmp_path: Path):
    config = write(tmp_path, server)
    for name in ("sums", "general"):
        (tmp_path / f"{name}.jsonl").write_text("")
    with pytest.raises(DataError, match=r"sums\.jsonl"):
        look(config, LAPTOP)
    (tmp_path / "sums.jsonl").write_text(json.dumps({"question": HELD[0], "truth": "1"}) + "\n")
    (tmp_path / "general.jsonl").write_text(json.dumps({"question": HELD[1], "truth": "1"}) + "\n")
    with pytest.raises(DataError, match=r"no question of 2 \(2 held out\) is left to be asked"):
        look(config, LAPTOP)
