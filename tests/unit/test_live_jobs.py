"""What a launched chain waits for: asked of a Slurm that answers, that is slow, that is not there."""

import os
import stat
from pathlib import Path

import pytest
from watched_runs import NOW, event, train_row, write_stage

from r1mega.launchers.job import StageJob, Submitted
from r1mega.launchers.record import LaunchRecord, Submission
from r1mega.report.live import jobs as asking
from r1mega.report.live.chain import RunFacts, RunReader
from r1mega.report.live.life import RunState

SQUEUE = """#!/bin/sh
{before}
cat <<'END'
{lines}
END
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """base was done before; r1_zero is job 11, dev1 waits for it as job 12, eval for both as job 13."""
    run = tmp_path / "chain"
    write_stage(run / "base", kind="pretrain", done=True)
    launch(run, {"r1_zero": "11", "dev1": "12", "eval": "13"}, ("base", "r1_zero", "dev1", "eval"), done=("base",))
    (run / ".jobs").mkdir()
    (run / ".jobs/r1_zero-11.out").write_text("WARNING: a node was left out\n")
    return run


def launch(run: Path, jobs: dict[str, str], stages: tuple[str, ...], done: tuple[str, ...] = ()) -> None:
    made, before = [], ()
    for name, number in jobs.items():
        folder = run if len(stages) == 1 else run / name
        job = StageJob(name, "slurm/chain_stage.sh", (), (), folder, run / ".jobs", after=before)
        made.append(Submitted(job, "slurm", number))
        before = (*before, name)
    run.mkdir(parents=True, exist_ok=True)
    record = LaunchRecord(run.resolve(), "configs/r1/pipeline.toml", str(run.parent), (), ())
    record.with_launch(Submission("2026-09-21T12:00:00+00:00", "slurm", (), done, tuple(made)), stages).write()


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sets what Slurm answers: lines "JOB|STATE|REASON|code|restarts|"."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def answers(*lines: str, before: str = "") -> None:
        said = {"squeue": {"before": before, "lines": "\n".join(lines)}, "sacct": {"before": "", "lines": ""}}
        for name in said:
            file = folder / name
            file.write_text(SQUEUE.format(**said[name]))
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    answers()
    return answers


def look(run: Path, now: float = NOW) -> RunFacts:
    return RunReader(run).read(now)


def states(facts: RunFacts) -> dict[str, RunState]:
    return {stage.name: stage.life.state for stage in facts.stages}


def test_a_chain_in_the_queue_waits_and_says_for_what(chain: Path, squeue):
    squeue("11|PENDING|Resources|0|0|", "12|PENDING|Dependency|0|0|", "13|PENDING|Dependency|0|0|")
    facts = look(chain)
    assert states(facts) == {
        "base": RunState.DONE, "r1_zero": RunState.WAITING, "dev1": RunState.WAITING, "eval": RunState.WAITING,
    }  # fmt: skip
    assert facts.waits[0] == "r1_zero: job 11 (Resources) waits in its queue"
    assert facts.life.state is RunState.WAITING and "r1_zero: job 11" in facts.life.why
    assert [log.path.name for log in facts.logs] == ["r1_zero-11.out"]
    assert [line.text for line in facts.said] == ["WARNING: a node was left out"]


def test_a_job_that_runs_before_its_stage_has_written_anything(chain: Path, squeue):
    squeue("11|RUNNING|None|0|0|", "12|PENDING|Dependency|0|0|", "13|PENDING|Dependency|0|0|")
    facts = look(chain)
    assert facts.life.state is RunState.RUNNING and facts.life.why == "r1_zero: job 11 runs"
    assert facts.current is not None and facts.current.name == "r1_zero"


def test_a_requeued_job_waits_whatever_its_run_said_last(chain: Path, squeue):
    write_stage(chain / "r1_zero", [train_row(3)], events=[event("watchdog", NOW - 99, "rank 3 is missing")])
    assert states(look(chain))["r1_zero"] is RunState.FAILED
    squeue("11|PENDING|BeginTime|0|1|", "12|PENDING|Dependency|0|0|", "13|PENDING|Dependency|0|0|")
    facts = look(chain)
    assert states(facts)["r1_zero"] is RunState.WAITING and "start 2" in facts.stages[1].life.why


def test_a_chain_whose_stage_failed_says_why_the_later_ones_were_cancelled(chain: Path, squeue):
    squeue("11|OUT_OF_MEMORY|None|0:125|0|", "12|CANCELLED|None|0|0|", "13|CANCELLED|None|0|0|")
    facts = look(chain)
    assert facts.life.state is RunState.FAILED
    assert facts.life.why.startswith("r1_zero: job 11 (it took more memory than its nodes gave it")
    assert "r1_zero has failed" in facts.stages[2].life.why and "needs it" in facts.stages[2].life.why


def test_a_stage_by_itself_is_no_chain(tmp_path: Path, squeue):
    launch(tmp_path / "rl", {"rl": "7"}, ("rl",))
    squeue("7|PENDING|Priority|0|0|")
    facts = look(tmp_path / "rl")
    assert not facts.chain and facts.life.state is RunState.WAITING
    assert facts.waits == ["job 7 (Priority) waits in its queue"]


def test_a_slurm_that_does_not_answer_holds_nobody_up(chain: Path, squeue, tmp_path: Path, monkeypatch):
    """It answers when the test lets it; until then the run is told as it was."""
    monkeypatch.setattr(asking, "PATIENCE_S", 0.1)
    os.mkfifo(tmp_path / "gate")
    squeue("11|PENDING|Resources|0|0|", before=f"timeout 20 cat {tmp_path}/gate")
    reader = RunReader(chain)
    facts = reader.read(NOW)
    thread = reader._jobs._answer
    assert thread is not None and thread.is_alive() and "has not answered yet" in facts.faults[0]
    assert facts.waits == []
    (tmp_path / "gate").write_text("")
    thread.join()
    facts = reader.read(NOW)
    assert facts.faults == [] and facts.waits == ["r1_zero: job 11 (Resources) waits in its queue"]


def test_slurm_is_not_asked_at_every_look(chain: Path, squeue, tmp_path: Path):
    squeue("11|RUNNING|None|0|0|", before=f"echo x >> {tmp_path}/asked")
    reader = RunReader(chain)
    for _ in range(3):
        reader.read(NOW)
    assert (tmp_path / "asked").read_text().count("x") == 1
    (chain / "summary.json").write_text('{"stages": {"base": {}}}')
    RunReader(chain).read(NOW)  # done: nobody need be asked
    assert (tmp_path / "asked").read_text().count("x") == 1


def test_a_record_that_cannot_be_read_is_told_of(chain: Path):
    (chain / "launch.json").write_text("{")
    facts = look(chain)
    assert "launch.json" in facts.faults[0] and states(facts) == {"base": RunState.DONE}
