"""`r1mega launch` and `r1mega jobs` with an sbatch and an squeue of the test's own; the stages need no model."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from r1mega.cli import app
from r1mega.errors import RunDirError
from r1mega.launchers.job import StageJob, Submitted
from r1mega.launchers.record import LaunchRecord, Submission
from r1mega.preflight.look import look

ROOT = Path(__file__).parents[2]
FIRST = 'stage = "mixture"\n[[data]]\nfiles = ["rows.jsonl"]\ndomain = "math"\n'
CHAIN = """
[[stages]]
name = "one"
config = "first.toml"
[[stages]]
name = "two"
config = "next.toml"
reads = { "data.0.files" = ["one/conversations.jsonl"] }
[[stages]]
name = "three"
config = "next.toml"
reads = { "data.0.files" = ["two/conversations.jsonl"] }
[[stages]]
name = "apart"
config = "first.toml"
"""
SBATCH = """#!/bin/bash
echo "$@" >> submitted
echo >> number
/usr/bin/wc -l < number
"""
ROW = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
CHAIN_OF = ("chain.toml", "--run-dir", "run")


class Bench:
    """A checkout whose Slurm says what the test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def program(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def jobs_are(self, *rows: str) -> None:
        self.program("squeue", "#!/bin/bash\n/bin/cat <<'END'\n" + "".join(f"{row}|0|\n" for row in rows) + "END\n")

    def submitted(self) -> list[str]:
        """What sbatch was called with since the last question."""
        file = self.folder / "submitted"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def ask(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    def refused(self, *arguments: str) -> str:
        result = self.ask(*arguments)
        assert result.exception is not None and not isinstance(result.exception, SystemExit), result.output
        return str(result.exception)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path)
    for name in ("bin", "slurm"):
        (tmp_path / name).mkdir()
    for name in ("chain_stage", "rejection_stage"):
        (tmp_path / f"slurm/{name}.sh").touch()
    made.program("sbatch", SBATCH)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "chain.toml").write_text(CHAIN)
    (tmp_path / "first.toml").write_text(FIRST)
    (tmp_path / "next.toml").write_text(FIRST.replace("rows.jsonl", "nothing.jsonl"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    return made


def test_a_chain_goes_on_with_what_has_no_job_any_more(bench: Bench):
    bench.jobs_are("1|COMPLETED|None|0", "2|PENDING|Dependency|0", "3|PENDING|Dependency|0", "4|RUNNING|None|0")
    options = ("--sbatch", "--time=9", "--sbatch", "two:--nodelist=n1,n2", "--set", "two:seed=3")
    done = bench.ask("launch", *CHAIN_OF, *options)
    assert done.exit_code == 0, done.output
    one, two, three, apart = bench.submitted()
    assert "--time=9 slurm/chain_stage.sh chain.toml one --cluster laptop --run-dir run --set two:seed=3" in one
    assert "--time=9 --nodelist=n1,n2 --dependency=afterok:1 --kill-on-invalid-dep=yes" in two
    assert "--dependency=afterok:2 " in three and "dependency" not in apart
    # The first has failed, the second and third with it; the fourth still runs, and keeps its job.
    bench.jobs_are("1|FAILED|NonZeroExitCode|512", "2|CANCELLED|DependencyNeverSatisfied|0",
                   "3|CANCELLED|DependencyNeverSatisfied|0", "4|RUNNING|None|0")  # fmt: skip
    tree = bench.ask("jobs", "run").output.splitlines()
    assert tree == [
        "run: chain.toml",
        "├─ one          failed     job 1; exit code 2",
        "│  └─ two       cancelled  job 2; one has failed, and this needs it",
        "│     └─ three  cancelled  job 3; two was cancelled, and this needs it",
        "└─ apart        running    job 4",
    ]
    assert bench.ask("launch", *CHAIN_OF, *options).exit_code == 0
    assert [line.split("slurm/chain_stage.sh chain.toml ")[1].split()[0] for line in bench.submitted()] == [
        "one", "two", "three"
    ]  # fmt: skip
    record = LaunchRecord.read(bench.folder / "run")
    assert record is not None
    assert {name: job.id for name, job in record.latest().items() if job} == {
        "one": "5", "two": "6", "three": "7", "apart": "4"
    }  # fmt: skip
    # With another setting, what still runs would be in the way.
    said = bench.refused("launch", *CHAIN_OF, "--set", "apart:seed=4")
    assert (
        said.startswith("run: job 4 of apart is not over, and was launched with other arguments")
        and "--cancel" in said
    )


def test_a_job_that_waits_is_waited_for_by_those_of_the_next_launch(bench: Bench):
    bench.jobs_are("1|PENDING|Resources|0", "2|PENDING|Dependency|0")
    assert bench.ask("launch", *CHAIN_OF, "--until", "two").exit_code == 0
    bench.submitted()
    assert bench.ask("launch", *CHAIN_OF).exit_code == 0
    three, apart = bench.submitted()
    assert "--dependency=afterok:2 " in three and "dependency" not in apart
    bench.jobs_are("1|PENDING|Resources|0", "2|PENDING|Dependency|0", "3|PENDING|Dependency|0", "4|RUNNING|None|0")
    again = bench.ask("launch", *CHAIN_OF)
    assert "nothing to submit" in again.output and bench.submitted() == []
    bench.program("scancel", '#!/bin/bash\necho "$@" > cancelled\n')
    assert "cancelled: one, two, three, apart" in bench.ask("jobs", "run", "--cancel").output
    assert (bench.folder / "cancelled").read_text() == "--quiet 4 3 2 1\n"
    (bench.folder / "run/.jobs/two-2.out").write_text("said\n")
    assert bench.ask("jobs", "run", "--logs", "two").output == f"{bench.folder}/run/.jobs/two-2.out\n"


def test_while_slurm_cannot_be_asked_no_job_is_taken_for_one_that_is_over(bench: Bench):
    bench.ask("launch", *CHAIN_OF)
    assert len(bench.submitted()) == 4
    bench.program("squeue", "#!/bin/bash\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    assert "nothing to submit" in bench.ask("launch", *CHAIN_OF).output and bench.submitted() == []
    bench.program("scancel", '#!/bin/bash\necho "$@" >cancelled\n')
    assert "cancelled: one, two, three, apart" in bench.ask("jobs", "run", "--cancel").output
    assert (bench.folder / "cancelled").read_text() == "--quiet 4 3 2 1\n"


def test_jobs_that_cannot_be_written_down_are_cancelled_again(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def full(record: LaunchRecord) -> None:
        raise RunDirError(f"{record.folder}: cannot be written: No space left on device")

    bench.program("scancel", '#!/bin/bash\necho "$@" >cancelled\n')
    monkeypatch.setattr(LaunchRecord, "write", full)
    assert "No space left" in bench.refused("launch", *CHAIN_OF)
    assert (bench.folder / "cancelled").read_text() == "--quiet 1 2 3 4\n"


def test_a_dry_run_writes_beside_the_run_and_starts_nothing(bench: Bench):
    done = bench.ask("launch", *CHAIN_OF, "--dry-run", "--set", "two:seed=3")
    assert done.exit_code == 0 and bench.submitted() == [] and not (bench.folder / "run").exists()
    script = (bench.folder / "run.launch/submit.sh").read_text()
    assert done.output.startswith(script) and "--dependency=afterok:${job_one%;*} " in script
    resolved = json.loads((bench.folder / "run.launch/two.json").read_text())
    assert resolved["stage"]["seed"] == 3 and resolved["cluster"]["device"] == "cpu"
    assert resolved["stage"]["data"][0]["files"] == [str(bench.folder / "run/one/conversations.jsonl")]
    alone = bench.ask("launch", "first.toml", "--launcher", "local", "--dry-run", "--cluster", "laptop2")
    assert (
        alone.output.splitlines()[3]
        == "r1mega run first.toml --cluster laptop2 --run-dir runs/first --resume # first"
    )


def test_a_stage_by_itself(bench: Bench):
    bench.jobs_are("1|PENDING|None|0")
    assert bench.ask("launch", "first.toml", "--sbatch", "--partition=p").exit_code == 0
    (line,) = bench.submitted()
    assert line == (
        "--parsable --job-name=first --output=runs/first/logs/first-%j.out --nodes=1 --ntasks-per-node=1 "
        "--cpus-per-task=2 --partition=p slurm/rejection_stage.sh first.toml --cluster laptop --run-dir runs/first"
    )
    moved = bench.folder / "elsewhere"
    (bench.folder / "runs/first").rename(moved)
    assert bench.ask("jobs", str(moved)).output.splitlines()[1] == "└─ first  waiting    job 1"


def test_what_this_machine_lacks_is_asked_of_it_where_the_job_runs_on_it(monkeypatch: pytest.MonkeyPatch):
    """A login node has no GPU."""
    monkeypatch.chdir(ROOT)
    config = Path("configs/distill/qwen2_5_math_1_5b.toml")
    lacks = {elsewhere: look(config, "h800_1b5", [], elsewhere=elsewhere).absent for elsewhere in (True, False)}
    told = [any("this machine has 0" in line for line in lacks[elsewhere]) for elsewhere in (True, False)]
    assert told == [False, True] and lacks[True]  # weights and rows are not here either


def test_what_cannot_be_launched_is_one_message(bench: Bench):
    (bench.folder / "circle.toml").write_text(CHAIN.replace("one/conv", "three/conv"))
    refused = {
        "--launcher sltrm: no such launcher": ("launch", *CHAIN_OF, "--launcher", "sltrm"),
        "stages.two.reads.data.0.files: no earlier stage is named 'three'": ("launch", "circle.toml"),
        "no such config file": ("launch", "nowhere.toml"),
        "--sbatch four:--time=3: no stage is named so": ("launch", *CHAIN_OF, "--sbatch", "four:--time=3"),
        "--sbatch --output=x: --output is set": ("launch", *CHAIN_OF, "--sbatch", "one:--output=x"),
        "leave out one:": ("launch", "first.toml", "--sbatch", "one:--time=3"),
        "leave out --from, --until and --only": ("launch", "first.toml", "--only", "one"),
        "three needs what stage two leaves": ("launch", *CHAIN_OF, "--only", "three"),
        "nothing was launched here": ("jobs", "run"),
        "sbatch: not on PATH": ("launch", *CHAIN_OF),
    }
    for words, line in refused.items():
        if words.startswith("sbatch"):
            (bench.folder / "bin/sbatch").unlink()
        assert words in bench.refused(*line), line
    assert not (bench.folder / "submitted").exists()


def test_a_stage_that_was_done_by_other_means_counts_as_done(tmp_path: Path):
    def submitted(name: str, id: str) -> Submitted:
        return Submitted(StageJob(name, "slurm/x.sh", (), (), tmp_path / name, tmp_path / ".jobs"), "slurm", id)

    record = LaunchRecord(tmp_path, "chain.toml", str(tmp_path), (), ())
    record = record.with_launch(Submission("then", "slurm", (), (), (submitted("a", "1"), submitted("b", "2"))), "ab")
    record = record.with_launch(
        Submission("now", "slurm", (), ("a",), (submitted("c", "3"), submitted("b", "4"))), "cab"
    )
    record.write()
    read = LaunchRecord.read(tmp_path)
    assert read == record and list(read.latest()) == ["c", "a", "b"]
    assert {name: job and job.id for name, job in read.latest().items()} == {"a": None, "b": "4", "c": "3"}
    assert read.done_before() == {"a"}


def test_a_run_directory_of_something_else_is_refused(bench: Bench):
    bench.jobs_are("1|PENDING|None|0")
    assert bench.ask("launch", *CHAIN_OF).exit_code == 0
    (bench.folder / "other.toml").write_text(CHAIN)
    assert "run: chain.toml was launched here, and this is other.toml" in bench.refused(
        "launch", "other.toml", "--run-dir", "run"
    )
    for name, config in (("run.json", "chain.toml"), ("chain.json", "first.toml")):
        (bench.folder / name[:-5]).mkdir(exist_ok=True)
        folder = bench.folder / f"of_{name[:-5]}"
        folder.mkdir()
        (folder / name).write_text("{}")
        assert "choose another --run-dir" in bench.refused("launch", config, "--run-dir", str(folder))
    (bench.folder / "run/launch.json").write_text("{")
    assert "launch.json: cannot be read" in bench.refused("jobs", "run")
