"""SFT of tiny models, in this process: it learns, resumes bit for bit, and refuses what it cannot train on."""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sft_data import FAMILIES, sft_config, write_base, write_conversations

from r1mega.config.cluster import Cluster
from r1mega.errors import ConfigError, DataError
from r1mega.recipe.sft import SFT
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir

CLUSTER = Cluster(device="cpu")


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    write_conversations(file)
    return file


@pytest.fixture(scope="module")
def bases(mesh, conversations: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    rows = [json.loads(line) for line in conversations.read_text().splitlines()]
    for family in FAMILIES:
        write_base(folder / family, family, mesh, rows)
        (folder / family / "tokenization_own.py").write_text("# goes with the tokenizer\n")
    return {family: folder / family for family in FAMILIES}


def train(config: SFT, folder: Path, *, resume: bool = False) -> None:
    from r1mega.stages import sft

    run_dir = RunDir(folder, config, CLUSTER, resume=resume)
    try:
        sft.run(config, CLUSTER, run_dir)
    finally:
        run_dir.close()


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]


@pytest.fixture(scope="module")
def runs(bases, conversations, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each family that nothing interrupted."""
    folders = {family: tmp_path_factory.mktemp("runs") / family for family in FAMILIES}
    for family, folder in folders.items():
        train(sft_config(bases[family], conversations), folder)
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_it_lowers_the_validation_loss_and_leaves_a_model(runs, bases, family: str):
    folder = runs[family]
    rows = metrics(folder)
    validation = [(row["step"], row["validation/loss"]) for row in rows if row["kind"] == "validation"]
    assert [step for step, _ in validation] == [0, 4, 8]
    assert validation[2][1] < validation[1][1] < validation[0][1] - 0.5
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 9))
    assert all(("mtp_loss" in row) == (family == "deepseek_v3") for row in rows if row["kind"] == "train")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stage"] == "sft"
    assert summary["steps"] == 8
    assert summary["validation_loss"]["after"] == validation[2][1]
    assert summary["data"]["truncated"] == summary["data"]["dropped"] == 0
    stored = {what: json.loads((folder / f"data/{what}/store.json").read_text()) for what in ("train", "validation")}
    assert sum(store["documents"] for store in stored.values()) == 200
    # The template that was trained on goes with the model, and what it writes is what the model has learnt to.
    for name in ("tokenizer.json", "chat_template.jinja", "config.json", "generation_config.json"):
        assert (folder / "hf" / name).is_file(), name
    assert (folder / "hf/tokenization_own.py").read_text() == "# goes with the tokenizer\n"
    before, after = (load_file(f / "model.safetensors") for f in (bases[family], folder / "hf"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    if family == "deepseek_v3":  # expert_bias = "frozen"
        assert all(torch.equal(before[n], after[n]) for n in before if n.endswith("e_score_correction_bias"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_that_was_stopped_saves_and_goes_on_bit_for_bit(
    runs, bases, conversations, tmp_path: Path, monkeypatch, family: str
):
    from r1mega.runtime.tracking import Tracker

    config, folder, real = sft_config(bases[family], conversations), tmp_path / "run", Tracker.log

    def log(tracker, kind, step, row):
        real(tracker, kind, step, row)
        if kind == "train" and step == 3:  # noticed after step 4, where a validation is due and no checkpoint
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Tracker, "log", log)
    with pytest.raises(Interrupted) as stopped:
        train(config, folder)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_3", "step_4"]
    monkeypatch.setattr(Tracker, "log", real)
    train(config, folder, resume=True)
    assert metrics(folder) == metrics(runs[family])
    got, want = (load_file(f / "hf/model.safetensors") for f in (folder, runs[family]))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_run_does_not_go_on_with_other_conversations(bases, conversations, tmp_path: Path, monkeypatch):
    data = tmp_path / "conversations.jsonl"
    data.write_bytes(conversations.read_bytes())
    config = sft_config(bases["qwen2"], data, max_steps=1, validation=None)
    train(config, tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(DataError, match=r"--resume with other rows, template or tokenizer"):
        train(config, tmp_path / "run", resume=True)


def test_a_run_goes_on_without_the_files_it_was_made_of(bases, conversations, tmp_path: Path, monkeypatch):
    data = tmp_path / "conversations.jsonl"
    data.write_bytes(conversations.read_bytes())
    config = sft_config(bases["qwen2"], data, max_steps=2, validation=None, save={"every_steps": 1})
    train(config, tmp_path / "run")
    want = metrics(tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step_2")
    data.unlink()
    train(config, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == want


def test_tokens_are_made_of_a_datasets_folder_as_it_is(bases, conversations, tmp_path: Path, monkeypatch):
    """Changed before the first checkpoint it is tokenised anew; gone after it, the run goes on."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "dataset"
    folder.mkdir()
    lines = conversations.read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:60]))
    data = {"dataset": str(folder), "max_tokens": 96}
    config = sft_config(
        bases["qwen2"], conversations, data=data, max_steps=2, validation=None, save={"every_steps": 1}
    )
    train(config, tmp_path / "run")
    for left in ("summary.json", "metrics.jsonl", "checkpoints"):
        path = tmp_path / "run" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "train.jsonl").write_text("".join(lines))
    train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/data/train/store.json").read_text())["documents"] == len(lines)
    want = metrics(tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints/step_2")
    shutil.rmtree(folder)
    train(config, tmp_path / "run", resume=True)
    assert metrics(tmp_path / "run") == want
    with pytest.raises(DataError, match=r"data.dataset: .*/dataset: not there yet"):
        train(config, tmp_path / "other")


def test_validation_leaves_out_what_is_trained_on(bases, conversations, tmp_path: Path, caplog, capsys):
    own = tmp_path / "own.jsonl"
    rows = conversations.read_text().splitlines(keepends=True)
    own.write_text(json.dumps({"prompt": "another one", "response": "4"}) + "\n" + "".join(rows[:3]))
    validation = {"files": [str(own)], "every_steps": 4}
    config = sft_config(bases["qwen2"], conversations, validation=validation, max_steps=1)
    with caplog.at_level("WARNING"):
        train(config, tmp_path / "run")
    assert "3 conversations are left out, whose questions are trained on, the first at" in caplog.text
    assert f"{own}, line 2" in caplog.text
    shown = capsys.readouterr().out
    assert "tokenising train: 200/200 conversations" in shown
    assert "tokenising validation: 4/4 conversations" in shown
    assert json.loads((tmp_path / "run/data/validation/store.json").read_text())["documents"] == 1
    own.write_text("".join(rows[:3]))
    with pytest.raises(DataError, match="all 3 conversations to validate on ask questions that are trained on"):
        train(config, tmp_path / "other")


def test_a_run_without_a_checkpoint_does_not_go_on_without_its_files(bases, conversations, tmp_path: Path):
    data = tmp_path / "conversations.jsonl"
    data.write_bytes(conversations.read_bytes())
    config = sft_config(bases["qwen2"], data, max_steps=1, validation=None)
    train(config, tmp_path / "run")
    for name in ("summary.json", "metrics.jsonl", "checkpoints"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    data.unlink()
    with pytest.raises(DataError, match=r"conversations.jsonl: not there yet; .* has not all of their tokens"):
        train(config, tmp_path / "run", resume=True)


def test_what_is_held_out_for_evaluation_is_not_learnt(bases, conversations, tmp_path: Path, caplog):
    """A worded question of a task, told to be of the held-out side by the first 8 bytes of its SHA-256."""
    asked = (f"State the final answer to the following arithmetic problem: {i} + 1 =" for i in range(1000))
    theirs = [t for t in asked if int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") % 8 == 0][:3]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": t, "response": "4"}) + "\n" for t in theirs))
    with pytest.raises(DataError, match="train: all 3 conversations ask questions of the held-out side"):
        train(sft_config(bases["qwen2"], data, max_steps=1, validation=None), tmp_path / "a")
    data.write_text(data.read_text() + "".join(conversations.read_text().splitlines(keepends=True)[:20]))
    with caplog.at_level("WARNING"):
        train(sft_config(bases["qwen2"], data, max_steps=1, validation=None), tmp_path / "b")
    assert "train: 3 conversations ask questions of the held-out side" in caplog.text
    found = json.loads((tmp_path / "b/summary.json").read_text())["data"]
    assert (found["held_out"], found["conversations"], found["documents"]) == (3, 20, 20)
    listed = [json.loads(line)["question"] for line in (tmp_path / "b/trained_on.jsonl").read_text().splitlines()]
    assert not set(theirs) & set(listed) and len(listed) > 10


