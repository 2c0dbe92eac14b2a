"""Artefacts are on the disk before they get their names, and their names are before anything counts on them."""

import os
from pathlib import Path

import pytest
from conversion_data import ONE, tiny_spec, unique_tensors, write_folder
from power_cut import Disk
from trainer_data import nll

from r1mega.buffers import Float32s, Int32s
from r1mega.runtime import files
from r1mega.samples import Completion, FinishReason, Prompt


@pytest.fixture
def disk(monkeypatch, tmp_path) -> Disk:
    return Disk(monkeypatch, tmp_path)


def test_the_recorder_sees_what_is_not_synced(disk: Disk, tmp_path: Path) -> None:
    """Each of the steps of a careful write, left out."""

    def write(name: str, *, content: bool = True, folder: bool = True, later: bool = False) -> list[str]:
        disk.faults.clear()
        temporary = tmp_path / "temporary"
        with temporary.open("w") as file:
            file.write("a")
            file.flush()
            if content:
                os.fsync(file.fileno())
            if later:
                file.write("b")
        temporary.replace(tmp_path / name)
        if folder:
            files.sync(tmp_path)
        return disk.lost(tmp_path / name)

    assert write("whole") == []
    assert ["content" in fault for fault in write("unsynced", content=False)] == [True, True]
    assert ["content" in fault for fault in write("longer", later=True)] == [True, True]
    assert write("nameless", folder=False) == [f"{tmp_path / 'nameless'}: its name"]
    assert disk.renamed == ["whole", "unsynced", "longer", "nameless"]


def test_texts_and_lines(disk: Disk, tmp_path: Path) -> None:
    for text in ("one", "another"):
        files.write_text(tmp_path / "text", text)
        files.write_json(tmp_path / "json", {"a": text})
        files.write_jsonl(tmp_path / "jsonl", [{"a": text}, {"b": 1}])
        assert disk.lost(*(tmp_path / name for name in ("text", "json", "jsonl"))) == []
    assert disk.renamed == ["text", "json", "jsonl"] * 2


def test_folders_and_what_they_replace(disk: Disk, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "inner" / "empty").mkdir(parents=True)
        (folder / "inner" / "file").write_text("a")
        (folder / "file").write_bytes(b"b" * 100_000)

    for _ in range(2):
        files.write_folder(tmp_path / "new" / "deep" / "folder", fill)
        assert disk.lost(tmp_path / "new" / "deep" / "folder") == []
    assert disk.renamed == ["folder", f".folder{files.REPLACED}", "folder"]


def test_a_large_file_that_was_flushed_on_the_way(disk: Disk, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "FLUSH_BYTES", 1000)
    with files.LargeFile(tmp_path / "large", new=True) as file:
        for _ in range(5):
            file.write(b"x" * 700)
        assert any("content" in fault for fault in disk.lost(tmp_path / "large"))
        file.sync()
    files.sync(tmp_path)
    assert disk.lost(tmp_path / "large") == []


def test_answers_are_safe_when_the_journal_says_so(disk: Disk, tmp_path: Path) -> None:
    """Of every version, those whose file was closed for another's included."""
    from r1mega.rollout.engine import Request, SamplingParams
    from r1mega.rollout.journal import Journal
    from r1mega.rollout.replay import JournalledEngine
    from r1mega.rollout.segment import Key

    def completions(key_of: Request, version: int) -> tuple[Completion, ...]:
        ids = Int32s([5, 6])
        return tuple(
            Completion(
                key_of.prompt.id, i, ids, Float32s([-0.5, -1.0]), "text", FinishReason.STOP, version, key_of.seed + i
            )
            for i in range(key_of.n)
        )

    class Engine:
        def generate(self, requests, params, *, on_answer, version):
            for i, request in enumerate(requests):
                on_answer(i, completions(request, version))
            return []

    request = Request(Prompt("p", "chain_sum", "1 + 1", "2", Int32s([1, 2])), 2, 7)
    params = SamplingParams(temperature=1.0, max_new_tokens=9)
    journal = Journal(tmp_path / "journal")
    for version in (0, 1):
        key = Key.of(request, params, version=version, policy="p")
        journal.add(key, completions(request, version))
    assert disk.lost(tmp_path / "journal" / "version_0.jsonl") != []  # its name is not
    journal.sync()
    journal.sync()  # with nothing new
    segments = [tmp_path / "journal" / f"version_{v}.jsonl" for v in (0, 1, 2)]
    assert disk.lost(*segments[:2]) == []
    JournalledEngine(Engine(), journal, policies=lambda version: ("p",), replay="journal").generate(
        [request], params, version=2
    )
    assert disk.lost(*segments) == []
    journal.prune(1)
    assert disk.lost(*(tmp_path / "journal" / name for name in ("pruned.json", "about.json")), *segments[1:]) == []
    journal.add(Key.of(request, params.greedy(), version=2, policy="p"), completions(request, 2))
    journal.close()
    assert disk.lost(*segments[1:]) == []


