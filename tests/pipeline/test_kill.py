"""SIGKILL at random moments: a run that replays its journal ends with the same losses and weights, bit for bit.

Each series of kills falls on one run and is drawn from a seed; which seeds are tried rotates with the commit. The run
that they are held against, and one of the killed ones, are started as a user starts them; the others are forked
(warm.py).
"""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import rotation
import torch
import warm
from safetensors.torch import load_file
from tagged import ranks_of, servers_of
from test_stages import LIMIT_S, TIMING, TINY, said, wait_for
from watched import further, more_answers, num_lines, step_s, until

NUM_KILLS = 8
AT_RANDOM = rotation.rows("kills of a run that replays its journal", rotating=range(1, 4), take=1)
WHILE_SAMPLING = rotation.rows("kills of a run that samples", rotating=range(4, 6), take=1)
OF_ONE_RANK = rotation.rows("kills of one rank of two", rotating=range(6, 8), take=1)
MAX_NEW_TOKENS = 40
LONGER = 8
"""The step at which answers may be longer and are sampled less warm: wherever a run is killed, it is on one side."""
SETTINGS = (
    "num_steps=16", "rollout.num_prompts=4", "rollout.num_minibatches=4", "objective.group_size=4",
    "objective.reference_refresh_steps=8",
    f"sampling.max_new_tokens=[{{value={MAX_NEW_TOKENS - 8}}},{{from_step={LONGER},value={MAX_NEW_TOKENS}}}]",
    f"sampling.temperature=[{{value=1.0}},{{from_step={LONGER},value=0.9}}]",
    "evaluation.questions.0.num=6", "evaluation.every_steps=8", "save.every_steps=3", "optimizer.warmup_steps=1",
    "questions.0.num=40", "objective.constant_groups=keep", "wandb.mode=disabled",
)  # fmt: skip
LAUNCH_TIME = TIMING | {"rollout/replayed_requests"}


# Enough for answers in the format to come up: without rewards that differ, only rounding would move the weights.
BASE = [str(TINY / "0_base.toml"), "--set", "num_steps=120", "--set", "data.num_documents=8000", "--set",
        "optimizer.warmup_steps=20", "--set", "save.every_steps=120", "--set", "wandb.mode=disabled"]  # fmt: skip


def rl(base: Path, run_dir: Path, *overrides: str) -> list[str]:
    sets = [part for s in (f"model.path={base / 'hf'}", *SETTINGS, *overrides) for part in ("--set", s)]
    return ["run", str(TINY / "1_rl.toml"), "--run-dir", str(run_dir), *sets]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("base") / "run"
    done = warm.run("run", *BASE, "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run with a live server."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    done = warm.run(*rl(base, run_dir, "rollout.keep_journal=true", "rollout.server_length=restart"), cold=True)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "logs/vllm.log").is_file()
    (longer,) = (row for row in read(run_dir) if row["kind"] == "lengthened")
    assert (longer["step"], longer["max_model_len"] - longer["before"]) == (LONGER, 8)
    learnt = [row["grad_norm"] for row in rows(run_dir) if row["kind"] == "train"]
    assert sum(norm > 1e-2 for norm in learnt) > len(learnt) // 2
    return run_dir


