"""SIGKILL at random moments: a run that replays its journal ends with the same losses and weights, bit for bit."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_stages import ROOT, TIMING, TINY, command, r1mega

NUM_KILLS = 20
SETTINGS = (
    "num_steps=24", "rollout.num_prompts=4", "rollout.num_minibatches=4", "objective.group_size=4",
    "objective.reference_refresh_steps=8", "sampling.max_new_tokens=40", "evaluation.num_questions=6",
    "evaluation.every_steps=12", "save.every_steps=3", "optimizer.warmup_steps=1", "num_questions=40",
    "objective.constant_groups=keep",
)  # fmt: skip
LAUNCH_TIME = TIMING | {"rollout/replayed_requests"}


# Enough for answers in the format to come up: without rewards that differ, only rounding would move the weights.
BASE = [str(TINY / "0_base.toml"), "--set", "num_steps=120", "--set", "data.num_documents=8000", "--set",
        "optimizer.warmup_steps=20", "--set", "save.every_steps=120"]  # fmt: skip


def rl(base: Path, run_dir: Path, *overrides: str) -> list[str]:
    sets = [part for s in (f"model.path={base / 'hf'}", *SETTINGS, *overrides) for part in ("--set", s)]
    return ["run", str(TINY / "1_rl.toml"), "--run-dir", str(run_dir), *sets]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("base") / "run"
    done = r1mega("run", *BASE, "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run with a live server."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = r1mega(*rl(base, run_dir, "rollout.keep_journal=true"))
    assert done.returncode == 0, done.stderr
    assert (run_dir / "logs/vllm.log").is_file()
    learnt = [row["grad_norm"] for row in rows(run_dir) if row["kind"] == "train"]
    assert sum(norm > 1e-2 for norm in learnt) > len(learnt) // 2
    return run_dir


def rows(run_dir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in LAUNCH_TIME} for row in found]


def with_journal_of(whole: Path, run_dir: Path) -> Path:
    run_dir.mkdir()
    shutil.copytree(whole / "journal", run_dir / "journal")
    return run_dir


def ranks_of(tag: int) -> list[int]:
    """Process ids of the ranks of the run that was started with R1MEGA_TEST=tag, by rank; none where it has one."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            mine = f"R1MEGA_TEST={tag}".encode() in environment
            rank = next((e for e in environment if e.startswith(b"RANK=")), None)
            command_line = (folder / "cmdline").read_bytes()
            if mine and rank and b"r1mega.cli" in command_line and b"r1mega.runtime.process" not in command_line:
                found[int(rank[5:])] = int(folder.name)
        except OSError:
            continue
    return [found[rank] for rank in sorted(found)]


def step_s(metrics: Path) -> float:
    """Mean seconds of an optimiser step so far, on this machine."""
    lines = metrics.read_text().split("\n")[:-1]  # the last one may be half written
    seconds = [row["seconds/update"] for row in map(json.loads, lines) if row["kind"] == "train"]
    return sum(seconds) / max(1, len(seconds))


def killed_again_and_again(run_dir: Path, arguments: list[str], seed: int, kills: int, *, one_rank: bool) -> int:
    """Start the run up to `kills` times, each time killed at a random moment; returns how many had got further.

    Three in four die within two steps' time after a new line of metrics, the others at any moment of their start.
    """
    rng = random.Random(seed)
    further = 0
    metrics = run_dir / "metrics.jsonl"
    for _ in range(kills):
        tag = rng.randrange(1 << 30)
        process = subprocess.Popen(
            command(*arguments, "--resume"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "R1MEGA_TEST": str(tag)}, start_new_session=True,
        )  # fmt: skip
        before = metrics.read_bytes() if metrics.exists() else b""
        early = rng.random() < 0.25
        deadline = time.monotonic() + (rng.uniform(0, 15) if early else 600)
        while time.monotonic() < deadline and process.poll() is None:
            if not early and metrics.exists() and len(metrics.read_bytes()) > len(before):
                further += 1
                time.sleep(rng.uniform(0, 2 * step_s(metrics)))
                break
            time.sleep(0.02)
        if process.poll() == 0:  # done
            break
        ranks = ranks_of(tag)
        if one_rank and len(ranks) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(ranks), signal.SIGKILL)
            code = process.wait(timeout=600)
            if code == 0:  # it was done in the meantime
                break
            assert code == 128 + signal.SIGKILL
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        end = time.monotonic() + 300
        while ranks_of(tag) and time.monotonic() < end:
            time.sleep(0.1)
    return further


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(5400)
def test_killed_at_random_moments_ends_as_the_uninterrupted_run(base: Path, whole: Path, tmp_path: Path):
    run_dir = with_journal_of(whole, tmp_path / "run")
    further = killed_again_and_again(run_dir, rl(base, run_dir), seed=1, kills=NUM_KILLS, one_rank=False)
    done = r1mega(*rl(base, run_dir), "--resume")
    assert done.returncode == 0, done.stderr
    assert further >= 8  # and with so many starts the run is mostly done
    assert len(json.loads((run_dir / "run.json").read_text())["parts"]) > NUM_KILLS // 2
    assert rows(run_dir) == rows(whole)
    got, want = (load_file(d / "hf/model.safetensors") for d in (run_dir, whole))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert not (run_dir / "logs/vllm.log").exists()  # all of it came from the journal


