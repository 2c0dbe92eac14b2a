"""Runs of which kept answers are made readable: broken off and continued, refused, and at a folder that is served."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import fails, reply
from preference_run import rows
from rejection_run import CONFIG, Server, made, run, write
from rejection_run import say as answer_or_judge
from rewrite_run import ALL, ONE_BY_ONE, REWRITE, before_rewrite, say

from r1mega.errors import ConfigError, DataError, EndpointError, EndpointLostError
from r1mega.recipe.load import load_recipe
from r1mega.rewards.rewriting import RewriteWords
from r1mega.runtime.interrupt import Interrupted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(say) as server:
        yield server


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """An uninterrupted run, one request at a time, and what its server was asked."""
    folder = tmp_path_factory.mktemp("whole")
    with Server(say) as server:
        run(write(folder, server, CONFIG + REWRITE), folder / "run", *ALL, *ONE_BY_ONE)
        yield folder / "run", server


# ---- runs that end in the middle -----------------------------------------------------------------------------------


def same(folder: Path, whole: Path) -> None:
    for name in ("rows.jsonl", "originals.jsonl", "decisions.jsonl"):
        here = [[strip(row) for row in rows(one, name)] for one in (folder, whole)]
        assert here[0] == here[1] and here[0]


def strip(value: Any) -> Any:
    """Without what depends on the server's port."""
    if isinstance(value, dict):
        gone = ("sha256", "start", "endpoint", "from", "row")
        return {name: strip(one) for name, one in value.items() if name not in gone}
    return [strip(one) for one in value] if isinstance(value, list) else value


def requests(server: Server) -> Counter[str]:
    return Counter(json.dumps([body[name] for name in ("model", "messages", "seed")]) for body in server.bodies)


@pytest.mark.parametrize("num", [1, 4])
def test_a_killed_run_goes_on_and_asks_nothing_twice(num: int, whole: Any, server: Server, tmp_path: Path):
    config, killed, after = (
        write(tmp_path, server, CONFIG + REWRITE),
        list[subprocess.Popen[str]](),
        before_rewrite(whole[1], num),
    )
    answered = [lambda h: reply(h, server.answer(h.body, h.path))] * after

    def kill(_: Any) -> None:
        killed[0].kill()
        killed[0].wait()

    server.faults = [*answered, kill]
    overrides = [part for one in (*ALL, *ONE_BY_ONE) for part in ("--set", one)]
    command = [sys.executable, "-m", "r1mega.cli", "run", str(config), "--run-dir", str(tmp_path / "run"), *overrides]
    killed.append(subprocess.Popen([*command, "--cluster", str(ROOT / "configs/cluster/laptop.toml")], text=True))
    assert killed[0].wait(timeout=240) == -signal.SIGKILL and len(server.bodies) == after + 1
    assert not (tmp_path / "run/rows.jsonl").exists() and not (tmp_path / "run/summary.json").exists()
    server.bodies.pop()  # it was not answered
    run(config, tmp_path / "run", *ALL, *ONE_BY_ONE, resume=True)
    same(tmp_path / "run", whole[0])
    assert requests(server) == requests(whole[1]) and max(requests(server).values()) == 1


def test_a_signal_breaks_off_while_answers_are_rewritten(whole: Any, server: Server, tmp_path: Path):
    config, after = write(tmp_path, server, CONFIG + REWRITE), before_rewrite(whole[1], 2)
    answered = [lambda h: reply(h, server.answer(h.body, h.path))] * after
    server.faults = [*answered, lambda h: os.kill(os.getpid(), signal.SIGTERM)]
    with pytest.raises(Interrupted, match="continue with --resume"):
        run(config, tmp_path / "run", *ALL, *ONE_BY_ONE)
    server.bodies.pop()
    run(config, tmp_path / "run", *ALL, *ONE_BY_ONE, resume=True)
    same(tmp_path / "run", whole[0])
    assert requests(server) == requests(whole[1])


def test_a_rewriters_budget_stops_the_run_and_another_start_has_another(server: Server, tmp_path: Path):
    config, budget = write(tmp_path, server, CONFIG + REWRITE), "rewrite.endpoint.budget_requests=4"
    with pytest.raises(EndpointError, match=r"budget_requests = 4 is used up: 4.*continue with --resume"):
        run(config, tmp_path / "run", *ALL, budget)
    run(config, tmp_path / "run", *ALL, budget, resume=True)
    assert max(requests(server).values()) == 1 and len(rows(tmp_path / "run", "rows.jsonl")) == 4