def test_batches_of_chunks_and_means_of_sequences(bases, conversations, tmp_path: Path):
    config = sft_config(
        bases["qwen2"], conversations, batch_unit="chunks", batch_size=4, reduction="sequence_mean", max_steps=3,
        validation=None,
    )  # fmt: skip
    train(config, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert all(2 * 96 < row["tokens"] <= 4 * 96 for row in rows)
    assert rows[2]["loss"] < rows[0]["loss"]


def test_every_tenth_conversation_is_held_out_by_its_question(runs, conversations):
    trained = {json.loads(line)["question"] for line in (runs["qwen2"] / "trained_on.jsonl").read_text().splitlines()}
    asked = [json.loads(line)["messages"][0]["content"] for line in conversations.read_text().splitlines()]
    left_out = [question for question in asked if question not in trained]
    stored = json.loads((runs["qwen2"] / "data/validation/store.json").read_text())
    assert len(left_out) == stored["documents"]
    assert 0.04 < len(left_out) / len(asked) < 0.18


def long(tmp_path: Path, conversations: Path) -> Path:
    file = tmp_path / "long.jsonl"
    rows = conversations.read_text().splitlines(keepends=True)[:20]
    rows[3] = json.dumps({"prompt": "1 + 1 =", "response": "1" * 100}) + "\n"
    rows[5] = json.dumps({"prompt": "1" * 100, "response": "2"}) + "\n"
    file.write_text("".join(rows))
    return file


def test_conversations_that_are_too_long(bases, conversations, tmp_path: Path):
    from r1mega.data.tokenised import opened

    file = long(tmp_path, conversations)
    found = {}
    for way in ("truncate", "drop"):
        config = sft_config(
            bases["qwen2"], file, data={"files": [str(file)], "max_tokens": 96, "too_long": way}, max_steps=1,
            validation=None,
        )  # fmt: skip
        train(config, tmp_path / way)
        found[way] = json.loads((tmp_path / way / "summary.json").read_text())["data"]
        assert max(opened(tmp_path / way / "data", "train").lengths) <= 96
    # Of the second nothing is left to learn but what is asked.
    assert (found["truncate"]["truncated"], found["truncate"]["dropped"], found["truncate"]["documents"]) == (
        1,
        1,
        19,
    )
    assert (found["drop"]["truncated"], found["drop"]["dropped"], found["drop"]["documents"]) == (0, 2, 18)
    with pytest.raises(DataError, match=rf"{file}, line 4: 1\d\d tokens are more than data.max_tokens = 96"):
        train(sft_config(bases["qwen2"], file, validation=None), tmp_path / "error")


def test_what_cannot_be_trained_is_refused(bases, conversations, tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match="train: no conversations"):
        train(sft_config(bases["qwen2"], empty, validation=None), tmp_path / "a")
    with pytest.raises(
        ConfigError, match=r"warmup_steps: 8 leaves no step at the full learning rate; the stage has 8"
    ):
        train(sft_config(bases["qwen2"], conversations, optimizer={"lr": 1e-3, "warmup_steps": 8}), tmp_path / "b")
