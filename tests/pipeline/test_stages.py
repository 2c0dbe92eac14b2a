"""The stages through the command line, on real Megatron-core and a real vLLM server: run, interrupt, resume.

The base is pretrained, and the RL run is resumed, as a user starts them; the other commands are forked (warm.py).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import warm
from holding import hold_after_step
from safetensors.torch import load_file

from r1mega.runtime import wandb_parts

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs/tiny/r1_zero"
BASE = [str(TINY / "0_base.toml"), "--set", "num_steps=8", "--set", "documents_per_step=16", "--set",
        "data.num_documents=400", "--set", "optimizer.warmup_steps=2", "--set", "save.every_steps=2"]  # fmt: skip
LIMIT_S = 1500.0
"""Of a wait for what comes within a minute on idle cores; below the time limit of a test, so that more is said."""
TIMING = {
    *("seconds/update", "seconds/rollout", "seconds/logprobs", "seconds/push"),
    *("push/verify_s", "push/verified", "push/verified_loaded"),  # a resumed run proves its first push as well
}


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def interrupt_after_step(run_dir: Path, step: int, arguments: list[str], scratch: Path) -> str:
    """Send Ctrl-C once `step` stands in metrics.jsonl; returns what the run printed. It must leave with 130."""
    held, environment = hold_after_step(step, scratch)
    with (scratch / "printed").open("w+") as output:
        process = warm.start(*arguments, environment=environment, output=output)
        wait_for(held.exists, process, output)
        assert f'"train", "step": {step},' in (run_dir / "metrics.jsonl").read_text()
        process.send_signal(signal.SIGINT)  # which lets it go
        assert process.wait(LIMIT_S) == 130, said(output)
        assert "continue with --resume" in said(output)
        return said(output)


def wait_for(event: Callable[[], bool], process: Any, output: IO[str]) -> None:
    """Until it has come. The process must still run, or have run until then."""
    end = time.monotonic() + LIMIT_S
    while not event():
        assert process.poll() is None or event(), said(output)
        assert time.monotonic() < end
        time.sleep(0.02)


def said(output: IO[str]) -> str:
    output.seek(0)
    return output.read()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a base that was pretrained for eight steps without interruption."""
    run_dir = tmp_path_factory.mktemp("base") / "run"
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    done = warm.run("run", *BASE, "--run-dir", str(run_dir), cold=True, environment=environment)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_pretrain_leaves_the_whole_run_directory(base: Path):
    for name in ("config.json", "run.json", "metrics.jsonl", "summary.json", "trained_on.jsonl",
                 "figures/loss.png", "checkpoints/step_8", "checkpoints/step_6", "hf/model.safetensors",
                 "hf/tokenizer.json"):  # fmt: skip
        assert (base / name).exists(), name
    assert not (base / "checkpoints/step_4").exists()  # keep_last = 2
    (part,) = wandb_parts.parts_of(base)
    assert [row["step"] for row in wandb_parts.rows(part) if row["kind"] == "train"] == list(range(1, 9))
    (run,) = (record.run for record in wandb_parts.records(part) if record.HasField("run"))
    assert (run.run_id, run.job_type) == (json.loads((base / "run.json").read_text())["run"], "pretrain")
    rows = metrics(base)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_pretrain_resumed_after_ctrl_c_equals_the_uninterrupted_run_bit_for_bit(base: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    interrupt_after_step(run_dir, 3, ["run", *BASE, "--run-dir", str(run_dir)], tmp_path)
    assert not (run_dir / "summary.json").exists()
    done = warm.run("run", *BASE, "--run-dir", str(run_dir), "--resume")
    assert done.returncode == 0, done.stderr
    equal(run_dir, base)


def test_a_forked_run_equals_the_one_started_by_itself_bit_for_bit(base: Path, tmp_path: Path):
    done = warm.run("run", *BASE, "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    equal(tmp_path / "run", base)
    ours, theirs = (json.loads((d / "run.json").read_text()) for d in (tmp_path / "run", base))
    assert ours.keys() == theirs.keys()
    assert ours["parts"][0]["command"][:-1] == theirs["parts"][0]["command"][:-1]  # the last is --run-dir's


def equal(one: Path, other: Path) -> None:
    """All metrics but times, and all weights."""
    assert metrics(one) == metrics(other)
    got, want = (load_file(d / "hf/model.safetensors") for d in (one, other))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def rl(base: Path, run_dir: Path, *overrides: str) -> list[str]:
    settings = ("num_steps=4", "rollout.num_prompts=4", "rollout.num_minibatches=2", "objective.group_size=4",
                "objective.reference_refresh_steps=2", "sampling.max_new_tokens=16", "sampling.temperature=0.7",
                "evaluation.questions.0.num=8", "evaluation.every_steps=2", "save.every_steps=2",
                "optimizer.warmup_steps=1", "questions.0.num=64", "objective.constant_groups=keep",
                *overrides)  # fmt: skip
    sets = [part for s in (f"model.path={base / 'hf'}", *settings) for part in ("--set", s)]
    return ["run", str(TINY / "1_rl.toml"), "--run-dir", str(run_dir), *sets]


@pytest.mark.vllm
def test_rl_runs_stops_on_ctrl_c_and_continues(base: Path, tmp_path: Path):
    run_dir = tmp_path / "rl"
    interrupt_after_step(run_dir, 1, rl(base, run_dir), tmp_path)
    (saved,) = [p.name for p in (run_dir / "checkpoints").iterdir()]
    assert saved in ("step_1", "step_2")  # between the mini-batches of a rollout too
    done = warm.run(*rl(base, run_dir), "--resume", cold=True)
    assert done.returncode == 0, done.stderr
    rows = metrics(run_dir)
    train = [row for row in rows if row["kind"] == "train"]
    # Every step once, in order, whatever was interrupted.
    assert [row["step"] for row in train] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [0, 2, 4]
    # The engine's logprobs equal the policy's before and after pushes, at T = 0.7.
    assert 0 < max(row["mismatch/max_untied"] for row in train) < 1e-4
    # A tie comes once in some 100,000 tokens, and these are a thousand; in a question it counts for its G answers.
    assert sum(row["mismatch/answers_after_tie"] for row in train) <= 4
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 4
    assert summary["eval"]["before"]["num_answers"] == summary["eval"]["after"]["num_answers"] == 32
    assert {"trainer", "server"} == set(summary["peak_rss_gib"])
    for name in ("hf/config.json", "samples/step_0.jsonl", "samples/step_2.jsonl", "figures/pass_at_1.png",
                 "figures/mismatch.png", "logs/vllm.log"):  # fmt: skip
        assert (run_dir / name).exists(), name


@pytest.mark.vllm
def test_a_finished_model_is_evaluated_without_a_trainer_and_killed_on_its_way(base: Path, tmp_path: Path):
    run_dir, journal = tmp_path / "run", tmp_path / "run/journal/version_0.jsonl"
    settings = ("evaluation.questions.0.num=60", "sampling.max_new_tokens=48", f"model.path={base / 'hf'}",
                "sampling.top_p=0.95", "cluster.rollout.max_num_seqs=4")  # fmt: skip
    sets = [part for s in settings for part in ("--set", s)]
    arguments = ["run", str(TINY / "2_eval.toml"), "--run-dir", str(run_dir), *sets]
    with (tmp_path / "printed").open("w+") as output:
        process = warm.start(*arguments, output=output)
        wait_for(lambda: journal.is_file() and journal.read_bytes().count(b"\n") > 1, process, output)
        process.kill()
        process.wait(LIMIT_S)
    answered = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    assert 1 < len(answered) < 120 and not (run_dir / "summary.json").exists()
    done = warm.run(*arguments, "--resume")
    assert done.returncode == 0, done.stderr
    # What was answered stands there as it was, and each question was answered once in each way.
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert rows[: len(answered)] == answered
    asked = [(row["prompt"], json.dumps(row["sampling"])) for row in rows]
    assert len(set(asked)) == len(asked) == 120
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["replayed_answers"] == sum(row["n"] for row in answered)
    assert (summary["eval"]["after"]["num_questions"], summary["eval"]["after"]["num_answers"]) == (60, 240)
    code = "import sys, r1mega.stages.evaluate; print([m for m in sys.modules if m.startswith('megatron')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


def test_faults_are_one_message_and_nothing_half_written(base: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"task": "chain_sum", "question": "1 + 1 =", "truth": "2"}\n{"task": "chain_sum", \n')
    own = f"questions=[{{kind='jsonl',path='{rows}',verifier_column='task'}}]"
    (tmp_path / "file").write_text("")
    with_listener = subprocess.Popen(
        [sys.executable, "-c", "import socket,time;s=socket.create_server(('127.0.0.1',0));"
         "print(s.getsockname()[1],flush=True);time.sleep(6000)"], stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert with_listener.stdout is not None
        port = with_listener.stdout.readline().strip()
        cases = {
            f"{rows}, line 2": rl(base, tmp_path / "a", own),
            f"port {port} of 127.0.0.1": rl(base, tmp_path / "b", f"cluster.rollout.port={port}"),
            "cannot be used as a run directory": rl(base, tmp_path / "file" / "c"),
            "is not there yet": rl(tmp_path / "nowhere", tmp_path / "d"),
            "did you mean 'group_size'": rl(base, tmp_path / "e", "objective.grup_size=3"),
            "exceed batch.chunk_tokens": rl(base, tmp_path / "f", "sampling.max_new_tokens=250"),
            "max_position_embeddings": rl(base, tmp_path / "g", "sampling.max_new_tokens=100000"),
            "has no parameter": rl(base, tmp_path / "h", "questions.0.params={terms=3}"),
            "; it learnt from": ["run", *BASE, "--run-dir", str(tmp_path / "i"), "--set", "optimizer.lr=1e30"],
        }
        for message, arguments in cases.items():
            done = warm.run(*arguments)
            assert done.returncode == 2, done.stderr
            assert message in done.stderr
            assert "Traceback" not in done.stderr
            run_dir = Path(arguments[arguments.index("--run-dir") + 1])
            assert not list(run_dir.glob("checkpoints/step_*")) and not (run_dir / "summary.json").exists()
    finally:
        with_listener.kill()
        with_listener.wait()
