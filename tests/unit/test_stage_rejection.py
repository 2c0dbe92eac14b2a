"""Rejection sampling at a real HTTP server: which answers are kept, why others are not, and runs broken off."""

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import fails
from preference_run import rows
from rejection_run import IDS, MADE, NUM, SUM, Server, index_of, made, run, say, write

from r1mega.data.signed_rows import is_intact
from r1mega.errors import DataError
from r1mega.report import rejection as report
from r1mega.report import show

QUESTIONS = {id: question for question, id in IDS.items()}
ONE_BY_ONE = ("endpoint.concurrency=1", "verify.judge.endpoint.concurrency=1")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(say) as server:
        breaks_where_told(server)
        yield server


def breaks_where_told(server: Server) -> None:
    """The judge's server refuses one answer, as too long for its model."""
    take = server.take

    def taken(handler: Any) -> None:
        if handler.body["model"] == "judge" and "\nBreaks\n" in handler.body["messages"][-1]["content"]:
            server.faults.insert(0, fails(400, {"error": {"message": "too many tokens"}}))
        take(handler)

    server.take = taken


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """An uninterrupted run, one request at a time, and what its server was asked."""
    folder = tmp_path_factory.mktemp("whole")
    with Server(say) as server:
        breaks_where_told(server)
        run(write(folder, server), folder / "run", *ONE_BY_ONE)
        yield folder / "run", server


def test_every_answer_has_the_outcome_that_it_was_written_for(whole: Any):
    folder, _ = whole
    decided = rows(folder, "decisions.jsonl")
    assert len(decided) == NUM and len({(row["question"], row["index"]) for row in decided}) == NUM
    for row in decided:
        expected, _ = MADE[QUESTIONS[row["question"]]][row["index"]]
        assert row["outcome"] in expected.split(" or "), row
    of_sum = [row["outcome"] for row in decided if row["question"] == IDS[SUM]]
    assert (of_sum.count("kept"), of_sum.count("enough")) == (2, 1)


def test_counts_are_of_all_answers_by_domain_and_outcome(whole: Any):
    folder, _ = whole
    of, decided = made(folder), rows(folder, "decisions.jsonl")
    for domain in ("math", "general"):
        assert of["domains"][domain] == dict(Counter(r["outcome"] for r in decided if r["domain"] == domain))
    assert sum(sum(counts.values()) for counts in of["domains"].values()) == NUM == of["counts"]["answers"]
    assert Counter(of["outcomes"]) == sum(map(Counter, of["domains"].values()), Counter())
    assert of["counts"]["rows"] == len(rows(folder, "rows.jsonl")) == of["outcomes"]["kept"] == 5
    assert of["counts"]["questions"] == 3 and of["counts"]["questions without a row"] == 0
    assert of["judge"]["unreadable"] == 3 and of["judge"]["who"]["model"] == "judge"  # asked twice more


def test_a_row_is_a_conversation_that_says_where_it_comes_from(whole: Any):
    folder, server = whole
    for row in rows(folder, "rows.jsonl"):
        user, assistant = row["messages"]
        of = row["provenance"]
        question, index = user["content"], of["answer"]["index"]
        text = MADE[question][index][1]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert of["answer"]["text_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert index_of(question, of["answer"]["seed"]) == index and of["answer"]["tokens"] == len(text.split())
        assert of["policy"]["model"] == "policy" and of["policy"]["weight_version"] == 0
        assert of["policy"]["start"] == json.loads((folder / "run.json").read_text())["start"] != ""
        assert "{question}" in of["policy"]["asked_as"] and of["from"] == []
        assert of["sampling"] == {
            "temperature": 1.0,
            "top_p": 0.95,
            "stop": [],
            "max_new_tokens": 80,
            "n": 15,
            "seed": 0,
        }
        assert is_intact(row)
        if question == SUM:
            assert assistant["content"] == text and of["thinking"] == "written"
            assert of["question"] == {"id": IDS[SUM], "source": "sums", "domain": "math", "verifier": "math"}
            assert of["verdict"] == {"by": "rule:math", "value": 1.0}
            assert set(of["filters"]) == {"tokens", "repetition", "paragraph_words", "code_blocks", "language"}
            assert of["filters"]["language"] == 1.0 and of["filters"]["code_blocks"] == 0
        else:
            assert of["verdict"]["by"] == "judge" and of["verdict"]["votes"] == [1.0] and of["verdict"]["value"] == 1
            assert of["verdict"]["judge"]["endpoint"] == server.url
    shas = {row["sha256"] for row in rows(folder, "rows.jsonl")}
    assert {row["row"] for row in rows(folder, "decisions.jsonl") if row["outcome"] == "kept"} == shas


def test_a_simple_prompts_answer_is_written_without_its_thinking(whole: Any):
    folder, _ = whole
    found = {
        row["messages"][1]["content"]
        for row in rows(folder, "rows.jsonl")
        if row["messages"][0]["content"] == "hello"
    }
    assert "<think>\n\n</think>\n\nHello there" in found and len(found) == 2
    said = {row["provenance"]["thinking"] for row in rows(folder, "rows.jsonl")}
    assert said == {"written", "left_out"} and made(folder)["thinking"] == {"written": 3, "left_out": 2}


def test_the_judge_is_asked_of_what_passes_and_no_rule_can_judge(whole: Any):
    _, server = whole
    asked = Counter(body["model"] for body in server.bodies)
    general = [text for question, of in MADE.items() if question != SUM for _, text in of]
    assert asked["policy"] == NUM and asked["judge"] == len(general) + 2 - 1  # two of them once more each, one double


def test_a_run_is_shown_in_the_terminal_and_on_its_page(whole: Any, capsys: pytest.CaptureFixture[str]):
    folder, _ = whole
    show.show(folder)
    said, html = capsys.readouterr().out, (folder / "report.html").read_text()
    num_wrong = made(folder)["outcomes"]["wrong"]
    for text in (said, html):
        assert "Rejection sampling" in text and "answers: mixed languages" in text
        assert re.search(rf"answers: wrong\D+{num_wrong} \({num_wrong / NUM:.1%}\)", text)
    assert "No evaluation" not in html and "each answer has the first reason" in html
    assert [path.name for path in (folder / "figures").iterdir()] == ["outcomes.png"]


def test_bars_are_of_every_outcome_and_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    counts = {"math": {"kept": 3, "wrong": 5}, "general": {"kept": 1, "failed": 2}}
    (tmp_path / "summary.json").write_text(json.dumps({"rejection": {"domains": counts}}))
    drawn = list[Any]()

    class Axes:
        def barh(self, names: Any, widths: Any, **how: Any) -> None:
            drawn.append((names, widths, how["left"], how["label"]))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    monkeypatch.setattr(report, "new_axes", lambda *_: contextlib.nullcontext(Axes()))
    assert [path.name for path in report.draw(tmp_path)] == ["outcomes.png"]
    assert drawn == [
        (["failed", "kept", "wrong"], [0, 3, 5], [0, 0, 0], "math"),
        (["failed", "kept", "wrong"], [2, 1, 0], [0, 3, 5], "general"),
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"rejection": {"domains": 3}}))
    with pytest.raises(DataError, match=r"summary\.json: not the counts of a rejection stage"):
        report.draw(tmp_path)
    assert report.draw(tmp_path / "nowhere") == []
