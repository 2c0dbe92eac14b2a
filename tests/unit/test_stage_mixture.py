"""A set put together of files whose doubles, held-out rows and shares are known: what is in it, and in what order."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mixture_run import card, mixed, plain, read, said, sampled, set_of, signature, write

from r1mega.data.signed_rows import digest_of
from r1mega.errors import DataError, RunDirError

ROOT = Path(__file__).parents[2]
ROWS = [[f"How much is {i} and 2?", f"<think>\nsum {i}\n</think>\n\n{i + 2}"] for i in range(30)]
TABLES = '[[data]]\nfiles = ["rows.jsonl"]\n'
BOTH = TABLES + '[[data]]\nfiles = ["plain.jsonl"]\ndomain = "general"\n'


def held_out_question() -> str:
    """A task's question of the held-out side, by its hash as `data/split.py` states it."""
    for number in range(2, 100):
        text = f"State the final answer to the following arithmetic problem: {number} - 1 ="
        if int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 8 == 0:
            return text
    raise AssertionError


def some(tmp_path: Path, num: int = 30) -> list[dict]:
    rows = [sampled(question, answer, tokens=i) for i, (question, answer) in enumerate(ROWS[:num])]
    write(tmp_path / "rows.jsonl", rows)
    return rows


def test_rows_with_provenance_keep_their_bytes(tmp_path: Path):
    rows = some(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf\n  " + file.read_bytes().replace(b"\n", b" \r\n\n"))  # as editors leave it
    run_dir = mixed(tmp_path, TABLES)
    lines = (run_dir / "conversations.jsonl").read_bytes().split(b"\n")[:-1]
    assert sorted(lines) == sorted(json.dumps(row, ensure_ascii=False).encode() for row in rows)
    assert lines != [json.dumps(row, ensure_ascii=False).encode() for row in rows], "shuffled"


def test_the_order_is_the_seeds_and_a_row_more_moves_no_other(tmp_path: Path):
    some(tmp_path)
    first = said(set_of(mixed(tmp_path, TABLES)))
    other = said(set_of(mixed(tmp_path, TABLES, ["seed=1"], name="other")))
    assert sorted(first) == sorted(other) and first != other
    some(tmp_path, 29)
    fewer = said(set_of(mixed(tmp_path, TABLES, name="fewer")))
    assert fewer == [one for one in first if one[0] != ROWS[29][0]]


def test_plain_rows_become_signed_ones_that_say_where_they_stood(tmp_path: Path):
    raw = [
        {"prompt": "Hello", "response": "Hi.", "id": 7},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
                      {"role": "user", "content": "c"}, {"role": "assistant", "content": "<think>t</think>d"}],
         "system": "Be kind."},
    ]  # fmt: skip
    write(tmp_path / "plain.jsonl", raw)
    run_dir = mixed(tmp_path, '[[data]]\nfiles = ["plain.jsonl"]\ndomain = "general"\n')
    first, second = sorted(set_of(run_dir), key=lambda row: row["provenance"]["imported"]["line"])
    assert first["messages"] == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    assert [turn["role"] for turn in second["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.get("weight") for turn in second["messages"]] == [None, None, 0, None, None]
    for line, (row, was) in enumerate(zip((first, second), raw, strict=True), 1):
        assert row["sha256"] == signature(row)
        told = row["provenance"]
        assert told["imported"] == {"file": "plain.jsonl", "line": line, "sha256": digest_of(was)}
        assert (told["question"]["domain"], told["question"]["source"], told["from"]) == (
            "general",
            "plain.jsonl",
            [],
        )
        assert "policy" not in told and "verdict" not in told
    assert ("thinking" in first["provenance"], second["provenance"]["thinking"]) == (False, "written")


def test_every_row_has_one_outcome(tmp_path: Path):
    asked = held_out_question()
    write(
        tmp_path / "rows.jsonl",
        [
            sampled("Q1", "A1"),
            sampled("Q1", "A2"),  # the same question, another answer
            sampled("Q1", "A3"),
            sampled("Q2", "A1"),
            sampled("Q3", "It is <|im_end|> 3"),  # which a student may have for a token
            sampled("Q3", "It is < |im_end| > 3"),
            sampled(asked, "5"),
            sampled(f"Please. {asked} Say it.", "5"),
        ],
    )
    write(
        tmp_path / "plain.jsonl",
        [
            plain("Q2", " A1 "),  # in other spaces
            plain("Q\u200b2", "A1"),  # with a character that nobody sees
            plain("Cafe\u0301?", "Yes"),
            plain("Caf\u00e9?", "Yes"),  # the same in another Unicode form
            plain("Q2", "a1"),  # case counts
        ],
    )
    run_dir = mixed(tmp_path, BOTH + "", ["max_per_question=2"])
    kept = said(set_of(run_dir))
    assert len([one for one in kept if one[0] == "Q1"]) == 2
    assert sorted(one for one in kept if one[0] not in ("Q1", "Q3")) == [
        ("Cafe\u0301?", "Yes"),
        ("Q2", "A1"),
        ("Q2", "a1"),
    ]
    outcomes = {"kept": 6, "held_out": 2, "control_token": 1, "double": 3, "enough": 1}
    assert {name: num for name, num in card(run_dir)["outcomes"].items() if num} == outcomes
    tables = [one["outcomes"] for one in card(run_dir)["tables"]]
    assert [one["double"] for one in tables] == [0, 3] and [one["held_out"] for one in tables] == [2, 0]
    decided = read(run_dir / "decisions.jsonl")
    assert Counter(one["outcome"] for one in decided) == outcomes
    assert [Path(one["file"]).name + str(one["line"]) for one in decided if one["outcome"] == "double"] == [
        "plain.jsonl1", "plain.jsonl2", "plain.jsonl4",
    ]  # fmt: skip
    assert {one["sha256"] for one in decided if one["outcome"] == "kept"} == {r["sha256"] for r in set_of(run_dir)}


def test_what_an_evaluation_asks_is_left_out_and_listed(tmp_path: Path):
    ten = "one two three four five six seven eight nine ten"
    write(tmp_path / "eval.jsonl", [{"question": f"Say: {ten}!", "answer": "x"}])
    write(
        tmp_path / "rows.jsonl",
        [
            sampled("in the answer", f"zero {ten.upper()} eleven"),
            sampled(f"in the question: {ten}", "y"),
            sampled("nine of them", ten.removesuffix(" ten")),
        ],
    )
    tables = TABLES + '[decontaminate]\nfiles = ["eval.jsonl"]\n'
    run_dir = mixed(tmp_path, tables)
    assert [question for question, _ in said(set_of(run_dir))] == ["nine of them"]
    assert card(run_dir)["decontamination"]["rows_left_out"] == 2
    assert sorted(hit["place"]["line"] for hit in read(run_dir / "contaminated.jsonl")) == [1, 2]
    with pytest.raises(DataError, match=r"no row is left of 3 \(3 share words with an evaluation\)"):
        mixed(tmp_path, tables, ["decontaminate.words=9"], name="nine")


def test_tables_give_their_number_or_their_share(tmp_path: Path):
    some(tmp_path)
    write(tmp_path / "plain.jsonl", [plain(f"Hello {i}", "Hi") for i in range(50)])

    def sizes(name: str, *overrides: str) -> list[int]:
        run_dir = mixed(tmp_path, BOTH, overrides, name=name)
        found = Counter(row["provenance"]["question"]["domain"] for row in set_of(run_dir))
        return [found["math"], found["general"]]

    assert sizes("all") == [30, 50]
    assert sizes("num", "data.0.num=7") == [7, 50]
    assert sizes("share", "data.1.share=0.25") == [30, 10]
    assert sizes("shares", "data.0.share=0.75", "data.1.share=0.25") == [30, 10]
    assert sizes("many", "data.0.share=0.2", "data.1.share=0.8") == [12, 50]
    assert sizes("of_num", "data.0.num=6", "data.1.share=0.4") == [6, 4]


def test_draws_are_the_seeds_and_favour_nobody(tmp_path: Path):
    rows = [sampled(f"Q{i}", f"A{j}") for i in range(100) for j in range(4)]
    rows += [sampled(f"alone {i}", "A") for i in range(100)]
    write(tmp_path / "rows.jsonl", rows)
    drawn: list[list[str]] = []
    for seed in range(3):
        run_dir = mixed(tmp_path, TABLES + "num = 100\n", [f"seed={seed}", "max_per_question=1"], name=f"{seed}")
        drawn.append([question for question, _ in said(set_of(run_dir))])
    assert len({tuple(sorted(one)) for one in drawn}) == 3
    alone = sum(question.startswith("alone") for one in drawn for question in one)
    assert 110 < alone < 190  # of 300, half of 200 questions: 150, standard deviation 6


@pytest.mark.parametrize(
    ("rows", "tables", "said_"),
    [
        ([], TABLES, r"rows\.jsonl: no rows in it"),
        (
            [sampled("Q", "A")],
            TABLES + "num = 2\n",
            r"data\.0\.num: 2 rows are asked for, and of the 1 .* 1 are left",
        ),
        ([plain("Q", "A")], TABLES, r"rows\.jsonl, line 1: a row without provenance.*domain = \"general\""),
        ([sampled("Q", "A")], TABLES + 'domain = "code"\n', r'line 1: its provenance says domain "math".*"code"'),
        ([sampled("Q", "A", domain="maths")], TABLES, r"domain is 'maths', and a domain is one of math, code"),
        ([{**sampled("Q", "A"), "more": 1}], TABLES, r"line 1: a row with provenance, changed since it was signed"),
        ([{**sampled("Q", "A"), "sha256": None}], TABLES, r"without a sha256 of its own"),
        ([sampled("Q", "A"), {"messages": []}], TABLES, r"rows\.jsonl, line 2: needs `messages`"),
        ([sampled("Q", " ")], TABLES, r"line 1: message 1: content must be text and not empty"),
        ([sampled(held_out_question(), "1")], TABLES, r"no row is left of 1 \(1 ask a question of the held-out"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(tmp_path: Path, rows, tables: str, said_: str):
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=said_):
        mixed(tmp_path, tables)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"conversations.jsonl", "card.json", "summary.json", ".mixture.tmp"}


def test_a_share_that_the_rows_do_not_have(tmp_path: Path):
    some(tmp_path)
    write(tmp_path / "plain.jsonl", [plain("Hello", "Hi")])
    with pytest.raises(
        DataError, match=r"data\.1\.share: 30 rows are asked for \(0\.5 of a set of 60\).* 1 are left"
    ):
        mixed(tmp_path, BOTH + "share = 0.5\n")


def test_a_line_that_is_no_json_is_named(tmp_path: Path):
    some(tmp_path)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"messages": [\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 31: not JSON"):
        mixed(tmp_path, TABLES)


def test_rows_of_parquet_with_null_columns(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "prompt": pa.array([f"P{i}" for i in range(5000)]),
        "response": pa.array([f"R{i}" for i in range(5000)]),
        "messages": pa.nulls(5000, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        "system": pa.array([None] * 4999 + ["Be kind."]),
        "weight": pa.nulls(5000),
        "made": pa.array([b"\xff"] * 5000),  # what JSON has no form for, and nobody looks at
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=3000)
    some(tmp_path)
    tables = TABLES + '[[data]]\nfiles = ["rows.parquet"]\ndomain = "general"\n'
    run_dir = mixed(tmp_path, tables)
    rows = {row["provenance"].get("imported", {}).get("line"): row for row in set_of(run_dir)}
    for line in (1, 2049, 3000, 3001, 4999):  # of batches and of row groups
        assert said([rows[line]]) == [(f"P{line - 1}", f"R{line - 1}")]
    assert rows[5000]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert len(set_of(run_dir)) == 5030
    nulls = pa.table({"prompt": pa.nulls(2, pa.string()), "response": ["a", "b"]})
    parquet.write_table(nulls, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet, row 1: needs `messages`"):
        mixed(tmp_path, tables, name="nulls")


def test_a_file_that_changes_between_the_passes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from r1mega.stages import mixture

    rows = some(tmp_path)
    see = mixture.see

    def then_changed(*given):
        found = see(*given)
        changed = sampled(ROWS[4][0], ROWS[4][1].replace("4", "9"), tokens=4)
        write(tmp_path / "rows.jsonl", [*rows[:4], changed, *rows[5:]])
        return found

    monkeypatch.setattr(mixture, "see", then_changed)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 5: changed while it was read"):
        mixed(tmp_path, TABLES)
    assert not (tmp_path / "run/conversations.jsonl").exists()


def test_a_file_that_changed_before_it_was_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from r1mega.stages import mixture

    rows, see = some(tmp_path), mixture.see

    def changed_before(*given):
        write(tmp_path / "rows.jsonl", rows[:20])
        return see(*given)

    monkeypatch.setattr(mixture, "see", changed_before)
    with pytest.raises(DataError, match=r"data\.0\.files: .*rows\.jsonl: changed while the stage ran"):
        mixed(tmp_path, TABLES)
    assert not (tmp_path / "run/conversations.jsonl").exists()


def test_run_again_it_is_the_same_and_other_files_are_refused(tmp_path: Path):
    some(tmp_path)
    run_dir = mixed(tmp_path, TABLES)
    names = ("conversations.jsonl", "card.json", "card.md", "decisions.jsonl")
    before = {name: (run_dir / name).read_bytes() for name in names}
    (run_dir / ".mixture.tmp").mkdir()
    (run_dir / ".mixture.tmp/conversations.jsonl").write_text("half of it")  # of a run that was killed
    mixed(tmp_path, TABLES, ["processes=1"], resume=True)
    assert {name: (run_dir / name).read_bytes() for name in names} == before
    assert not (run_dir / ".mixture.tmp").exists()
    some(tmp_path, 29)
    with pytest.raises(RunDirError, match=r"data\.0\.files: other content than the run began with"):
        mixed(tmp_path, TABLES, resume=True)


def test_several_processes_make_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    some(tmp_path)
    write(tmp_path / "plain.jsonl", [plain(f"Hello {i}", "Hi " * 9) for i in range(300)])
    whole = set_of(mixed(tmp_path, BOTH))
    monkeypatch.setattr("r1mega.stages.mixture_reading.POOL_BYTES", 0)
    monkeypatch.setattr("r1mega.evaluation.search_files.blocks.__defaults__", (1000,))
    assert set_of(mixed(tmp_path, BOTH, ["processes=2"], name="pool")) == whole


def test_a_signal_leaves_nothing_half_written(tmp_path: Path):
    rows = [sampled(f"Q{i}", "a word " * 400) for i in range(8_000)]
    write(tmp_path / "rows.jsonl", rows)
    (tmp_path / "mixture.toml").write_text(f'stage = "mixture"\n{TABLES}')
    command = [sys.executable, "-m", "r1mega.cli", "run", "mixture.toml", "--run-dir", "run", "--set", "processes=1"]
    process = subprocess.Popen(
        [*command, "--cluster", str(ROOT / "configs/cluster/laptop.toml")], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/.mixture.tmp/spool.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + 15, output
    assert "--resume reads the files again" in output and "Traceback" not in output
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not left & {"conversations.jsonl", ".mixture.tmp", "summary.json"}
