"""The slurm launcher on a real Slurm: a chain of real stages that need no model, whose second one fails."""

import json
import subprocess
from pathlib import Path

import pytest
from emulated_slurm import Slurm
from typer.testing import CliRunner

from r1mega.cli import app
from r1mega.launchers.job import Phase
from r1mega.launchers.record import LaunchRecord
from r1mega.launchers.tree import lines, states

pytestmark = pytest.mark.slow

FIRST = 'stage = "mixture"\n[[data]]\nfiles = ["rows.jsonl"]\ndomain = "math"\n'
NEXT = 'stage = "mixture"\n[[data]]\nfiles = ["nothing.jsonl"]\n'
CHAIN = """
[[stages]]
name = "one"
config = "first.toml"
[[stages]]
name = "two"
config = "next.toml"
reads = { "data.0.files" = ["one/conversations.jsonl"] }
set = { "data.0.num" = 50 }
[[stages]]
name = "three"
config = "next.toml"
reads = { "data.0.files" = ["two/conversations.jsonl"] }
[[stages]]
name = "apart"
config = "first.toml"
set = { "seed" = 5 }
"""
NUM_ROWS = 12
CHAIN_OF = ("chain.toml", "--cluster", "laptop", "--run-dir", "runs/chain")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, make_checkout) -> Path:
    folder = make_checkout(tmp_path_factory.mktemp("launched") / "checkout")
    for name, text in {"first": FIRST, "next": NEXT, "chain": CHAIN}.items():
        (folder / f"{name}.toml").write_text(text)
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"What is {i} + {i}?"},
                {"role": "assistant", "content": f"{2 * i}"},
            ]
        }
        for i in range(NUM_ROWS)
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def here(slurm: Slurm, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own process is in the checkout, and Slurm's commands find the cluster."""
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.chdir(checkout)
    return checkout


def r1mega(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def wait(slurm: Slurm, folder: Path) -> LaunchRecord:
    """What was launched, once all of it is over."""
    record = LaunchRecord.read(folder)
    assert record is not None
    for job in record.latest().values():
        if job is not None:
            slurm.wait_for_state(job.id, *OVER, timeout_s=300)
    return record


def test_a_chain_whose_second_stage_fails_goes_on_after_the_mend(
    slurm: Slurm, here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    folder = here / "runs/chain"
    line = ("slurm/pipeline.sh", *CHAIN_OF, "--sbatch", "--time=10")
    done = subprocess.run(line, env=slurm.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = dict(zip(("one", "two", "three", "apart"), _ids(folder), strict=True))
    record = wait(slurm, folder)
    found = states(record)
    told = {name: (state.phase, state.reason, state.exit_code) for name, (_, state) in found.items()}
    assert told == {
        "one": (Phase.DONE, "", 0),
        "two": (Phase.FAILED, "exit code 2", 2),
        "three": (Phase.CANCELLED, "two has failed, and this needs it", None),
        "apart": (Phase.DONE, "", 0),
    }, _output(folder, ids)
    assert lines(record, found) == [
        f"├─ one          done       job {ids['one']}",
        f"│  └─ two       failed     job {ids['two']}; exit code 2",
        f"│     └─ three  cancelled  job {ids['three']}; two has failed, and this needs it",
        f"└─ apart        done       job {ids['apart']}",
    ]
    # Where Slurm has forgotten its jobs, or is not there, the lines that the scripts have left tell the same.
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        left = {name: state for name, (_, state) in states(record).items()}
    assert [left[name].phase for name in ids] == [Phase.DONE, Phase.FAILED, Phase.UNCLEAR, Phase.DONE]
    assert left["two"].exit_code == 2 and "squeue: No such file or directory" in left["three"].reason

    (here / "chain.toml").write_text(CHAIN.replace("= 50", f"= {NUM_ROWS}"))
    r1mega("launch", *CHAIN_OF)
    record = wait(slurm, folder)
    assert [launch.done for launch in record.launches] == [(), ("one", "apart")]
    assert [state.phase for _, state in states(record).values()] == [Phase.DONE] * 4, _output(folder, ids)
    plan = r1mega("pipeline", *CHAIN_OF, "--dry-run")
    assert [line.split() for line in plan.splitlines()] == [[name, "done"] for name in ids]
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["stages"]) == list(ids) and (folder / "report.html").is_file()
    assert (folder / "three/conversations.jsonl").read_text().count("\n") == NUM_ROWS


def test_a_stage_that_waits_is_cancelled(here: Path):
    line = ("launch", "first.toml", "--run-dir", "runs/alone", "--sbatch", "--hold")
    shown = r1mega(*line)
    (id,) = _ids(here / "runs/alone")
    assert f"└─ alone  waiting    job {id}; JobHeldUser" in shown
    twice = CliRunner().invoke(app, [*line, "--set", "seed=3"])
    assert f"job {id} of alone is not over, and was launched with other arguments" in str(twice.exception)
    told = f"cancelled: alone\nruns/alone: first.toml\n└─ alone  cancelled  job {id}; it was cancelled"
    assert told in r1mega("jobs", "runs/alone", "--cancel")


def _ids(folder: Path) -> list[str]:
    record = LaunchRecord.read(folder)
    assert record is not None
    return [job.id for job in record.latest().values() if job is not None]


def _output(folder: Path, ids: dict[str, str]) -> str:
    files = [folder / f".jobs/{name}-{id}.out" for name, id in ids.items()]
    return "\n".join(f"{file.name}:\n{file.read_text()}" for file in files if file.exists())
