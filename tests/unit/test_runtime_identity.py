"""Runs are known by what they began as and did: not by path, name or size, and whoever moves or copies them."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from model_folders import changed_models, model
from own_questions import own

from r1mega.config.cluster import Cluster
from r1mega.errors import CheckpointError, RanksLostError, RunDirError
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load, load_recipe
from r1mega.recipe.sft import SFT
from r1mega.runtime import digests, run_dir
from r1mega.runtime.provenance import Lineage
from r1mega.runtime.run_dir import RunDir
from r1mega.weights.saves import refuse_another_runs

ROOT = Path(__file__).parents[2]
BASE, RL, SFT_CONFIG = (
    ROOT / "configs/tiny" / n for n in ("r1_zero/0_base.toml", "r1_zero/1_rl.toml", "sft/1_qwen2.toml")
)
CLUSTER = Cluster(device="cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---- a run and its inputs -----------------------------------------------------------------------------------


def rl(base: Path, *overrides: str) -> GRPO:
    stage = load_recipe(RL, [f"model.path={base}", *overrides])
    assert isinstance(stage, GRPO)
    return stage


def begin(path: Path, stage: Any, **options: Any) -> Lineage:
    run = RunDir(path, stage, CLUSTER, resume=True, **options)
    (path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    found = run.lineage
    run.close()
    return found


def test_the_same_weights_elsewhere_are_no_change_and_others_in_place_are(tmp_path: Path):
    base = model(tmp_path / "checkout/base")
    before = begin(tmp_path / "checkout/run", rl(base))
    shutil.move(tmp_path / "checkout", tmp_path / "moved")
    base = tmp_path / "moved/base"
    assert begin(tmp_path / "moved/run", rl(base)) == before
    recorded = json.loads((tmp_path / "moved/run/config.json").read_text())
    assert recorded["stage"]["model"]["path"] == str(base)
    model(base, changed_models()["one bit"])
    with pytest.raises(RunDirError, match=r"changed:\n  model.path: other content than the run began with \(digest "):
        begin(tmp_path / "moved/run", rl(base))
    shutil.rmtree(base)
    with pytest.raises(RunDirError, match=r"model.path: other content .* -> not there\): /other, then .*/moved/base"):
        begin(tmp_path / "moved/run", rl(Path("/other")))


def test_questions_are_compared_by_content(tmp_path: Path):
    base, mine = model(tmp_path / "base"), tmp_path / "own.jsonl"
    mine.write_text("1\n")
    first = begin(tmp_path / "run", rl(base, own(mine)))
    other = tmp_path / "elsewhere.jsonl"
    other.write_text("1\n")
    assert begin(tmp_path / "run", rl(base, own(other))) == first
    other.write_text("2\n")
    with pytest.raises(RunDirError, match=r"questions\.0\.path: other content"):
        begin(tmp_path / "run", rl(base, own(other)))
    with pytest.raises(RunDirError, match=r"questions\.0\.path: '.*(own|elsewhere)\.jsonl' -> None"):
        begin(tmp_path / "run", rl(base))
    assert begin(tmp_path / "another", rl(base, own(other))).recipe != first.recipe


def test_a_recipe_is_settings_and_data_and_no_path(tmp_path: Path):
    base = model(tmp_path / "base")
    mine = begin(tmp_path / "a", rl(base))
    assert len(mine.runs) == 1 and len(mine.runs[0]) == 16
    same = begin(
        tmp_path / "b",
        rl(model(tmp_path / "x/y"), "save.keep_last=9", "batch.chunk_tokens=2048", "wandb.mode=disabled"),
    )
    assert (same.start, same.recipe) == (mine.start, mine.recipe) and same.runs != mine.runs
    for other in (
        "seed=4",
        "optimizer.lr=9e-4",
        "prompt.template=r1_zero",
        "evaluation.seed=1",
        "sampling.temperature=0.5",
    ):
        assert begin(tmp_path / other, rl(base, other)).recipe != mine.recipe
    longer = begin(
        tmp_path / "c", rl(base, "num_steps=400", "optimizer.schedule=constant", "optimizer.warmup_steps=0")
    )
    still = begin(
        tmp_path / "d", rl(base, "num_steps=440", "optimizer.schedule=constant", "optimizer.warmup_steps=0")
    )
    assert longer.recipe == still.recipe


def test_what_sft_learns_from_may_be_gone_and_what_validates_may_not_be_exchanged(tmp_path: Path):
    base, mine, theirs = model(tmp_path / "base"), tmp_path / "mine.jsonl", tmp_path / "theirs.jsonl"
    mine.write_text("1\n")
    theirs.write_text("2\n")
    stage = load_recipe(SFT_CONFIG, [f"model.path={base}", f"data.files=['{mine}']"])
    assert isinstance(stage, SFT)
    validated = stage.model_copy(
        update={
            "validation": stage.validation and stage.validation.model_copy(update={"files": (theirs,), "share": 0.0})
        }
    )
    begin(tmp_path / "run", validated)
    mine.write_text("3\n")  # the stage holds the tokens of these against the checkpoint's
    begin(tmp_path / "run", validated)
    mine.unlink()
    begin(tmp_path / "run", validated)
    theirs.write_text("4\n")
    with pytest.raises(RunDirError, match=r"validation.files: other content"):
        begin(tmp_path / "run", validated)


def test_a_copy_of_a_run_goes_on_as_a_run_of_its_own(tmp_path: Path):
    base = model(tmp_path / "base")
    begun = begin(tmp_path / "run", rl(base))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copied = begin(tmp_path / "copy", rl(base))
    assert copied.runs[1:] == begun.runs and copied.runs[0] != begun.runs[0]
    assert copied.recipe == begun.recipe
    (tmp_path / "run").rename(tmp_path / "moved")
    assert begin(tmp_path / "moved", rl(base)) == begun
    # Steps before the copy are both runs', those after it are each one's own.
    assert set(copied.policies(4)) > set(begun.policies(4)) and copied.policies(4)[0] not in begun.policies(4)
    assert copied.policies(0) == begun.policies(0)


def test_a_run_of_an_older_version_goes_on_and_its_paths_are_compared(tmp_path: Path):
    base = model(tmp_path / "base")
    begin(tmp_path / "run", rl(base))
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({"parts": record["parts"]}))
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["stage"]["max_prompt_tokens"]  # a setting that it did not know
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    with pytest.raises(RunDirError, match=r"model.path: '.*base' -> '.*other'"):
        begin(tmp_path / "run", rl(model(tmp_path / "other")))
    with pytest.raises(RunDirError, match="too_long: 'error' -> 'drop'"):
        begin(tmp_path / "run", rl(base, "questions.0.too_long=drop"))
    lineage = begin(tmp_path / "run", rl(base))
    assert begin(tmp_path / "run", rl(base)) == lineage
    assert len(json.loads((tmp_path / "run/run.json").read_text())["parts"]) == 3


def test_a_run_whose_settings_this_version_does_not_take_is_refused_by_what_to_do(tmp_path: Path):
    base = model(tmp_path / "base")
    begin(tmp_path / "run", rl(base))
    config = json.loads((tmp_path / "run/config.json").read_text())
    config["stage"] |= {"questions": None, "rewards": {"accuracy": 1.0, "format": 1.0}}
    config["stage"]["sampling"] = {"temperature": 1.0, "max_new_tokens": 64}
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["parts"][-1]["commit"] = "0123456789abcdef"
    for where, of in (("run/config.json", config), ("run/run.json", record)):
        (tmp_path / where).write_text(json.dumps(of))
    with pytest.raises(RunDirError) as refused:
        begin(tmp_path / "run", rl(base))
    told = str(refused.value).splitlines()
    assert "of a version of r1mega (commit 0123456789ab) whose settings this one does not take" in told[0]
    assert "another --run-dir" in told[0]
    # What is only newer than the record is no fault of it.
    assert [line.split(":")[0] for line in told[1:]] == ["  questions"]


def test_verify_inputs_finds_what_was_exchanged_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(digests, "KEPT_BYTES", 1)
    base = model(tmp_path / "base")
    file = base / "model.safetensors"
    os.utime(file, ns=(1, 10**18))
    begin(tmp_path / "run", rl(base))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    with file.open("r+b") as handle:
        handle.write(content)
    os.utime(file, ns=(1, 10**18))
    begin(tmp_path / "run", rl(base))
    with pytest.raises(RunDirError, match=r"model.path: other content than the run began with"):
        begin(tmp_path / "run", rl(base), verify_inputs=True)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    base = model(tmp_path / "base")
    begin(tmp_path / "a", rl(base))
    begin(tmp_path / "b", rl(base))
    a, b = (RunDir(tmp_path / n, rl(base), CLUSTER, resume=True) for n in ("a", "b"))
    refuse_another_runs(a, a.checkpoint(4), {"policy": a.lineage.policy(4)})
    refuse_another_runs(a, a.checkpoint(4), {})  # of an older version
    with pytest.raises(CheckpointError, match=rf"step_4: saved by run {b.lineage.runs[0]}, and .*/a holds run"):
        refuse_another_runs(a, a.checkpoint(4), {"policy": b.lineage.policy(4)})
    a.repeat(b.lineage)
    a.repeat(b.lineage)
    assert a.lineage.runs == (json.loads((tmp_path / "a/run.json").read_text())["run"], *b.lineage.runs)
    refuse_another_runs(a, a.checkpoint(4), {"policy": b.lineage.policy(4)})
    a.close()
    b.close()


# ---- who waits, and what is a user's own --------------------------------------------------------------------


def test_other_ranks_wait_while_rank_0_shows_that_it_is_hashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RanksLostError, match=r"rank 0 did not open this run directory within 0.5 s"):
        RunDir.join(tmp_path, 0.5)
    opening, beats = tmp_path / run_dir.OPENING, iter(range(6))

    def sleep(_: float) -> None:
        """Rank 0, seen through the other's waiting: it beats for longer than the timeout, then is done."""
        real(0.2)
        if (beat := next(beats, None)) is not None:
            opening.touch()
            os.utime(opening, ns=(1, 10**18 + beat))
            (tmp_path / "config.json").write_text("{}")
        else:
            opening.unlink(missing_ok=True)

    real = time.sleep
    monkeypatch.setattr(time, "sleep", sleep)
    RunDir.join(tmp_path, 0.5)
    assert next(beats, None) is None  # and not before, though a config.json of an earlier part was there


