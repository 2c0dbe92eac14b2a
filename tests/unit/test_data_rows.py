"""Rows of one's own questions: which column is what, what may stand in it, and where a fault is."""

import json
from pathlib import Path
from typing import Any

import pytest
from own_questions import ROW, TRAINED, file, write

from r1mega.data.sources.dataset import Dataset
from r1mega.data.sources.jsonl import JSONL
from r1mega.data.sources.parquet import Parquet
from r1mega.errors import DataError


def read_jsonl(path: Path, **settings: Any):
    return file(path, **settings).read(0)


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    rows = [ROW, {**ROW, "question": "2 + 0 =", "id": "mine", "entry": {"answer": "2"}, "note": "passed over"}]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode() + b"\r\n\r\n")
    (one, first), (two, second) = read_jsonl(path, id="id", entry="entry", domain="logic", target_language="de")
    assert (one, first.text, first.truth, first.verifier, len(first.id)) == (
        "line 1",
        "1 + 1 =",
        "2",
        "chain_sum",
        16,
    )
    assert (two, second.id, second.entry) == ("line 2", "mine", {"answer": "2"})
    assert (second.domain, second.target_language) == ("logic", "de")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no questions"),
        (["", " "], "holds no questions"),
        ([json.dumps(ROW), "{"], "line 2: not JSON"),
        (["[" * 100_000], "line 1: not JSON"),
        (["[1]"], "line 1: a row is a JSON object, and this is a list"),
        ([json.dumps(ROW)[:-1] + ', "question": "3"}'], "line 1: field 'question' is given twice in one object"),
        ([json.dumps({**ROW, "truth": True})], "line 1: column 'truth' should be text, and is true or false"),
        ([json.dumps({**ROW, "truth": [2]})], "line 1: column 'truth' should be text, and is a list"),
        ([json.dumps({**ROW, "truth": None})], "line 1: column 'truth' should be text, and is null"),
        ([json.dumps({**ROW, "truth": float("nan")})], "line 1: column 'truth' is nan, which is no number"),
        ([json.dumps({**ROW, "truth": -1e999})], "line 1: column 'truth' is -inf, which is no number"),
        ([json.dumps({**ROW, "question": 7})], "line 1: column 'question' should be text, and is a whole number"),
        ([json.dumps({**ROW, "question": " "})], "line 1: column 'question' is empty"),
        ([json.dumps({"task": "chain_sum", "question": "1", "truht": "1"})],
         r"line 1: no column 'truth' \(did you mean 'truht'\?\): its columns are 'task', 'question', 'truht'"),
        ([json.dumps({**ROW, "id": True})], "line 1: column 'id' should be text, and is true or false"),
        ([json.dumps({**ROW, "entry": [1]})], "line 1: column 'entry' should be an object, and is a list"),
        ([json.dumps({**ROW, "entry": "{"})], "line 1: column 'entry' is text, and not JSON"),
        ([json.dumps({**ROW, "options": ["a"]})], "line 1: column 'options' has 1 options: it takes 2 to 26"),
        ([json.dumps({**ROW, "options": "ab"})], "line 1: column 'options' should be a list of options"),
        ([json.dumps({**ROW, "options": ["a", "b", "a"]})], "line 1: column 'options' has the option 'a' more than"),
        ([json.dumps({**ROW, "options": ["B", "A"], "truth": "A"})],
         "line 1: truth 'A' is the text of one option and the letter of another"),
        (["", json.dumps({**ROW, "question": "1 + \ud83d ="})], r"line 2: column 'question': half a character"),
        ([json.dumps({**ROW, "truth": "\udc00"})], r"line 1: column 'truth': half a character"),
        ([json.dumps({**ROW, "id": "\udc00"})], r"line 1: column 'id': half a character"),
        ([json.dumps({**ROW, "id": "a"}), "", json.dumps({**ROW, "question": "3", "id": "a"})],
         "line 3: id 'a' already stands in line 1"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_line_and_column(tmp_path: Path, lines: list[str], message: str):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(lines))
    for column in ("id", "entry", "options", ""):
        if not column or f'"{column}":' in "".join(lines):
            break
    named = {column: column} if column else {}
    with pytest.raises(DataError, match=f"own.jsonl.*{message}"):
        read_jsonl(path, **named)