def servers_of(tag: int) -> list[int]:
    """Process ids of the vLLM servers of the run that was started with R1MEGA_TEST=tag."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command_line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        of_the_run = f"R1MEGA_TEST={tag}".encode() in environment
        if of_the_run and b"vllm.entrypoints" in command_line and b"r1mega.runtime.process" not in command_line:
            found.append(int(folder.name))
    return found


def journalled(run_dir: Path) -> int:
    """Bytes of answers on disk."""
    return sum(file.stat().st_size for file in (run_dir / "journal").glob("version_*.jsonl"))


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Until it holds, the process ends, or the time is over."""
    deadline = time.monotonic() + limit_s
    while not what() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def killed_while_sampling(run_dir: Path, arguments: list[str], seed: int, kills: int) -> list[str]:
    """Kill trainer, server or both, `kills` times in turn, each at a random moment after new answers came."""
    rng = random.Random(seed)
    victims = [("trainer", "server", "everything")[i % 3] for i in range(kills)]
    rng.shuffle(victims)
    killed, process, tag = list[str](), None, 0
    for victim in victims:
        if process is None or process.poll() is not None:
            tag = rng.randrange(1 << 30)
            process = subprocess.Popen(
                command(*arguments, "--resume"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "R1MEGA_TEST": str(tag)},
            )  # fmt: skip
        before = journalled(run_dir)
        wait_for(lambda before=before: journalled(run_dir) > before, process, 900)
        wait_for(lambda: False, process, rng.uniform(0, 4))
        if process.poll() is not None:
            break
        mine = {"trainer": [process.pid], "server": servers_of(tag), "everything": [process.pid, *servers_of(tag)]}
        for pid in mine[victim]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.append(victim)
        if victim != "server":
            process.wait()
            wait_for_end = time.monotonic() + 300
            while servers_of(tag):  # no server outlives its trainer
                assert time.monotonic() < wait_for_end
                time.sleep(0.1)
            process = None
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()
    return killed


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(5400)
def test_killed_while_it_samples_ends_as_the_run_that_replays_its_journal(base: Path, tmp_path: Path):
    """A live server all the time: what was sampled before, between and after the kills is one journal."""
    killed_run, replayed = tmp_path / "killed", tmp_path / "replayed"
    settings = ("rollout.keep_journal=true", "num_steps=16", "evaluation.every_steps=8")
    killed = killed_while_sampling(killed_run, rl(base, killed_run, *settings), seed=3, kills=6)
    assert len(killed) >= 4
    done = r1mega(*rl(base, killed_run, *settings), "--resume")
    assert done.returncode == 0, done.stderr
    uninterrupted = r1mega(*rl(base, with_journal_of(killed_run, replayed), *settings))
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert not (replayed / "logs/vllm.log").exists()
    assert [row for row in rows(killed_run) if row["kind"] != "recovery"] == rows(replayed)
    got, want = (load_file(d / "hf/model.safetensors") for d in (killed_run, replayed))
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    for file in (killed_run / "samples").glob("step_*.jsonl"):
        asked = Counter(json.loads(line)["question"] for line in file.read_text().splitlines())
        assert set(asked.values()) == {4}  # exactly G completions a question