def test_files_that_are_no_steps_are_left_alone(tmp_path: Path):
    run = RunDir(tmp_path, *load(BASE, "laptop"), resume=False)
    kept = {
        "samples": [
            "step_backup.jsonl",
            "step_.jsonl",
            "step_9.jsonl.bak",
            "step_09.jsonl",
            "step_9_mine.jsonl",
            "notes",
        ],
        "checkpoints": ["step_best", "step_9.bak", ".step_notes", "step_09", "mine"],
        "hf_steps": ["step_final", "step_9_kept", ".step_x.tmp", "step_-9"],
        "journal": ["version_old.jsonl"],
    }
    taken = {"samples": ["step_9.jsonl"], "checkpoints": [".step_9.a1.tmp"], "hf_steps": ["step_9", ".step_9.1.tmp"]}
    for folder, names in [*kept.items(), *taken.items()]:
        for name in names:
            place = tmp_path / folder / name
            if folder in ("samples", "journal"):
                place.parent.mkdir(exist_ok=True)
                place.write_text("{}\n")
            else:
                place.mkdir(parents=True)
    assert run.saved_steps() == [] and not run_dir.holds_work(tmp_path)
    run.rewind(5)
    run.prune_checkpoints(1)
    for folder, names in kept.items():
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == sorted(names)
    run.close()
