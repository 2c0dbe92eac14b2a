"""Decontamination of parquet files: the same hits as of the same rows in JSONL, and what is left, held to pyarrow."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from r1mega import cli
from r1mega.errors import DataError
from r1mega.evaluation.decontaminate import decontaminate
from r1mega.evaluation.overlap import Evaluations
from r1mega.evaluation.search_files import Data

QUESTION = r"Find the number of pairs $(a,b)$ of positive integers with $\frac{1}{a}+\frac{1}{b}=\frac{1}{12}$."
OTHER = QUESTION.upper().replace(r"\FRAC", r"\dfrac").replace("$", "$$").replace(" ", "  ")
PLANTED = {3, 250, 251, 999}


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """1,000 rows with a list of messages, a number and a column that nobody looks at; four share the question."""

    def row(i: int) -> dict[str, Any]:
        text = f"row {i} " + " ".join(f"w{i}x{j}" for j in range(20))
        said = f"{text} {OTHER}" if i in PLANTED else text
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": f"answer {i}"}]
        return {"messages": turns, "score": i / 7, "note": QUESTION, "solution": None if i % 5 else f"s {i}"}

    return [row(i) for i in range(1000)]


@pytest.fixture
def evaluations(tmp_path: Path) -> Evaluations:
    table = pa.table({"problem": [QUESTION, "short"], "level": [5, 1]})
    parquet.write_table(table, tmp_path / "e.parquet")
    return Evaluations.read([tmp_path / "e.parquet"], (), 10, None)


def write(path: Path, rows: list[dict[str, Any]], **options: Any) -> pa.Table:
    table = pa.Table.from_pylist(rows).replace_schema_metadata({b"mine": b"kept"})
    parquet.write_table(table, path, **options)
    return table


@pytest.mark.parametrize("processes", [1, 2])
def test_hits_are_those_of_the_same_rows_in_jsonl(
    processes: int, rows: list[dict[str, Any]], evaluations: Evaluations, tmp_path: Path
):
    table = write(tmp_path / "d.parquet", rows, row_group_size=170, compression="zstd")
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [tmp_path / "d.parquet", tmp_path / "d.jsonl"]
    report = decontaminate(Data(paths, (), processes), evaluations, tmp_path / "out")
    hits = [json.loads(line) for line in (tmp_path / "out/hits.jsonl").read_text().splitlines()]
    found = {
        path.suffix: [
            (h["place"]["line"], h["place"]["field"], h["words"]) for h in hits if h["place"]["file"] == str(path)
        ]
        for path in paths
    }
    assert found[".parquet"] == found[".jsonl"] and {line - 1 for line, *_ in found[".parquet"]} == PLANTED
    assert {hit["against"]["line"] for hit in hits} == {1}
    assert report.rows == {str(path): 1000 for path in paths} and set(report.hit_rows.values()) == {4}
    left = parquet.read_table(tmp_path / "out/d.parquet")
    assert left.equals(table.take([i for i in range(1000) if i not in PLANTED]))
    assert left.schema.equals(parquet.read_schema(tmp_path / "d.parquet"), check_metadata=True)
    assert left.schema.metadata == {b"mine": b"kept"}
    assert parquet.ParquetFile(tmp_path / "out/d.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    lines = (tmp_path / "out/d.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == left.to_pylist()


def test_named_columns_alone_are_looked_at(rows: list[dict[str, Any]], evaluations: Evaluations, tmp_path: Path):
    write(tmp_path / "d.parquet", rows)
    report = decontaminate(Data([tmp_path / "d.parquet"], ["note"]), evaluations)
    assert report.hits == 1000 and {hit.place.field for hit in report.shown} == {"note"}
    assert str(report.shown[0].place) == f"{tmp_path / 'd.parquet'}, row 1, note"
    with pytest.raises(DataError, match=r"d\.parquet: no column to look at: it has messages, score, note, "):
        decontaminate(Data([tmp_path / "d.parquet"], ["problem"]), evaluations)


def test_a_file_without_rows_stays_one(evaluations: Evaluations, tmp_path: Path):
    parquet.write_table(pa.table({"problem": pa.array([], pa.string())}), tmp_path / "d.parquet")
    decontaminate(Data([tmp_path / "d.parquet"]), evaluations, tmp_path / "out")
    left = parquet.read_table(tmp_path / "out/d.parquet")
    assert left.num_rows == 0 and left.column_names == ["problem"]
    parquet.write_table(pa.table({"problem": [QUESTION]}), tmp_path / "all.parquet")
    decontaminate(Data([tmp_path / "all.parquet"]), evaluations, tmp_path / "none")
    assert parquet.read_table(tmp_path / "none/all.parquet").num_rows == 0


@pytest.mark.parametrize("name", ["absent.parquet", "torn.parquet"])
def test_a_file_that_cannot_be_read_is_one_message(
    name: str,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    write(tmp_path / "e.parquet", [{"problem": QUESTION}])
    write(tmp_path / "whole.parquet", rows)
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-200])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["r1mega", "decontaminate", "--against", "e.parquet", name, "-o", "out"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2 and re.search(f"cannot read (texts from )?{name}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