def test_all_bad_rows_are_named_at_once(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b'\n{\n{"task": "\xff"}\n' + b"[]\n" * 200)
    with pytest.raises(DataError) as error:
        read_jsonl(path)
    said = str(error.value).splitlines()
    assert "own.jsonl: 202 lines are wrong" in said[0] and said[1].startswith("  line 2: not JSON")
    assert said[2] == "  line 3: byte 11 is not UTF-8"
    assert said[-1] == "  and 102 more" and len(said) == 102


def test_a_column_that_no_row_has_is_said_once(tmp_path: Path):
    path = write(tmp_path / "own.jsonl", *TRAINED[:7])
    with pytest.raises(DataError) as error:
        read_jsonl(path, truth="answer")
    assert str(error.value) == (
        f"{path}: no column 'answer': its columns are 'task', 'question', 'truth' (all 7 lines, the first line 1)"
    )
    for column in ("id", "entry", "options"):
        with pytest.raises(DataError, match="no line has a column 'mine'"):
            read_jsonl(path, **{column: "mine"})


@pytest.mark.parametrize(
    ("written", "truth"),
    [
        ("7", "7"), ("3.0", "3"), ("-0.5", "-0.5"), ("1e-7", "0.0000001"), ("1e22", "10000000000000000000000"),
        ("0.1", "0.1"), ("100", "100"), ("1200.0", "1200"), ("0", "0"), ("-0.0", "-0"), ('"3.0"', "3.0"),
        ("1" + "0" * 400, "1" + "0" * 400), ("-" + "7" * 310, "-" + "7" * 310),
    ],
)  # fmt: skip
def test_a_number_is_a_truth_in_decimal_digits(tmp_path: Path, written: str, truth: str):
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"q": "1 + 1 =", "a": {written}}}\n')
    ((_, question),) = JSONL(path=path, question="q", truth="a", verifier="math").read(0)
    assert question.truth == truth and question.verifier == "math"