def test_lines_of_metrics_that_a_checkpoint_counts_on(disk: Disk, tmp_path: Path) -> None:
    from r1mega.runtime.tracking import Tracker

    tracker = Tracker(tmp_path)
    tracker.log("train", 1, {"loss": 0.5})
    assert disk.lost(tmp_path / "metrics.jsonl") != []
    tracker.sync()
    assert [fault for fault in disk.lost(tmp_path / "metrics.jsonl") if "content" in fault] == []
    tracker.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint(disk: Disk, make_policy, tmp_path: Path, asynchronous: bool) -> None:
    from r1mega.trainer.checkpoint.checkpointer import Checkpointer

    policy = make_policy()
    checkpointer = Checkpointer(policy)
    for _ in range(2):  # the second one in place of the first
        checkpointer.save(tmp_path / "step_1", {"step": 1}, {"own.bin": b"own"}, asynchronous=asynchronous)
        checkpointer.wait()
        assert disk.lost(tmp_path / "step_1") == []
    assert {"own.bin", "policy.json", ".metadata"} <= {p.name for p in (tmp_path / "step_1").iterdir()}
    assert disk.renamed == ["part_00000.json", "step_1", "part_00000.json", f".step_1{files.REPLACED}", "step_1"]


@pytest.mark.parametrize("beside", [False, True])
def test_an_export(disk: Disk, make_policy, documents, tmp_path: Path, monkeypatch, beside: bool) -> None:
    """In several files, whose names are given at the end, with what travels along."""
    from r1mega.runtime.background import Background
    from r1mega.weights import hf_io

    monkeypatch.setattr(hf_io, "SHARD_BYTES", 1 << 20)
    base = tmp_path / "base"
    base.mkdir()
    for name in ("tokenizer.json", "LICENSE"):
        files.write_text(base / name, "{}")
    policy = make_policy()
    policy.forward_backward(documents, nll)
    thread = Background("export")
    hf_io.export(policy, tmp_path / "hf", base, beside=thread if beside else None)
    thread.wait()
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    left = [fault for fault in disk.lost(tmp_path / "hf") if ".part -> " not in fault]
    assert left == []


@pytest.mark.parametrize(("form", "dtype"), [("hf", None), ("hf", "fp8-block"), ("megatron", None)])
def test_a_conversion(disk: Disk, tmp_path: Path, form, dtype) -> None:
    """Each part before its record says that it is written, and all of it before OUT appears."""
    from r1mega.conversion import convert as module

    spec = tiny_spec()
    source = write_folder(tmp_path / "source", spec, unique_tensors(spec))
    safe_before, write = [], module.write_json

    def record(path: Path, value) -> None:
        if path.parent.name == "parts":
            out = path.parent.parent / "out"
            # A shard is safe but for what other parts are still to write: it is only compared where it is a part's.
            own = [out / value["file"]] if "file" in value else list(out.glob("*.safetensors"))
            safe_before.append([fault for p in own for fault in disk.lost(p) if "content" in fault])
        write(path, value)

    module.write_json, kept = record, module.write_json
    try:
        module.convert(source, tmp_path / "out", form, dtype, ONE)
    finally:
        module.write_json = kept
    assert len(safe_before) > 1 and not any(safe_before)
    assert disk.lost(tmp_path / "out") == []
    assert disk.renamed[-1] == "out"


def test_a_tokenizer_and_a_token_store(disk: Disk, tmp_path: Path) -> None:
    from r1mega.data import token_store
    from r1mega.data.tokenizer import train_tokenizer

    train_tokenizer(["1+1=2. The answer is 2."] * 50, 300, tmp_path / "tokenizer")
    assert disk.lost(*(tmp_path / "tokenizer").iterdir()) == []
    assert disk.renamed[-1] == "tokenizer_config.json"
    token_store.write(tmp_path / "store", "key", [token_store.Stored([1, 2, 3], [(1, 3)])], {})
    assert disk.lost(tmp_path / "store") == []
