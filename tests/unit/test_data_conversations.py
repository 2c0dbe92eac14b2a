"""Conversations: what is read, and one message with file and line for what is malformed."""

import json
from pathlib import Path

import pytest

from r1mega.data.conversations import count, read
from r1mega.errors import DataError

TURNS = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def test_both_forms_of_rows_are_read(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    rows = [{"messages": TURNS, "source": "x"}, {"prompt": "2 + 2?", "response": "4"}]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    found = list(read([file, file], "", "train"))
    assert [c.where for c in found[:2]] == [f"{file}, line 1", f"{file}, line 3"]
    assert count([file, file], "", "train") == len(found) == 4
    assert len(found) == 4
    assert all(list(c.messages) == TURNS and c.questions == ["2 + 2?"] for c in found)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', "not JSON"),
        ("[1]", "a row is an object, not list"),
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
        list(read([file], "", "train"))
    assert str(error.value).startswith(f"{file}, line 2: ")
    assert message in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=rf"cannot read conversations from {tmp_path}/no.jsonl"):
        list(read([tmp_path / "no.jsonl"], "", "train"))
    with pytest.raises(DataError, match=r"a.csv: conversations are read from \*.jsonl and \*.parquet files"):
        list(read([tmp_path / "a.csv"], "", "train"))


def test_parquet_is_read(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": TURNS, "n": n} for n in (1, 2)]), file)
    found = list(read([file], "", "train"))
    assert [list(c.messages) for c in found] == [TURNS, TURNS]
    assert found[1].where == f"{file}, row 2"
    assert count([file], "", "train") == 2


def test_parquet_that_is_none_or_half_of_one_is_named(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    for name, keep in (("none", 0), ("half", 200)):
        file = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([{"messages": TURNS}] * 99), file)
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(DataError, match=rf"cannot read conversations from {file}: "):
            list(read([file], "", "train"))
    with pytest.raises(DataError, match=r"cannot read conversations from .*no.parquet: no such file"):
        list(read([tmp_path / "no.parquet"], "", "train"))


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
    found = list(read([], str(dataset), "train"))
    assert [c.messages[1]["content"] for c in found] == ["3", "4"]
    assert found[1].where == f"{dataset} (train), row 2"
    assert [c.messages[1]["content"] for c in read([], str(dataset), "test")] == ["5"]
    assert count([], str(dataset), "train") == 2


def test_a_dataset_that_cannot_be_had_is_named_with_what_to_do(dataset: Path):
    with pytest.raises(DataError, match=r"split 'tset': ValueError: Unknown split \"tset\".*HF_HOME.*data.files"):
        list(read([], str(dataset), "tset"))
    with pytest.raises(DataError, match=r"dataset 'nobody/nothing', split 'train': .*Couldn't reach"):
        list(read([], "nobody/nothing", "train"))
