"""Kept answers made readable, at a real HTTP server: which rewritten ones are used, what becomes of the others."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preference_run import rows, shown
from rejection_run import CONFIG, MADE, SUM, Server, made, run, write
from rewrite_run import ALL, FIRST, HERS, KEPT, ONE_BY_ONE, REPLIES, REWRITE, say

from r1mega.data.signed_rows import is_intact
from r1mega.errors import EndpointError
from r1mega.recipe.load import load_recipe

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


def key_of(text: str) -> str:
    return next(key for key in KEPT if key in text)


def sampled(row: dict[str, Any]) -> str:
    """The text that a decision or a row is of, as it was sampled."""
    digests = {hashlib.sha256(text.encode()).hexdigest(): text for made in MADE.values() for _, text in made}
    return digests[row["text_sha256"] if "text_sha256" in row else row["provenance"]["answer"]["text_sha256"]]


def test_every_kept_answer_has_the_outcome_that_it_was_written_for(whole: Any):
    folder, server = whole
    decided = {
        key_of(sampled(row)): row
        for row in rows(folder, "decisions.jsonl")
        if row["outcome"] == "kept" or row["outcome"].startswith("rewrite_")
    }
    kept = ("rewritten", "without_thinking")
    assert {key: row["outcome"] for key, row in decided.items()} == {
        key: "kept" if became in kept else became for key, became in KEPT.items()
    }
    assert "no rewrite can be read in 3 replies" in decided["One is what"]["reason"]
    of = made(folder)
    assert of["rewrite"]["outcomes"] == dict(Counter(KEPT.values())) and of["rewrite"]["by"] == "endpoint"
    assert of["rewrite"]["unreadable"] == 3 and of["rewrite"]["kept_originals"] == 0
    assert of["counts"]["rows"] == 4 == len(rows(folder, "rows.jsonl")) == of["outcomes"]["kept"]
    assert sum(sum(counts.values()) for counts in of["domains"].values()) == of["counts"]["answers"]
    asked = [body for body in server.bodies if body["model"] == "rewriter"]
    assert len(asked) == 6 == of["rewrite"]["asked"]["asked"]  # 4, and 2 more for what cannot be read
    words = sum(len(say(body).split()) for body in asked)
    assert of["rewrite"]["asked"]["tokens"] == words + 7 * len(asked)  # each prompt counts 7 here
    assert {(body["temperature"], body["max_tokens"]) for body in asked} == {(0.6, 16_384)}


def test_a_summary_that_was_judged_before_is_not_judged_again(whole: Any):
    assert judged(whole[1]).count("Mary Shelley") == 1


def test_a_rewritten_row_names_the_row_before_and_is_verified_by_itself(whole: Any):
    folder, server = whole
    found = {row["messages"][1]["content"]: row for row in rows(folder, "rows.jsonl")}
    before = {row["sha256"]: row for row in rows(folder, "originals.jsonl")}
    assert {FIRST, HERS} < found.keys() and len(before) == 4  # two were rewritten, two are left out
    for text in (FIRST, HERS):
        row = found[text]
        of, (origin,) = row["provenance"], row["provenance"]["from"]
        assert is_intact(row) and is_intact(before[origin]) and before[origin]["provenance"]["from"] == []
        was = before[origin]["messages"]
        assert was[0] == row["messages"][0] and was[1]["content"] == sampled(row)
        assert of["rewrite"]["of_sha256"] == hashlib.sha256(sampled(row).encode()).hexdigest()
        assert (of["rewrite"]["by"], of["rewrite"]["endpoint"], of["rewrite"]["model"]) == (
            "endpoint", server.url, "rewriter",
        )  # fmt: skip
        same = ("question", "policy", "sampling", "answer")
        assert {name: of[name] for name in same} == {name: before[origin]["provenance"][name] for name in same}
    assert found[FIRST]["provenance"]["verdict"] == {"by": "rule:math", "value": 1.0}
    assert found[FIRST]["provenance"]["filters"]["paragraph_words"] == 4  # not 5, as before
    assert "tokens" not in found[FIRST]["provenance"]["filters"]  # which would be those of the answer before
    verdict = found[HERS]["provenance"]["verdict"]
    assert (verdict["by"], verdict["value"], verdict["votes"]) == ("judge", 1.0, [1.0])
    rest = [row for text, row in found.items() if text not in (FIRST, HERS)]
    assert all("rewrite" not in row["provenance"] and row["provenance"]["from"] == [] for row in rest)
    shas = {row["sha256"] for row in found.values()}
    assert {row["row"] for row in rows(folder, "decisions.jsonl") if row["outcome"] == "kept"} == shas


def judged(server: Server) -> list[str]:
    """What the judge was shown, answers alone."""
    return [shown(body)[2] for body in server.bodies if body["model"] == "judge"]


def test_a_rewrite_that_the_judge_finds_wrong_is_left_out(server: Server, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setitem(REPLIES, "it was her", "[[reasoning]]\nI recall it.\n[[summary]]\nLord Byron it was")
    run(write(tmp_path, server, CONFIG + REWRITE), tmp_path / "run", *ALL)
    assert made(tmp_path / "run")["rewrite"]["outcomes"]["rewrite_wrong"] == 2
    assert judged(server).count("Lord Byron it was") == 1 and judged(server).count("Mary Shelley") == 1


@pytest.mark.parametrize(
    ("reply", "outcome", "reason"),
    [
        (
            "[[reasoning]]\n我从一开始。没有别的可能。\n[[summary]]\nIt is \\boxed{1}.",
            "rewrite_filtered",
            "mixed_languages",
        ),
        (
            "[[reasoning]]\n" + " ".join(f"and {i} more" for i in range(8)) + "\n[[summary]]\n\\boxed{1}",
            "rewrite_filtered",
            "long_paragraph",
        ),
        ("[[reasoning]]\nI add.\n[[summary]]\nIt is one.", "rewrite_wrong", ""),
    ],
)
def test_filters_and_rule_are_asked_of_what_was_rewritten(
    reply: str, outcome: str, reason: str, server: Server, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setitem(REPLIES, "One plus nought", reply)
    run(write(tmp_path, server, CONFIG + REWRITE), tmp_path / "run", *ALL)
    (row,) = (
        r
        for r in rows(tmp_path / "run", "decisions.jsonl")
        if "One plus nought is one." in sampled(r) and r["outcome"].startswith("rewrite_")
    )
    assert row["outcome"] == outcome and row.get("reason", "").startswith(reason)


def test_an_original_is_written_where_the_setting_says_so(server: Server, tmp_path: Path):
    run(write(tmp_path, server, CONFIG + REWRITE), tmp_path / "run", *ALL, "rewrite.on_failure=keep_original")
    folder = tmp_path / "run"
    of, found = made(folder), rows(folder, "rows.jsonl")
    assert of["rewrite"]["outcomes"] == dict(Counter(KEPT.values())) and of["rewrite"]["kept_originals"] == 2
    assert len(found) == 6 == of["outcomes"]["kept"] and len(rows(folder, "originals.jsonl")) == 2
    for key in ("Nought adds nothing at all", "One is what"):
        (row,) = (row for row in found if key in row["messages"][1]["content"])
        assert "rewrite" not in row["provenance"] and row["messages"][1]["content"] == sampled(row)
        (decided,) = (r for r in rows(folder, "decisions.jsonl") if r.get("row") == row["sha256"])
        assert decided["reason"].startswith(f"as it was sampled: {KEPT[key_of(key)]}")


def test_a_row_has_the_verdict_of_what_stands_in_it(server: Server, tmp_path: Path):
    """Where wrong answers are kept as well."""
    run(write(tmp_path, server, CONFIG + REWRITE), tmp_path / "run", *ALL, "verify.min_value=0")
    before = {
        row["sha256"]: row["provenance"]["verdict"]["value"] for row in rows(tmp_path / "run", "originals.jsonl")
    }
    (row,) = (r for r in rows(tmp_path / "run", "rows.jsonl") if "I add nought." in r["messages"][1]["content"])
    assert row["provenance"]["verdict"]["value"] == 0.0 and before[row["provenance"]["from"][0]] == 1.0


def test_equal_rewrites_of_one_question_are_written_once(server: Server, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setitem(REPLIES, "Nought adds", REPLIES["One plus nought"])
    run(write(tmp_path, server, CONFIG + REWRITE), tmp_path / "run", *ALL)
    texts = [row["messages"][1]["content"] for row in rows(tmp_path / "run", "rows.jsonl")]
    assert texts.count(FIRST) == 1 and made(tmp_path / "run")["outcomes"]["rewrite_double"] == 1


# ---- by a template -------------------------------------------------------------------------------------------------

TEMPLATE = """
[rewrite]
template = "<think>\\nThe question is: {question}\\n{thought}\\n</think>\\n\\n{answer}"
"""


def test_a_template_asks_nobody_and_is_named(server: Server, tmp_path: Path):
    run(write(tmp_path, server, CONFIG + TEMPLATE), tmp_path / "run", *ALL)
    folder = tmp_path / "run"
    of = made(folder)["rewrite"]
    assert of["by"] == "template" and of["asked"] == {} and not any(b["model"] == "rewriter" for b in server.bodies)
    assert of["outcomes"] == {"rewritten": 4, "without_thinking": 2} and not (folder / "rewrites.jsonl").exists()
    template = "<think>\nThe question is: {question}\n{thought}\n</think>\n\n{answer}"
    found = {row["messages"][1]["content"]: row["provenance"] for row in rows(folder, "rows.jsonl")}
    text = f"<think>\nThe question is: {SUM}\nOne plus nought is one.\n</think>\n\nSo it is \\boxed{{1}}."
    assert found[text]["rewrite"] == {
        "by": "template",
        "words": hashlib.sha256(template.encode()).hexdigest(),
        "of_sha256": found[text]["answer"]["text_sha256"],
    }


def test_other_marks_than_the_answers_have_may_be_written(server: Server, tmp_path: Path):
    own = (
        'rewrite.template="||{thought}||{answer}"', 'rewrite.marks=["||", "||"]', "rewrite.format=any",
    )  # fmt: skip
    run(write(tmp_path, server, CONFIG + TEMPLATE), tmp_path / "run", *ALL, *own)
    found = {row["messages"][1]["content"]: row["provenance"] for row in rows(tmp_path / "run", "rows.jsonl")}
    assert found["||One plus nought is one.||So it is \\boxed{1}."]["thinking"] == "written"
    assert found["||One plus nought is one.||So it is \\boxed{1}."]["filters"]["paragraph_words"] == 5


def test_what_is_not_rewritten_leaves_no_originals(server: Server, tmp_path: Path):
    config = write(tmp_path, server, CONFIG + TEMPLATE)
    assert load_recipe(config).leaves() == ("rows.jsonl", "originals.jsonl")
    with pytest.raises(EndpointError, match="budget_requests"):
        run(config, tmp_path / "run", *ALL, "endpoint.budget_requests=9")
    (tmp_path / "run/originals.jsonl").write_text("{}")  # as of a run that ended before it had a summary
    config = write(tmp_path, server)
    run(config, tmp_path / "run", *ALL)
    assert load_recipe(config).leaves() == ("rows.jsonl",) and made(tmp_path / "run")["rewrite"] is None
    assert not (tmp_path / "run/originals.jsonl").exists() and len(rows(tmp_path / "run", "rows.jsonl")) == 6
