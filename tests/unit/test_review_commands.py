"""`r1mega review export` and `import`: files in, files out, and nothing half-written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from r1mega.cli import app
from r1mega.data import commands
from r1mega.data.signed_rows import is_intact, signed
from r1mega.errors import DataError
from r1mega.runtime.files import write_jsonl


def row(i: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Frage {i}?"}, {"role": "assistant", "content": f"Zwölf {i}."}]
    return signed({"messages": messages, "provenance": {"from": [], "verdict": {"value": 1.0}}})


ROWS = [row(i) for i in range(8)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("rows.jsonl"), ROWS)
    return tmp_path


def r1mega(*words: str) -> str:
    done = CliRunner().invoke(app, ["review", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def edited(name: str = "queue.jsonl", decide: Any = None) -> None:
    """As a person would: every other row accepted, one edited, one rejected, in a file written anew."""
    lines = [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]
    for place, line in enumerate(lines):
        line["decision"], line["reviewer"] = "accept", "ann" if place % 2 else "bob"
    lines[2].update(decision="edit", answer="Zwölf, ja.")
    lines[5].update(decision="reject", note="unclear")
    if decide is not None:
        decide(lines)
    text = json.dumps(lines[::-1], indent=4, sort_keys=True)
    Path(name).write_text(text, encoding="utf-8")


def test_out_and_back(folder: Path):
    assert r1mega("export", "rows.jsonl", "--out", "queue.jsonl") == "queue.jsonl: 8 rows to decide on\n"
    assert "Zwölf 3." in Path("queue.jsonl").read_text(encoding="utf-8"), "as people read it"
    edited()
    told = r1mega("import", "queue.jsonl", "--rows", "rows.jsonl", "--out", "reviewed.jsonl")
    assert told.splitlines() == [
        "reviewed.jsonl: 7 rows (6 accepted, 1 edited, 0 undecided kept, 0 not in queue)",
        "reviewed.rejected.jsonl: 1 rows left out (1 rejected, 0 undecided dropped)",
        "  ann: 3 accepted, 0 edited, 1 rejected, 0 undecided",
        "  bob: 3 accepted, 1 edited, 0 rejected, 0 undecided",
    ]
    found = [json.loads(line) for line in Path("reviewed.jsonl").read_text().splitlines()]
    assert [one["provenance"]["from"] for one in found] == [[ROWS[i]["sha256"]] for i in (0, 1, 2, 3, 4, 6, 7)]
    assert found[2]["messages"][1]["content"] == "Zwölf, ja." and all(map(is_intact, found))
    (left_out,) = [json.loads(line) for line in Path("reviewed.rejected.jsonl").read_text().splitlines()]
    assert left_out["provenance"]["review"] == {"reviewer": "ann", "decision": "rejected", "note": "unclear"}
    before = {file: Path(file).read_bytes() for file in ("reviewed.jsonl", "reviewed.rejected.jsonl")}
    r1mega("import", "queue.jsonl", "--rows", "rows.jsonl", "--out", "reviewed.jsonl")
    assert before == {file: Path(file).read_bytes() for file in before}


def test_rows_that_were_not_drawn_keep_their_bytes(folder: Path):
    told = r1mega("export", "rows.jsonl", "--out", "queue.jsonl", "--num", "6", "--seed", "3", "--reviewer", "cy")
    assert told == "queue.jsonl: 6 rows to decide on\n"
    lines = [json.loads(line) for line in Path("queue.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["reviewer"] for line in lines} == {"cy"}
    edited()
    told = r1mega("import", "queue.jsonl", "--rows", "rows.jsonl", "-o", "reviewed.jsonl")
    assert "7 rows (4 accepted, 1 edited, 0 undecided kept, 2 not in queue)" in told
    drawn = {line["sha256"] for line in lines}
    unseen = [
        line for line in Path("rows.jsonl").read_bytes().splitlines() if json.loads(line)["sha256"] not in drawn
    ]
    assert len(unseen) == 2 and set(unseen) <= set(Path("reviewed.jsonl").read_bytes().splitlines())
    told = r1mega("export", "rows.jsonl", "--out", "other.jsonl", "--num", "9")
    assert told == "other.jsonl: 8 rows to decide on; rows.jsonl has no more, of 9 asked for\n"


def test_two_reviewers_queues_and_lines_that_nobody_decided(folder: Path):
    r1mega("export", "rows.jsonl", "--out", "queue.jsonl")
    lines = Path("queue.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    Path("a.jsonl").write_text("".join(lines[:4]).replace('"decision": ""', '"decision": "accept"'), encoding="utf-8")
    Path("b.jsonl").write_text("".join(lines[4:7]), encoding="utf-8")
    both = ("import", "a.jsonl", "b.jsonl", "--rows", "rows.jsonl", "-o", "reviewed.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl, line 1: no decision, nor in 2 more"):
        r1mega(*both)
    told = r1mega(*both, "--undecided", "keep")
    assert "8 rows (4 accepted, 0 edited, 3 undecided kept, 1 not in queue)" in told
    assert "  (no name): 4 accepted, 0 edited, 0 rejected, 3 undecided" in told
    told = r1mega(*both, "--undecided", "drop")
    assert "5 rows (4 accepted" in told and "3 rows left out (0 rejected, 3 undecided dropped)" in told
    with pytest.raises(DataError, match=r"a.jsonl, line 1: is about the same row as a.jsonl, line 1"):
        r1mega("import", "a.jsonl", "a.jsonl", "--rows", "rows.jsonl", "-o", "reviewed.jsonl")


def test_a_queue_is_not_written_over(folder: Path):
    r1mega("export", "rows.jsonl", "--out", "queue.jsonl")
    edited()
    there = Path("queue.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"queue.jsonl is there already, and may hold somebody's decisions"):
        r1mega("export", "rows.jsonl", "--out", "queue.jsonl")
    for out in ("queue.jsonl", "rows.jsonl", "queue"):
        queue = "queue.rejected.jsonl" if out == "queue" else "queue.jsonl"
        Path(queue).write_bytes(there)
        with pytest.raises(DataError, match="is read, and would be written over"):
            r1mega("import", queue, "--rows", "rows.jsonl", "--out", out)
        assert Path(queue).read_bytes() == there


@pytest.mark.parametrize(("out", "said"), [("there", "is a folder"), ("no/queue.jsonl", "there is no folder no")])
def test_a_place_where_nothing_can_be_written_is_refused(out: str, said: str, folder: Path):
    Path("there").mkdir()
    for words in (("export", "rows.jsonl"), ("import", "rows.jsonl", "--rows", "rows.jsonl")):
        with pytest.raises(DataError, match=said):
            r1mega(*words, "--out", out)


def test_an_import_that_ends_early_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """By a fault of the last line, of the last row, or by Ctrl-C after most rows are written."""
    r1mega("export", "rows.jsonl", "--out", "queue.jsonl")
    edited()
    r1mega("import", "queue.jsonl", "--rows", "rows.jsonl", "--out", "reviewed.jsonl")
    there = {file.name: file.read_bytes() for file in folder.iterdir()}

    def unchanged() -> None:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == there

    write_jsonl(Path("damaged.jsonl"), [*ROWS[:-1], {**ROWS[-1], "messages": ROWS[0]["messages"]}])
    there["damaged.jsonl"] = Path("damaged.jsonl").read_bytes()
    with pytest.raises(DataError, match=r"damaged.jsonl, line 8: is not what it was"):
        r1mega("import", "queue.jsonl", "--rows", "damaged.jsonl", "--out", "reviewed.jsonl")
    unchanged()
    with pytest.raises(DataError, match=r"damaged.jsonl, line 8: is not what it was"):
        r1mega("export", "damaged.jsonl", "--out", "new.jsonl")
    unchanged()

    def broken_off(*_: Any) -> None:
        assert re.search(r"\.reviewed\.jsonl\.\d+\.tmp", " ".join(file.name for file in folder.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.Review, "finish", broken_off)
    with pytest.raises(KeyboardInterrupt):
        commands.import_queue([Path("queue.jsonl")], Path("rows.jsonl"), Path("reviewed.jsonl"))
    unchanged()
