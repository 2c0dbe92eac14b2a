"""Conversations: what is read, and one message with file and line for what is malformed."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1mega.data.conversations import Source
from r1mega.errors import DataError

TURNS = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def test_both_forms_of_rows_are_read(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    rows = [{"messages": TURNS, "source": "x"}, {"prompt": "2 + 2?", "response": "4"}]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    found = list(Source([file, file], "", "train"))
    assert [c.where for c in found[:2]] == [f"{file}, line 1", f"{file}, line 3"]
    assert len(Source([file, file], "", "train")) == len(found) == 4
    assert all(list(c.messages) == TURNS and c.questions == ["2 + 2?"] for c in found)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', "not JSON"),
        ("[1]", "a row is an object, not list"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "content": "c"}]}',
            "line 2: field 'content' is given twice in one object",
        ),
        ('{"text": "a"}', "needs `messages`, a list, or `prompt` and `response`; its fields are 'text'"),
        ('{"messages": []}', "needs `messages`"),
        ('{"messages": ["a"]}', "message 0 is an object, not str"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "message 0: role 'bot'; known: system, user, assistant"),
        ('{"messages": [{"role": "user", "content": ""}]}', "message 0: content must be text and not empty"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "message 0: content must be text"),
        ('{"prompt": "a\\ud83d", "response": "b"}', "message 0: half a character, '\\ud83d', at 1"),
        ('{"prompt": "a", "response": "\\ude00"}', "message 1: half a character"),
        ('{"prompt": "a", "response": null}', "message 1: content must be text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "ends with the user's turn, of which nothing is learnt"),
        (
            '{"messages": [{"role": "user", "content": "a"}, '
            '{"role": "assistant", "content": "b", "tool_calls": [1]}]}',
            "message 1: unknown field 'tool_calls'",
        ),
    ],
)
def test_a_malformed_row_is_named_with_its_file_and_line(tmp_path: Path, row: str, message: str):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"messages": TURNS}) + "\n" + row + "\n")
    with pytest.raises(DataError) as error:
        list(Source([file], "", "train"))
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert message in str(error.value)


def test_a_byte_that_is_not_utf_8_is_placed_by_its_line(tmp_path: Path):
    """Far behind what a decoder reads at once."""
    file = tmp_path / "a.jsonl"
    good = b'{"prompt": "a", "response": "b"}\n'
    file.write_bytes(good * 5000 + b'{"prompt": "caf\xe9"}\n' + good)
    with pytest.raises(DataError, match=rf"^{file}, line 5001: byte 16, 0xe9, is not UTF-8"):
        list(Source([file], "", "train"))


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=rf"cannot read conversations from {tmp_path}/no.jsonl"):
        list(Source([tmp_path / "no.jsonl"], "", "train"))
    with pytest.raises(DataError, match=r"a.csv: conversations are read from \*.jsonl and \*.parquet files"):
        list(Source([tmp_path / "a.csv"], "", "train"))


def test_parquet_is_read(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": TURNS, "n": n} for n in (1, 2)]), file)
    found = list(Source([file], "", "train"))
    assert [list(c.messages) for c in found] == [TURNS, TURNS]
    assert found[1].where == f"{file}, row 2"
    assert len(Source([file], "", "train")) == 2


def test_parquet_that_is_none_or_half_of_one_is_named(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    for name, keep in (("none", 0), ("half", 200)):
        file = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([{"messages": TURNS}] * 99), file)
        file.write_bytes(file.read_bytes()[:keep])
        for act in (list, len):
            with pytest.raises(DataError, match=rf"cannot read conversations from {file}: "):
                act(Source([file], "", "train"))
    with pytest.raises(DataError, match=r"cannot read conversations from .*no.parquet: no such file"):
        list(Source([tmp_path / "no.parquet"], "", "train"))


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` takes for a dataset, and nothing else that it could find."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "dataset"
    folder.mkdir()
    for split, answers in (("train", ("3", "4")), ("test", ("5",))):
        rows = [{"prompt": "2 + 2?", "response": answer} for answer in answers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_split_of_a_dataset_is_read(dataset: Path):
    found = list(Source([], str(dataset), "train"))
    assert [c.messages[1]["content"] for c in found] == ["3", "4"]
    assert found[1].where == f"{dataset} (train), row 2"
    assert [c.messages[1]["content"] for c in Source([], str(dataset), "test")] == ["5"]
    assert len(Source([], str(dataset), "train")) == 2


def test_a_dataset_that_cannot_be_had_is_named_with_its_cause_and_what_to_do(dataset: Path):
    with pytest.raises(DataError, match=r"split 'tset': ValueError: Unknown split \"tset\".*\]$"):
        list(Source([], str(dataset), "tset"))
    with pytest.raises(DataError, match=r"dataset 'nobody/nothing', split 'train': .*Couldn't reach.* HF_HOME"):
        len(Source([], "nobody/nothing", "train"))
    (dataset / "train.jsonl").write_text('{"prompt": ')
    with pytest.raises(DataError, match=r"split 'train': .*generating the dataset: .*JSON"):
        Source([], str(dataset), "train").mark()


def test_one_of_several_configs_is_named(dataset: Path):
    """A folder of two configs, as the hub has them: a README says which files are whose."""
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("algebra", "code"))
    (dataset / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name, answer in (("algebra", "3"), ("code", "4")):
        (dataset / name).mkdir()
        (dataset / name / "a.jsonl").write_text(json.dumps({"prompt": "2 + 2?", "response": answer}) + "\n")
    found = {name: list(Source([], str(dataset), "train", name)) for name in ("algebra", "code")}
    assert {name: [c.messages[1]["content"] for c in of] for name, of in found.items()} == {
        "algebra": ["3"],
        "code": ["4"],
    }
    assert found["code"][0].where == f"{dataset} (code, train), row 1"
    for named in ("", "geometry"):
        with pytest.raises(DataError, match=r"Set dataset_config to one of 'algebra', 'code'$"):
            Source([], str(dataset), "train", named).mark()
    marks = [Source([], str(dataset), "train", name).mark() for name in found]
    assert marks[0] != marks[1]


def test_what_is_passed_over_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": TURNS, "source": "x", "n": 1}] * 3
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    caplog.set_level("INFO", "r1mega.data.row_source")
    for name in ("a.jsonl", "a.parquet"):
        caplog.clear()
        assert len(list(Source([tmp_path / name], "", ""))) == 3
        (record,) = caplog.records
        assert record.getMessage() == f"{tmp_path / name}: fields that are passed over: 'source', 'n'"


def test_a_change_in_files_or_in_a_datasets_folder_is_seen(dataset: Path):
    file = dataset / "train.jsonl"
    for source in (([file], "", "train"), ([], str(dataset), "train")):
        before = Source(*source).mark()
        assert Source(*source).mark() == before
        file.write_text(file.read_text() + json.dumps({"prompt": "1", "response": "2"}) + "\n")
        assert Source(*source).mark() != before


def test_a_column_that_cannot_be_decoded_is_not_read(dataset: Path, tmp_path: Path):
    import datasets

    rows = datasets.Dataset.from_list([{"messages": TURNS, "image": {"bytes": b"no image", "path": None}}])
    folder = tmp_path / "images"
    folder.mkdir()
    rows.cast_column("image", datasets.Image()).to_parquet(folder / "train.parquet")
    for source in (Source([], str(folder), "train"), Source([folder / "train.parquet"], "", "train")):
        (found,) = source
        assert list(found.messages) == TURNS


def column(values: list[Any], kind: Any) -> Any:
    import pyarrow

    return pyarrow.table({"prompt": pyarrow.array(values, kind), "response": pyarrow.array(["4"] * len(values))})


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: str):
    import pyarrow
    from pyarrow import parquet

    types = {"dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string())}
    table = column(["2 + 2?", "2 + 2?"], types.get(kind) or getattr(pyarrow, kind)())
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert [list(c.messages) for c in Source([tmp_path / "a.parquet"], "", "")] == [TURNS, TURNS]
    assert list(Source([tmp_path / "none.parquet"], "", "")) == []


def test_columns_that_are_none_of_a_conversation_are_refused(tmp_path: Path):
    import datetime

    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    tables = {
        "a.parquet, row 1: message 0: content must be text": column([1], pyarrow.int64()),
        "a.parquet, row 1: message 0: content must be": column([datetime.date(2020, 1, 1)], pyarrow.date32()),
        "cannot read conversations from .*a.parquet: .*Error: ": column([253402300800], pyarrow.timestamp("s")),
        r"needs a column `messages`, or `prompt` and `response`; its columns are 'text'$": pyarrow.table(
            {"text": []}
        ),
        r"a.parquet, row 1: needs `messages`, a list.* and `messages` is an object of lists, not a list of": (
            pyarrow.table({"messages": [{"role": ["user"], "content": ["a"]}]})
        ),
        r"a.parquet, row 1: needs `messages`, a list.* and `messages` is str": pyarrow.table({"messages": ["[]"]}),
    }
    for message, table in tables.items():
        parquet.write_table(table, file)
        with pytest.raises(DataError, match=message):
            list(Source([file], "", ""))


def test_lines_end_in_any_way_and_a_byte_order_mark_is_none_of_them(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "a\u2028b" * 10}, TURNS[1]]
    line = json.dumps({"messages": turns}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}".encode())
    assert [list(c.messages) for c in Source([file], "", "")] == [turns, turns]
    assert len(Source([file], "", "")) == 2