def test_a_rewriter_that_is_gone_stops_the_run(server: Server, tmp_path: Path):
    config, take = write(tmp_path, server, CONFIG + REWRITE), server.take

    def taken(handler: Any) -> None:
        if handler.body["model"] == "rewriter":
            server.faults.insert(0, fails(503))
        take(handler)

    server.take = taken
    with pytest.raises(EndpointLostError, match=r"4 of the latest 64 rewritten answers failed .*503.*--resume"):
        run(config, tmp_path / "run", *ALL, "rewrite.endpoint.attempts=2")
    assert not (tmp_path / "run/rows.jsonl").exists()


def test_one_answer_that_the_server_refuses_is_counted_as_failed(server: Server, tmp_path: Path):
    config, take = write(tmp_path, server, CONFIG + REWRITE), server.take

    def taken(handler: Any) -> None:
        if handler.body["model"] == "rewriter" and "Nought adds" in handler.body["messages"][-1]["content"]:
            server.faults.insert(0, fails(400, {"error": {"message": "too many tokens"}}))
        take(handler)

    server.take = taken
    run(config, tmp_path / "run", *ALL, *ONE_BY_ONE)
    (row,) = (r for r in rows(tmp_path / "run", "decisions.jsonl") if r["outcome"] == "rewrite_failed")
    assert "too many tokens" in row["reason"] and made(tmp_path / "run")["rewrite"]["outcomes"]["rewrite_failed"] == 1


def test_where_nothing_is_left_the_outcomes_and_what_to_do_are_said(server: Server, tmp_path: Path):
    server.say = lambda body: "No." if body["model"] == "rewriter" else answer_or_judge(body)
    config = write(tmp_path, server, (CONFIG + REWRITE).replace('domains = ["general"]\nsimple_words = 1', ""))
    with pytest.raises(DataError, match=r"none of 45 answers is kept \(.*rewrite unreadable"):
        run(config, tmp_path / "run", *ALL)
    assert not (tmp_path / "run/rows.jsonl").exists() and (tmp_path / "run/decisions.jsonl").exists()


# ---- what check says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[rewrite]\ntemplate = "{answer}"', r"rewrite.template: .*\{thought\} should stand in it"),
        ('[rewrite]\ntemplate = "{thought} {answer}"', 'template: what it makes .* is not in rewrite.format = "r1"'),
        ("[rewrite]\nmax_tokens = 9", "rewrite.max_tokens: is of a model that rewrites, and none is named"),
        (REWRITE.replace("[rewrite", '[rewrite]\nmodel = "there"\n[rewrite', 1), "rewrite: give endpoint .*not both"),
        ('[rewrite]\nmodel = "there"', "rewrite.model: what it writes is judged again"),
    ],
)  # fmt: skip
def test_settings_that_leave_nothing_are_refused(table: str, said: str, tmp_path: Path, server: Server):
    config = CONFIG + "\n" + table
    if "judged again" in said:
        judge = CONFIG[CONFIG.index("[verify.judge.endpoint]") :]
        config = CONFIG.replace(judge, '[verify.judge]\nmodel = "judge"\n') + table
    with pytest.raises(ConfigError, match=said):
        load_recipe(write(tmp_path, server, config))


def test_a_folder_that_rewrites_is_an_input_and_a_key_is_asked_for(server: Server, tmp_path: Path):
    folder = load_recipe(write(tmp_path, server, CONFIG + '\n[rewrite]\nmodel = "there"'))
    assert ("rewrite.model", tmp_path / "there") in [(one.setting, one.path) for one in folder.inputs()]
    keyed = load_recipe(write(tmp_path, server, CONFIG + REWRITE + 'api_key_env = "NO_SUCH_KEY"'))
    assert [line.partition(":")[0] for line in keyed.lacks()] == ["rewrite.endpoint.api_key_env"]


def test_defaults_are_those_of_the_guide():
    words = RewriteWords()
    assert (words.temperature, words.max_tokens, words.retries) == (0.6, 16_384, 2)