def read(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """But for times, and for what became of a server on the way."""
    found = [row for row in read(run_dir) if row["kind"] not in ("recovery", "lengthened")]
    return [{k: v for k, v in row.items() if k not in LAUNCH_TIME} for row in found]


def with_journal_of(whole: Path, run_dir: Path) -> Path:
    run_dir.mkdir()
    shutil.copytree(whole / "journal", run_dir / "journal")
    return run_dir


def start(tag: int, arguments: list[str], *, cold: bool = False) -> Any:
    """A run whose ranks and servers can be told by the tag in their environment."""
    return warm.start(*arguments, "--resume", environment={**os.environ, "R1MEGA_TEST": str(tag)}, cold=cold)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", AT_RANDOM)
def test_killed_at_random_moments_ends_as_the_uninterrupted_run(base: Path, whole: Path, tmp_path: Path, seed: int):
    """Six die within two steps' time after a new line of metrics, two at any moment of their start; one is cold."""
    rng = random.Random(seed)
    run_dir = with_journal_of(whole, tmp_path / "run")
    metrics, arguments = run_dir / "metrics.jsonl", rl(base, run_dir)
    early = [*[True] * 2, *[False] * (NUM_KILLS - 2)]
    rng.shuffle(early)
    cold = rng.randrange(NUM_KILLS)
    killed, kept = Counter[bool](), 0
    for kill, at_start in enumerate(early):
        before = num_lines(metrics)
        process = start(rng.randrange(1 << 30), arguments, cold=kill == cold)
        if at_start:
            further(process, rng.uniform(0, 12 if kill == cold else 4), metrics, before + 1)
        elif until(lambda before=before: num_lines(metrics) > before, process):
            further(process, rng.uniform(0, 2 * step_s(metrics)), metrics, before + 3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait(LIMIT_S) == 0:  # done, after fewer kills
            break
        assert process.returncode == -signal.SIGKILL
        killed[at_start] += 1
        # Where the first save has not come yet, the next part begins anew, and is the first that is counted.
        kept += not at_start and any((run_dir / "checkpoints").glob("step_*[0-9]"))
    assert killed[False] >= NUM_KILLS // 2
    done = warm.run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((run_dir / "run.json").read_text())["parts"]) > kept
    assert rows(run_dir) == rows(whole)
    got, want = (load_file(d / "hf/model.safetensors") for d in (run_dir, whole))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert not (run_dir / "logs/vllm.log").exists()  # all of it came from the journal


def killed_while_sampling(run_dir: Path, arguments: list[str], seed: int) -> list[str]:
    """Kill trainer, a server and all, in an order drawn from the seed, each at a random moment after new answers."""
    rng = random.Random(seed)
    victims = rng.sample(("trainer", "server", "everything"), k=3)
    killed, process, tag = list[str](), None, 0
    for victim in victims:
        if process is None:
            tag = rng.randrange(1 << 30)
            process = start(tag, arguments)
        more_answers(run_dir, process)
        time.sleep(rng.uniform(0, 2 * step_s(run_dir / "metrics.jsonl")))
        servers = servers_of(tag)
        mine = {"trainer": [process.pid], "server": servers[:1], "everything": [process.pid, *servers]}
        assert victim == "trainer" or len(mine[victim]) > (victim == "everything")
        for pid in mine[victim]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.append(victim)
        if victim != "server":
            assert process.wait(LIMIT_S) == -signal.SIGKILL
            until(lambda tag=tag: not servers_of(tag))  # no server outlives its trainer
            process = None
    if process is not None:
        more_answers(run_dir, process)
        process.kill()
        process.wait(LIMIT_S)
        until(lambda: not servers_of(tag))
    return killed


def answered(run_dir: Path) -> list[dict[Any, list[list[int]]]]:
    """For each version of the weights, in their order: request -> token ids of its answers."""
    files = sorted((run_dir / "journal").glob("version_*.jsonl"), key=lambda f: int(f.stem.removeprefix("version_")))
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [
        {(row["prompt"], row["seed"], row["n"]): [a["ids"] for a in row["answers"]] for row in of} for of in lines
    ]


@pytest.mark.slow
@pytest.mark.vllm
def test_two_servers_teach_what_one_does(base: Path, whole: Path, tmp_path: Path):
    """Both are pushed to, and both are started anew for longer answers."""
    run_dir, settings = tmp_path / "run", ("rollout.keep_journal=true", "rollout.server_length=restart")
    done = warm.run(*rl(base, run_dir, *settings, "cluster.rollout.servers=2"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (run_dir / "logs").glob("vllm*")) == ["vllm-0.log", "vllm-1.log"]
    (longer,) = (row for row in read(run_dir) if row["kind"] == "lengthened")
    assert (longer["step"], longer["max_model_len"] - longer["before"]) == (LONGER, 8)
    two, one = answered(run_dir), answered(whole)
    apart = next((i for i, (a, b) in enumerate(zip(two, one, strict=True)) if a != b), None)
    if apart is not None:  # two tokens, or two experts, that tie to within rounding: in batches of another size too
        assert sum(a != b for key in one[apart] for a, b in zip(two[apart][key], one[apart][key], strict=True)) == 1
        return
    of_engine = ("mismatch/", "replay/")
    for a, b in zip(rows(run_dir), rows(whole), strict=True):
        assert {k: v for k, v in a.items() if not k.startswith(of_engine)} == {
            k: v for k, v in b.items() if not k.startswith(of_engine)
        }
    got, want = (load_file(d / "hf/model.safetensors") for d in (run_dir, whole))
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", WHILE_SAMPLING)
def test_killed_while_it_samples_ends_as_the_run_that_replays_its_journal(base: Path, tmp_path: Path, seed: int):
    """Live servers all the time: what was sampled before, between and after the kills is one journal."""
    killed_run, replayed = tmp_path / "killed", tmp_path / "replayed"
    # One, laid out for the longest answers from the start; or two, started anew for longer ones.
    length, number = (("largest", 1), ("restart", 2))[seed % 2]
    settings = ("rollout.keep_journal=true", f"rollout.server_length={length}", f"cluster.rollout.servers={number}")
    killed = killed_while_sampling(killed_run, rl(base, killed_run, *settings), seed)
    assert sorted(killed) == ["everything", "server", "trainer"]
    done = warm.run(*rl(base, killed_run, *settings), "--resume")
    assert done.returncode == 0, done.stderr
    uninterrupted = warm.run(*rl(base, with_journal_of(killed_run, replayed), *settings))
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    assert not list((replayed / "logs").glob("vllm*"))
    assert rows(killed_run) == rows(replayed)
    got, want = (load_file(d / "hf/model.safetensors") for d in (killed_run, replayed))
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    for file in (killed_run / "samples").glob("step_*.jsonl"):
        asked = Counter(json.loads(line)["question"] for line in file.read_text().splitlines())
        assert set(asked.values()) == {4}  # exactly G completions a question


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", OF_ONE_RANK)
def test_two_ranks_that_lose_one_end_and_resume(base: Path, whole: Path, tmp_path: Path, seed: int):
    """Each rank is lost once after a new line of metrics, in an order drawn from the seed; and all at their start."""
    rng = random.Random(seed)
    run_dir = with_journal_of(whole, tmp_path / "run")
    # One rank's answers: two ranks' weights come to differ by more than rounding, which Adam enlarges step by step.
    layout = ("cluster.trainer.dp=2", "cluster.trainer.threads=1", "mismatch.max_abs=1e-3")
    metrics, arguments = run_dir / "metrics.jsonl", rl(base, run_dir, *layout)
    for victim in rng.sample((0, 1, "all"), k=3):
        tag, before = rng.randrange(1 << 30), num_lines(metrics)
        process = start(tag, arguments, cold=True)  # its launcher imports nothing; it starts the ranks
        if victim == "all":
            further(process, rng.uniform(0, 15), metrics, before + 1)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(LIMIT_S)
        else:
            written = until(lambda before=before: num_lines(metrics) > before, process)
            assert written, f"rank {victim}: ended with {process.returncode}"
            further(process, rng.uniform(0, 2 * step_s(metrics)), metrics, before + 3)
            os.kill(ranks_of(tag)[victim], signal.SIGKILL)
            assert process.wait(LIMIT_S) == 128 + signal.SIGKILL
        until(lambda tag=tag: not ranks_of(tag))
    done = warm.run(*arguments, "--resume", cold=True)
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
    with (tmp_path / "printed").open("w+") as output:
        process = warm.start(*rl(base, run_dir), output=output)
        wait_for((run_dir / "logs/vllm.log").exists, process, output)  # started for the first answer that is missing
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 128 + signal.SIGTERM, said(output)
        assert "saved at step 8" in said(output)
    done = warm.run(*rl(base, run_dir), "--resume")
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
    done = warm.run(*rl(base, run_dir, "rollout.replay=live", "num_steps=4", "evaluation.every_steps=4"))
    assert done.returncode == 0, done.stderr
    first = next(row for row in rows(run_dir) if row["kind"] == "train")
    # The same seeds and weights, in other batches: at most one answer meets two tokens that tie to within rounding.
    assert first["replay/tokens"] - MAX_NEW_TOKENS <= first["replay/equal_tokens"] <= first["replay/tokens"]


@pytest.mark.slow
@pytest.mark.vllm
def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(base: Path, whole: Path, tmp_path: Path):
    """Within a rollout, at its own layout and at another; metrics, samples and journal follow to where it goes on."""
    run_dir = with_journal_of(whole, tmp_path / "run")
    hf_every = "save.hf_every=5"
    done = warm.run(*rl(base, run_dir, hf_every))
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (run_dir / "hf_steps").iterdir()) == ["step_10", "step_15", "step_5"]
    shutil.rmtree(run_dir / "hf_steps/step_15")  # as if it had not been whole when the run was killed
    torn = run_dir / "checkpoints/step_16/__0_0.distcp"
    torn.write_bytes(torn.read_bytes()[:-1])
    (run_dir / "summary.json").unlink()
    other = shutil.copytree(run_dir, tmp_path / "other")
    two_ranks = ("cluster.trainer.dp=2", "cluster.trainer.threads=1")
    for folder, layout in ((run_dir, ()), (other, two_ranks)):
        done = warm.run(*rl(base, folder, hf_every, *layout), "--resume", cold=bool(layout))
        assert done.returncode == 0, done.stderr
        message = done.stdout + done.stderr
        assert f"damaged checkpoint, using {folder}/checkpoints/step_15 instead" in message
        assert f"{folder}/checkpoints/step_16/__0_0.distcp" in message
        assert (folder / "checkpoints/step_16.damaged").is_dir() and (folder / "checkpoints/step_16").is_dir()
        assert (folder / "hf_steps/step_15/model.safetensors").is_file()
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
