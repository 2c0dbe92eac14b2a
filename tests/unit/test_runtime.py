"""Run directories, files that are whole or absent, metrics, interruption."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kills import killed_at

from r1mega.errors import RunDirError
from r1mega.recipe.load import load
from r1mega.runtime import files, run_dir
from r1mega.runtime.interrupt import Interrupt, StopNow
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir
from r1mega.runtime.tracking import Tracker

ROOT = Path(__file__).parents[2]
BASE = ROOT / "configs/tiny/r1_zero/0_base.toml"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    return load(BASE, "laptop")


def test_a_new_run_writes_config_and_provenance(tmp_path: Path, config):
    RunDir(tmp_path / "run", *config, resume=False).close()
    resolved = json.loads((tmp_path / "run/config.json").read_text())
    assert resolved["stage"]["num_steps"] == config[0].num_steps
    assert resolved["cluster"]["device"] == "cpu"
    (run,) = json.loads((tmp_path / "run/run.json").read_text())["parts"]
    assert run["versions"]["megatron-core"] == "0.16.1"
    assert run["seed"] == 0
    assert len(run["commit"].removesuffix("+dirty")) in (40, len("unknown"))


def test_an_existing_run_needs_resume(tmp_path: Path, config):
    RunDir(tmp_path, *config, resume=False).close()
    RunDir(tmp_path, *config, resume=False).close()  # nothing was done in it yet
    (tmp_path / "metrics.jsonl").touch()
    RunDir(tmp_path, *config, resume=False).close()  # a tracker was opened, no step was taken
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    with pytest.raises(RunDirError, match=r"already holds a run; pass --resume"):
        RunDir(tmp_path, *config, resume=False)
    RunDir(tmp_path, *config, resume=True).close()


def test_resume_refuses_another_config_but_not_what_alters_nothing(tmp_path: Path, config):
    RunDir(tmp_path, *config, resume=False).close()
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    RunDir(tmp_path, *load(BASE, "laptop", ["save.keep_last=5", "batch.chunk_tokens=512"]), resume=True).close()
    assert json.loads((tmp_path / "config.json").read_text())["stage"]["save"]["keep_last"] == 5
    assert len(json.loads((tmp_path / "run.json").read_text())["parts"]) == 2
    # The steps already taken would have had another learning rate on a longer cosine.
    with pytest.raises(RunDirError, match="num_steps"):
        RunDir(tmp_path, *load(BASE, "laptop", ["num_steps=5000"]), resume=True)
    stage, cluster = config
    other_dtype = cluster.trainer.model_copy(update={"dtype": "bf16"})
    with pytest.raises(RunDirError, match=r"cluster\.trainer\.dtype: 'fp32' -> 'bf16'"):
        RunDir(tmp_path, stage, cluster.model_copy(update={"trainer": other_dtype}), resume=True)
    other = load(BASE, "laptop", ["optimizer.lr=1e-4", "seed=3"])
    with pytest.raises(RunDirError, match=r"seed: 0 -> 3") as error:
        RunDir(tmp_path, *other, resume=True)
    assert "optimizer" in str(error.value)


def test_resume_at_another_layout_is_allowed_and_said(tmp_path: Path, config, caplog):
    RunDir(tmp_path, *config, resume=False).close()
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    with caplog.at_level("WARNING"):
        RunDir(tmp_path, *load(BASE, "laptop", ["cluster.trainer.dp=4", "cluster.trainer.ep=2"]), resume=True).close()
    assert "another layout, equal up to rounding: dp 1 -> 4, ep 1 -> 2" in caplog.text
    pipeline = ["cluster.trainer.pp=2", "cluster.trainer.pipeline=Et|tt|t|mL", "cluster.trainer.vpp=2"]
    other = [*pipeline, "cluster.trainer.recompute.granularity=full", "cluster.trainer.distributed_optimizer=false"]
    RunDir(tmp_path, *load(BASE, "laptop", other), resume=True).close()
    assert "pipeline '' -> 'Et|tt|t|mL'" in caplog.text
    assert "distributed_optimizer True -> False" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"), pytest.raises(RunDirError, match="seed: 0 -> 3"):
        RunDir(tmp_path, *load(BASE, "laptop", ["seed=3"]), resume=True)
    assert "goes on" not in caplog.text  # it does not


def test_one_process_at_a_time(tmp_path: Path, config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_dir, "LOCK_TIMEOUT_S", 0.5)
    held = RunDir(tmp_path, *config, resume=False)
    with pytest.raises(RunDirError, match="another process"):
        RunDir(tmp_path, *config, resume=True)
    held.close()


def test_an_unusable_place_is_one_message_and_leaves_nothing(tmp_path: Path, config):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirError, match=r"cannot be used as a run directory: Not a directory"):
        RunDir(tmp_path / "file" / "run", *config, resume=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_checkpoints_count_by_number_and_unfinished_ones_not_at_all(tmp_path: Path, config):
    run = RunDir(tmp_path, *config, resume=False)
    assert run.saved_steps() == []
    for step in (9, 10, 100):
        files.write_folder(run.checkpoint(step), lambda folder: (folder / "x").write_text("x"))
    (run.checkpoints / ".step_200.1.tmp").mkdir()
    (run.checkpoints / "step_300.bak").mkdir()
    assert run.saved_steps() == [9, 10, 100]
    run.prune_checkpoints(2)
    assert sorted(p.name for p in run.checkpoints.glob("step_*")) == ["step_10", "step_100", "step_300.bak"]
    run.close()


def test_every_nth_checkpoint_stays(tmp_path: Path, config):
    run = RunDir(tmp_path, *config, resume=False)
    for step in range(2, 22, 2):
        run.checkpoint(step).mkdir()
        run.prune_checkpoints(2, keep_every=8)
    assert run.saved_steps() == [8, 16, 18, 20]
    run.prune_checkpoints(1)
    assert run.saved_steps() == [20]
    run.close()


def test_rewind_puts_damaged_checkpoints_aside_and_drops_later_folders(tmp_path: Path, config):
    run = RunDir(tmp_path, *config, resume=False)
    made = ("checkpoints/step_2", "checkpoints/step_4", "checkpoints/.step_6.a1.tmp", "checkpoints/step_4.damaged")
    for name in (*made, "hf_steps/step_2", "hf_steps/step_4", "hf_steps/.step_6.1.tmp", "hf_steps/step_9_kept"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    run.rewind(2)
    assert run.saved_steps() == [2]
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_2", "step_4.damaged"]
    assert (run.checkpoints / "step_4.damaged/file").read_text() == "checkpoints/step_4"
    assert sorted(p.name for p in (tmp_path / "hf_steps").iterdir()) == ["step_2", "step_9_kept"]
    run.close()


def test_rewind_drops_what_comes_after_the_checkpoint_and_a_torn_line(tmp_path: Path, config):
    run = RunDir(tmp_path, *config, resume=False)
    rows = [{"kind": "train", "step": s} for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"kind": "tra')
    for step in (1, 3):
        (run.samples / f"step_{step}.jsonl").write_text("{}\n")
    run.rewind(2)
    assert run.metrics() == rows[:2]
    assert [p.name for p in run.samples.iterdir()] == ["step_1.jsonl"]
    run.close()


def test_a_folder_that_cannot_be_filled_leaves_the_old_one(tmp_path: Path):
    files.write_folder(tmp_path / "made", lambda folder: (folder / "a").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_folder(tmp_path / "made", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made/a").read_text() == "old"


def fill(folder: Path, text: str) -> None:
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "b", "inner/c"):
        (folder / name).write_text(text)


def found_in(folder: Path) -> set[str]:
    return {f"{p.relative_to(folder)} {p.read_text()}" for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = tmp_path / "made"
    files.write_folder(made, lambda folder: (folder / "a").write_text("old"))
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if target == made and "replaced" not in self.name:
            raise OSError("no room for a name")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="no room"):
        files.write_folder(made, lambda folder: (folder / "a").write_text("new"))
    assert (made / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_link_is_replaced_and_what_it_names_is_not(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    files.write_folder(elsewhere, lambda folder: (folder / "a").write_text("theirs"))
    (tmp_path / "made").symlink_to(elsewhere)
    files.write_folder(tmp_path / "made", lambda folder: (folder / "a").write_text("new"))
    assert (elsewhere / "a").read_text() == "theirs" and (tmp_path / "made/a").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "made"]


def test_killed_anywhere_in_replacing_a_folder_the_old_or_the_new_one_is_whole(tmp_path: Path):
    old, new = ({f"{name} {text}" for name in ("a", "b", "inner/c")} for text in ("old", "new"))

    def replace() -> None:
        files.write_folder(path, lambda folder: fill(folder / "x", "new"))

    for number in range(100):
        path = tmp_path / f"{number}/made"
        fill(path / "x", "old")
        cut = killed_at(number, replace)
        seen = found_in(path / "x")
        files.put_back(path.parent)
        assert seen in (set(), old, new) and found_in(path / "x") == (seen or old)
        if not cut:
            break
    assert seen == new and 15 < number < 99


def test_killed_anywhere_in_removing_folders_each_is_whole_or_gone(tmp_path: Path, config):
    run = RunDir(tmp_path, *config, resume=False)
    whole = {f"{name} x" for name in ("a", "b", "inner/c")}
    folders = (run.checkpoint(1), run.checkpoint(2), run.hf_step(2), run.hf_step(3))

    def remove() -> None:
        run.prune_checkpoints(1)
        run.rewind(2)

    for number in range(100):
        for folder in folders:
            if not folder.exists():
                fill(folder, "x")
        (run.path / ".summary.json.1.tmp").write_text("half")
        cut = killed_at(number, remove)
        for folder in folders:
            assert found_in(folder) == (whole if folder.exists() else set())
        assert run.checkpoint(2).exists() and run.hf_step(2).exists()
        if not cut:
            break
    assert 8 < number < 99 and run.saved_steps() == [2]
    assert [p.name for p in run.path.rglob(".*")] == [".lock"]
    assert [p.name for p in (run.path / "hf_steps").iterdir()] == ["step_2"]
    run.close()


def test_a_folder_whose_replacement_was_broken_off_is_there_again_in_the_next_run(tmp_path: Path, config):
    RunDir(tmp_path, *config, resume=False).close()
    names = ("checkpoints/{}step_4{}", "hf_steps/{}step_4{}", "{}hf{}")
    for name in names:
        fill(tmp_path / name.format(".", ".replaced.tmp"), "old")
    fill(tmp_path / "checkpoints/.step_2.replaced.tmp", "old")
    fill(tmp_path / "checkpoints/step_2", "new")
    run = RunDir(tmp_path, *config, resume=True)
    assert all((tmp_path / name.format("", "") / "a").read_text() == "old" for name in names)
    assert run.saved_steps() == [2, 4] and (run.checkpoint(2) / "a").read_text() == "new"
    run.rewind(4)
    assert [p.name for p in run.path.rglob(".*")] == [".lock"]
    run.close()


def test_metrics_are_json_whatever_the_numbers(tmp_path: Path, config):
    tracker = Tracker(tmp_path)
    tracker.log("train", 1, {"loss": float("nan"), "lr": 0.5})
    tracker.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "kind": "train", "step": 1, "loss": None, "lr": 0.5,
    }  # fmt: skip


def test_first_signal_waits_for_the_step_and_the_second_does_not():
    with Interrupt() as interrupt:
        assert interrupt.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.received == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_peak_memory_counts_children():
    code = "import time; x = bytearray(300 << 20); print('up', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        assert 300 / 1024 < peak_rss_gib(child.pid) < 0.5
        assert peak_rss_gib(tree=True) > peak_rss_gib() + 300 / 1024
    finally:
        child.kill()
        child.wait()


def test_a_signal_breaks_off_what_may_be_broken_off_and_nothing_else():
    with Interrupt() as interrupt:
        with pytest.raises(StopNow), interrupt.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert interrupt.received == signal.SIGTERM
        with pytest.raises(StopNow), interrupt.at_once():  # the next such work does not begin
            raise AssertionError("it began")
        os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat it
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.received == signal.SIGUSR1


def test_only_the_main_thread_is_broken_off():
    with Interrupt() as interrupt, interrupt.at_once():  # another thread's turn must not end this one
        thread = threading.Thread(target=lambda: interrupt.at_once().__enter__())
        thread.start()
        thread.join()
        with interrupt.at_once():
            pass
        with pytest.raises(StopNow):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