@pytest.mark.slow
@pytest.mark.vllm
def test_two_ranks_that_lose_one_end_and_resume(base: Path, whole: Path, tmp_path: Path):
    run_dir = with_journal_of(whole, tmp_path / "run")
    # One rank's answers: two ranks' weights come to differ by more than rounding, which Adam enlarges step by step.
    layout = ("cluster.trainer.dp=2", "cluster.trainer.threads=1", "mismatch.max_abs=1e-3")
    arguments = rl(base, run_dir, *layout)
    assert killed_again_and_again(run_dir, arguments, seed=2, kills=4, one_rank=True)
    done = r1mega(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    two, one = rows(run_dir), rows(whole)
    assert [(row["kind"], row["step"]) for row in two] == [(row["kind"], row["step"]) for row in one]
    for a, b in zip(two, one, strict=True):
        if a["kind"] == "train":
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.vllm
def test_a_signal_while_sampling_loses_neither_prompts_nor_answers(base: Path, whole: Path, tmp_path: Path):
    """The journal ends within the rollout of step 8; the run is told to leave while it samples the rest."""
    run_dir = with_journal_of(whole, tmp_path / "run")
    for file in (run_dir / "journal").glob("version_*.jsonl"):
        if int(file.stem.removeprefix("version_")) > 8:
            file.unlink()
    partial = run_dir / "journal/version_8.jsonl"
    partial.write_bytes(partial.read_bytes().splitlines(keepends=True)[0])
    process = subprocess.Popen(
        command(*rl(base, run_dir)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not (run_dir / "logs/vllm.log").exists():  # started for the first answer that is missing
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=600)[0].decode()
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "saved at step 8" in printed
    done = r1mega(*rl(base, run_dir), "--resume")
    assert done.returncode == 0, done.stderr
    mine, other = rows(run_dir), rows(whole)
    assert [(row["kind"], row["step"]) for row in mine] == [(row["kind"], row["step"]) for row in other]
    assert [row for row in mine if row["step"] <= 8] == [row for row in other if row["step"] <= 8]
    asked = [
        [json.loads(line)["question"] for line in (d / "samples/step_8.jsonl").read_text().splitlines()]
        for d in (run_dir, whole)
    ]
    assert asked[0] == asked[1]


@pytest.mark.slow
@pytest.mark.vllm
def test_live_sampling_again_is_compared_with_the_journal(base: Path, whole: Path, tmp_path: Path):
    run_dir = with_journal_of(whole, tmp_path / "run")
    done = r1mega(*rl(base, run_dir, "rollout.replay=live", "num_steps=4", "evaluation.every_steps=4"))
    assert done.returncode == 0, done.stderr
    first = next(row for row in rows(run_dir) if row["kind"] == "train")
    assert 0 < first["replay/equal_tokens"] <= first["replay/tokens"]


@pytest.mark.slow
@pytest.mark.vllm
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(base: Path, whole: Path, tmp_path: Path):
    """Within a rollout, at its own layout and at another; metrics, samples and journal follow to where it goes on."""
    run_dir = with_journal_of(whole, tmp_path / "run")
    hf_every = "save.hf_every=7"
    done = r1mega(*rl(base, run_dir, hf_every))
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (run_dir / "hf_steps").iterdir()) == ["step_14", "step_21", "step_7"]
    shutil.rmtree(run_dir / "hf_steps/step_21")  # as if it had not been whole when the run was killed
    torn = run_dir / "checkpoints/step_24/__0_0.distcp"
    torn.write_bytes(torn.read_bytes()[:-1])
    (run_dir / "summary.json").unlink()
    other = shutil.copytree(run_dir, tmp_path / "other")
    two_ranks = ("cluster.trainer.dp=2", "cluster.trainer.threads=1")
    for folder, layout in ((run_dir, ()), (other, two_ranks)):
        done = r1mega(*rl(base, folder, hf_every, *layout), "--resume")
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        assert f"damaged checkpoint, using {folder}/checkpoints/step_21 instead" in said
        assert f"{folder}/checkpoints/step_24/__0_0.distcp" in said
        assert (folder / "checkpoints/step_24.damaged").is_dir() and (folder / "checkpoints/step_24").is_dir()
        assert (folder / "hf_steps/step_21/model.safetensors").is_file()
        assert not (folder / "logs/vllm.log").exists()
    assert rows(run_dir) == rows(whole)
    for a, b in zip(rows(other), rows(whole), strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        if a["kind"] == "train":
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-3)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3, abs=1e-4)
    got, want, relaid = (load_file(d / "hf/model.safetensors") for d in (run_dir, whole, other))
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert max(float((relaid[name] - want[name]).abs().max()) for name in want) < 1e-4