def test_options_are_lettered_behind_the_question(tmp_path: Path):
    rows = [
        {"q": "Which is prime?", "a": "7", "choices": ["4", 7, "9"]},
        {"q": "Which is even?", "a": "A", "choices": ["4", "7"]},
        {"q": "Which is odd?", "a": "B", "choices": None},
        {"q": "Which comes first?", "a": "A", "choices": ["A", "B"]},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = JSONL(path=path, question="q", truth="a", options="choices", verifier="choice")
    prime, even, odd, first = (question for _, question in source.read(0))
    assert (prime.text, prime.truth) == ("Which is prime?\nA. 4\nB. 7\nC. 9", "B")
    assert prime.entry == {"options": ["4", "7", "9"]}
    assert (even.truth, odd.text, odd.entry) == ("A", "Which is odd?", {})
    assert first.truth == "A"


def test_who_judges_is_said_once(tmp_path: Path):
    assert "verifier: missing" in JSONL(path=tmp_path / "a").faults()[0]
    assert "leave one of the two out" in file(tmp_path / "a", verifier="math").faults()[0]
    assert file(tmp_path / "a", truth="task").faults() == [
        "truth: truth and verifier_column both name the column 'task'"
    ]
    assert file(tmp_path / "a").faults() == [] and file(tmp_path).faults()[0].endswith(
        "is a folder; name a JSONL file"
    )


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(DataError, match=r"cannot read questions from .*absent.jsonl: No such file"):
        read_jsonl(tmp_path / "absent.jsonl")


# ---- parquet and datasets ------------------------------------------------------------------------------------

ROWS = {"problem": ["1 + 1 =", "3 - 1 ="], "answer": [2.0, 2.5], "meta": ['{"n": 1}', None], "picture": [b"x", b"y"]}
NAMED = {"question": "problem", "truth": "answer", "entry": "meta", "verifier": "math"}


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def told(source: Any) -> list[tuple[Any, ...]]:
    return [(place, q.text, q.truth, q.entry) for place, q in source.read(0)]


def test_parquet_and_a_dataset_are_read_as_lines_are(tmp_path: Path):
    (tmp_path / "data").mkdir()
    rows = parquet(tmp_path / "data/own.parquet", ROWS)
    wanted = [("row 1", "1 + 1 =", "2", {"n": 1}), ("row 2", "3 - 1 =", "2.5", {})]
    assert told(Parquet(path=rows, **NAMED)) == wanted
    dataset = Dataset(name=str(tmp_path / "data"), **NAMED)
    assert told(dataset) == wanted and dataset.label == "data" and dataset.inputs() == [("name", tmp_path / "data")]
    assert not dataset.on_the_hub and Dataset(name="owner/name", **NAMED).on_the_hub
    assert Dataset(name="owner/name", **NAMED).inputs() == []


def test_a_table_says_which_column_it_has_not_and_a_row_what_is_wrong(tmp_path: Path):
    rows = parquet(tmp_path / "own.parquet", ROWS)
    for source in (Parquet(path=rows, truth="anwser", verifier="math"), Dataset(name=str(tmp_path), verifier="math")):
        with pytest.raises(DataError, match=r"no column 'question'.*its columns are 'problem', 'answer', 'meta'"):
            source.read(0)
    with pytest.raises(DataError, match=r"no column 'anwser' \(did you mean 'answer'\?\)"):
        Parquet(path=rows, question="problem", truth="anwser", verifier="math").read(0)
    wrong = {"question": ["1", None, "3"], "truth": [float("nan"), 1.0, 2.0], "id": [1, 2, 3]}
    rows = parquet(tmp_path / "wrong.parquet", wrong)
    with pytest.raises(DataError) as error:
        Parquet(path=rows, verifier="math").read(0)
    assert str(error.value).splitlines() == [
        f"{rows}: 2 rows are wrong",
        "  row 1: column 'truth' is nan, which is no number",
        "  row 2: column 'question' should be text, and is null",
    ]
    (tmp_path / "no.parquet").write_text("no")
    with pytest.raises(DataError, match=r"cannot read questions from .*no.parquet"):
        Parquet(path=tmp_path / "no.parquet", verifier="math").read(0)


def test_a_row_that_is_no_utf_8_is_named(tmp_path: Path):
    import pyarrow

    offsets, data = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0"), pyarrow.py_buffer(b"1\xff\xfe")
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, data])
    rows = parquet(tmp_path / "own.parquet", {"question": texts, "truth": ["1", "2"]})
    with pytest.raises(DataError, match=r"own.parquet, row 2: holds what is not UTF-8"):
        Parquet(path=rows, verifier="math").read(0)


def test_a_parquet_file_whose_pages_are_damaged_is_named(tmp_path: Path):
    columns = {"question": [f"{n} + {n * n} =" for n in range(2000)], "truth": [str(n * n + n) for n in range(2000)]}
    rows = parquet(tmp_path / "own.parquet", columns)
    damaged = bytearray(rows.read_bytes())
    damaged[200:2000] = b"\xaa" * 1800
    rows.write_bytes(damaged)
    with pytest.raises(DataError, match=r"cannot read questions from .*own.parquet: OSError"):
        Parquet(path=rows, verifier="math").read(0)


def test_a_dataset_that_is_not_here_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(
        DataError, match=r"dataset 'owner/none', config 'main', split 'test': ConnectionError: offline"
    ):
        Dataset(name="owner/none", config="main", split="test", **NAMED).read(0)
