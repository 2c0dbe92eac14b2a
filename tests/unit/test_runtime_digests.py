"""Files and models are known by what they hold, and a large file is hashed once."""

import json
import os
import shutil
from pathlib import Path

import pytest
from model_folders import changed_models, model, tensors
from safetensors.torch import save_file

from r1mega.runtime import digests
from r1mega.runtime.digests import Digests


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_same_model_elsewhere_and_in_other_files_is_the_same(tmp_path: Path):
    one = model(tmp_path / "one")
    want = Digests().of(one)
    other = shutil.copytree(one, tmp_path / "deep/other name")
    (other / "config.json").write_text(json.dumps({"hidden_size": 4, "model_type": "qwen2"}, indent=8))
    (other / "README.md").write_text("words")
    assert Digests().of(other) == want
    names = sorted(tensors())
    for i, some in enumerate((names[:2], names[2:])):
        shard = {name: tensors()[name] for name in some}
        save_file(shard, other / f"model-{i}.safetensors", metadata={"format": "pt", "other": "words"})
    (other / "model.safetensors").unlink()
    index = {"weight_map": {n: f"model-{int(n in names[2:])}.safetensors" for n in names}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors(5), other / "consolidated.safetensors")  # the index does not name it: nobody reads it
    assert Digests().of(other) == want


@pytest.mark.parametrize("what", changed_models())
def test_other_weights_of_the_same_size_are_another_model(tmp_path: Path, what: str):
    one, other = model(tmp_path / "one"), model(tmp_path / "other", changed_models()[what])
    assert Digests().of(one) != Digests().of(other)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json"])
def test_what_makes_other_answers_of_the_weights_is_another_model(tmp_path: Path, file: str):
    folder = model(tmp_path / "one")
    before = Digests().of(folder)
    (folder / file).write_text('{"eos_token_id": 7}')
    assert Digests().of(folder) != before


def test_other_files_and_folders(tmp_path: Path):
    assert Digests().of(tmp_path / "absent") == ""
    rows, more = tmp_path / "rows.jsonl", tmp_path / "more.jsonl"
    rows.write_text("one\n")
    more.write_text("one\n")
    assert Digests().of(rows) == Digests().of(more) != ""
    more.write_text("two\n")
    assert Digests().of(rows) != Digests().of(more)
    broken = tmp_path / "m.safetensors"  # its reader says what is wrong with it
    broken.write_bytes(b"\xff" * 40)
    before = Digests().of(broken)
    broken.write_bytes(b"\xff" * 41)
    assert Digests().of(broken) != before
    megatron = tmp_path / "checkpoint"
    megatron.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        (megatron / name).write_text(name)
    before = Digests().of(megatron)
    (megatron / "__0_0.distcp").write_text("__0_1.distcp")
    assert Digests().of(megatron) != before


def test_a_large_file_is_hashed_once_until_its_size_time_or_inode_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(digests, "KEPT_BYTES", 1)
    hashed: list[str] = []
    real = digests._hash_piece
    monkeypatch.setattr(digests, "_hash_piece", lambda path, piece: hashed.append(path.name) or real(path, piece))

    def asked(*, verify: bool = False) -> tuple[str, int]:
        hashed.clear()
        return Digests(tmp_path / "run", verify=verify).of(tmp_path / "one"), len(hashed)

    folder = model(tmp_path / "one")
    file = folder / "model.safetensors"
    first, num = asked()
    assert num == 6 and asked() == (first, 6)  # changed a moment ago: it may change again within its clock's tick
    os.utime(file, ns=(1, 10**18 + 1))
    assert asked() == (first, 6) and asked() == (first, 0)
    assert json.loads((tmp_path / "cache/r1mega/digests.json").read_text())
    shutil.rmtree(tmp_path / "cache")  # another home: the run remembers
    assert asked() == (first, 0)
    os.utime(file, ns=(1, 10**18 + 2))
    assert asked() == (first, 6)
    shutil.copy2(file, folder / "copy")
    (folder / "copy").replace(file)  # size and time are the same
    assert file.stat().st_mtime_ns == 10**18 + 2 and asked() == (first, 6) and asked() == (first, 0)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # in place, and its time put back: only a second look can tell
    with file.open("r+b") as handle:
        handle.write(content)
    os.utime(file, ns=(1, 10**18 + 2))
    assert asked() == (first, 0)
    second, num = asked(verify=True)
    assert second != first and num == 6
    assert asked() == (second, 0)


def test_a_home_that_cannot_be_written_costs_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digests, "KEPT_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    folder = model(tmp_path / "one")
    os.utime(folder / "model.safetensors", ns=(1, 10**18))
    assert Digests().of(folder) == Digests().of(folder)
