"""configs/micro, the chain from base to students: run undisturbed, and a few of its stages killed at random moments.

A killed chain begins with copies of what the undisturbed one has made of earlier stages, in the same folder, so that
the rows it writes name the same paths. Again and again one of its processes, or all at once, get SIGKILL at a moment
that is drawn: in its start, in a stage, or between two; and it is continued. At the end it must have left what the
undisturbed chain has left, byte for byte. Which stages are killed rotates with the commit.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rotation
import warm
from tagged import parts_of

from r1mega.pipeline.graph import load_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not os.environ.get("R1MEGA_SOAK"), reason="takes too long beside all other tests: test-soak"),
]
ROOT = Path(__file__).parents[2]
MICRO = ROOT / "configs/micro/pipeline.toml"
CHAIN = load_pipeline(MICRO)
NAMES = [node.name for node in CHAIN.stages]
WINDOWS = [NAMES[i : i + 3] for i in range(0, len(NAMES), 3)]
NUM_KILLS = 4
PARTS = rotation.rows("kills of a chain", rotating=range(len(WINDOWS)), take=1)
"""Which stages are killed, each part `NUM_KILLS` times."""
BY_SECONDS = {"qwen_rl"}
"""As many seconds as another stage took, whatever these were: as many steps as fit into them."""
ROWS = ("rows.jsonl", "originals.jsonl", "conversations.jsonl", "pairs.jsonl", "labelled.jsonl")
LIMIT_S = 1500.0
ENDS_S = 300.0
"""Limit for the end of what a killed chain has left: some seconds on idle cores."""


class Runs:
    """Starts the chain, always in one folder."""

    def __init__(self, folder: Path, judge: str) -> None:
        self.here, self.judge = folder / "run", judge

    def command(self, *options: str) -> list[str]:
        url = [f"{name}:judge.endpoint.url={self.judge}" for name in ("helpful_pairs", "harmless_labels")]
        sets = [x for s in (*url, "cluster.trainer.threads=1", "wandb.mode=disabled") for x in ("--set", s)]
        return ["pipeline", str(MICRO), "--run-dir", str(self.here), *sets, *options]

    @contextlib.contextmanager
    def started(self, tag: int, *options: str) -> Iterator[Any]:
        """A chain whose processes can be told by the tag in their environment."""
        with (self.here.parent / "printed").open("w+") as output:
            environment = {**os.environ, "R1MEGA_TEST": str(tag)}
            process = warm.start(*self.command(*options), environment=environment, output=output, cold=True)
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def printed(self) -> str:
        return (self.here.parent / "printed").read_text()

    def run(self, *options: str) -> Any:
        return warm.run(*self.command(*options), cold=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    command = [sys.executable, str(ROOT / "tools/rule_judge.py"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as judge:
        assert judge.stdout is not None
        try:
            yield Runs(tmp_path_factory.mktemp("micro"), judge.stdout.readline().split()[-1])
        finally:
            judge.terminate()


@pytest.fixture(scope="module")
def whole(runs: Runs) -> tuple[Path, dict[str, float]]:
    """The undisturbed chain, moved out of the way when it was done; and the seconds that each stage took."""
    began = dict[str, float]()
    with runs.started(0) as process:
        while process.poll() is None:
            for name in NAMES:
                if name not in began and (runs.here / name).is_dir():
                    began[name] = time.monotonic()
            time.sleep(0.1)
        assert process.returncode == 0, runs.printed()
    ends = [*list(began.values())[1:], time.monotonic()]
    assert list(began) == NAMES
    moved = runs.here.with_name("whole")
    runs.here.rename(moved)
    return moved, {name: end - began[name] for name, end in zip(NAMES, ends, strict=True)}


def test_a_dry_run_says_that_all_is_done_though_it_was_moved(whole: tuple[Path, dict[str, float]], runs: Runs):
    asked = [str(whole[0]) if part == str(runs.here) else part for part in runs.command("--resume", "--dry-run")]
    done = warm.run(*asked, cold=True)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said == dict.fromkeys(NAMES, "done")


def test_every_row_that_a_student_learnt_is_traced_to_its_origin(whole: tuple[Path, dict[str, float]]):
    for student in ("qwen", "llama", "dev3"):
        done = warm.run("trace", "--all", str(whole[0] / student), "--json", cold=True)
        assert done.returncode == 0, done.stdout + done.stderr
        counts = json.loads(done.stdout)
        assert counts["resolved"] == counts["rows"] == counts["sampled"] > 0, counts
        assert not counts["faults"]


def test_the_summary_has_a_row_for_every_model_and_a_verdict_on_every_relation(whole: tuple[Path, dict[str, float]]):
    summary = json.loads((whole[0] / "summary.json").read_text())
    assert CHAIN.table is not None and list(summary["stages"]) == NAMES
    assert summary["questions"]["overlap"] == 0 < summary["questions"]["held_out"]
    rows = {row["model"]: row for row in summary["table"]["rows"]}
    assert list(rows) == list(CHAIN.table.rows)
    assert [one["claim"] for one in summary["relations"]] == [one.claim for one in CHAIN.relations]


@pytest.mark.parametrize("number", PARTS, ids=lambda number: f"{WINDOWS[number][0]}-{WINDOWS[number][-1]}")
def test_a_chain_killed_at_random_moments_and_continued_leaves_what_the_undisturbed_one_has_left(
    whole: tuple[Path, dict[str, float]], runs: Runs, number: int
):
    undisturbed, seconds = whole
    window, rng, num_killed = WINDOWS[number], random.Random(number), 0
    shutil.rmtree(runs.here, ignore_errors=True)
    for name in NAMES[: NAMES.index(window[0])]:
        shutil.copytree(undisturbed / name, runs.here / name, symlinks=True)
    options = ("--resume", "--until", window[-1])
    longest = max(seconds[name] for name in window)
    for kill in range(NUM_KILLS):
        tag = rng.randrange(1 << 30)
        with runs.started(tag, *options) as process:
            if kill != number % NUM_KILLS:  # one may fall on the chain's own start
                wait_until(lambda tag=tag: "stage" in parts_of(tag), process)
            end = time.monotonic() + rng.uniform(0, 1.2 * longest)
            wait_until(lambda end=end: time.monotonic() > end, process)
            if process.poll() is not None:
                break
            num_killed += 1
            kill_some(process, tag, rng, runs)
        end = time.monotonic() + ENDS_S
        while left := parts_of(tag):
            assert time.monotonic() < end, f"outlives its chain: {left}"
            time.sleep(0.1)
    done = runs.run(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert num_killed >= 2
    for name in window:
        if name not in BY_SECONDS:
            expected = left_by(undisturbed / name)
            assert expected and left_by(runs.here / name) == expected, name


def kill_some(process: Any, tag: int, rng: random.Random, runs: Runs) -> None:
    """Kill one of a chain's processes, or all, and wait for its end."""
    parts = {"chain": [process.pid], **parts_of(tag)}
    victim = rng.choice([*sorted(parts), "all"])
    killed = [pid for name, pids in parts.items() if victim in (name, "all") for pid in pids]
    told = [line for line in runs.printed().splitlines() if line.startswith("== ")]
    print(f"killed: {victim} of {sorted(parts)}, in {told[-1] if told else 'the start'}")
    for pid in killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code = process.wait(LIMIT_S)
    # 1: a stage crashed; 0: the chain went on to its end without what was killed, or had it anew.
    assert code == -signal.SIGKILL if process.pid in killed else code in (0, 1), runs.printed()


def wait_until(event: Any, process: Any) -> None:
    """Until it has come, or the process has ended."""
    end = time.monotonic() + LIMIT_S
    while not event() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)


def left_by(folder: Path) -> dict[str, Any]:
    """What a stage has left, but for times: rows, metrics, weights and scores, each as far as it has them."""
    found: dict[str, Any] = {}
    for name in ROWS:
        if (folder / name).exists():
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if (folder / "hf").is_dir():
        found["weights"] = hashlib.sha256((folder / "hf/model.safetensors").read_bytes()).hexdigest()
        found["metrics"] = metrics_of(folder / "metrics.jsonl")
    for file in sorted(folder.glob("*/evaluation.json")):
        if file.parent.name not in BY_SECONDS:
            results = (file.parent / "results.jsonl").read_bytes()
            found[file.parent.name] = hashlib.sha256(results).hexdigest()
    return found


def metrics_of(file: Path) -> list[dict[str, Any]]:
    """But for times, and for what became of a server on the way."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [row for row in rows if row["kind"] not in ("recovery", "lengthened")]
    timed = ("seconds/", "push/", "rollout/replayed")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in kept]
