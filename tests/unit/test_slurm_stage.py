"""The scripts of slurm/ that a user submits, on commands of Slurm that are stood in for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from r1mega.recipe.load import RECIPES

SCRIPTS = {kind: recipe.script for kind, recipe in RECIPES.items()}
ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >words
[[ -z ${OUT-} ]] || mkdir -p "$OUT"
exit ${CODE:-0}
"""
FAKES = {
    "bin/srun": SRUN,
    "bin/scontrol": "#!/usr/bin/env bash\necho JobState=RUNNING NodeAddr=10.0.0.1 PreemptTime=None Requeue=0\n",
    ".venv/bin/python": '#!/usr/bin/env bash\n[[ $* != *placement* ]] || { echo "$PLACEMENT"; exit ${FITS:-0}; }\n',
}
PLACED = "ranks=2\ntrainer=n1\nserver=\ntrainer_options=-N1\nserver_options=\nunused="


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in FAKES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(checkout: Path, script: str, *arguments: str, code: int = 0, **environment: str) -> str:
    """What a script prints, which ends with `code`."""
    variables = {
        "PATH": f"{checkout}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_PARTITION": "p", "PLACEMENT": PLACED,
    }  # fmt: skip
    said = checkout / "said"  # no pipe: what watches the job's end would hold it open
    with said.open("w") as file:
        done = subprocess.run(
            ["bash", f"slurm/{script}.sh", *arguments], cwd=checkout, env={**variables, **environment}, stdout=file,
            stderr=subprocess.STDOUT, timeout=120,
        )  # fmt: skip
    assert done.returncode == code, said.read_text()
    return said.read_text()


@pytest.mark.parametrize("script", sorted({*SCRIPTS.values(), "distill_stage"}))
def test_a_script_refuses_a_stage_of_another_one(checkout: Path, script: str):
    own = script.replace("distill", "sft")
    other = next(one for one in SCRIPTS.values() if one != own)
    for fits in ("0", "2"):  # and names the right one before what to ask for, which may be another's wish
        said = submit(checkout, script, "a.toml", code=2, PLACEMENT=f"script={other}\n{PLACED}", FITS=fits)
        assert said.splitlines()[-1] == (
            f"{own}: a.toml is a stage for slurm/{other}.sh: submit that one, with the same arguments"
        )
    assert not (checkout / "words").exists() and not (checkout / "runs").exists()
    submit(checkout, script, "a.toml", PLACEMENT=f"script={own}\n{PLACED}")
    assert (checkout / "words").read_text().endswith("\na.toml\n--run-dir\nruns/slurm-7\n--resume\n")


@pytest.mark.parametrize("script", sorted({*SCRIPTS.values()} - {"rl_stage"}))
def test_only_rl_has_a_stage_of_its_own(checkout: Path, script: str):
    said = submit(checkout, script, "--cluster", "laptop", code=2)
    assert f"which stage? sbatch slurm/{script}.sh CONFIG" in said


def test_fewer_data_parallel_ranks_are_handed_to_the_run_and_said(checkout: Path):
    place = PLACED.replace("unused=", "unused=n3") + "\ndp=1\nloss=should a node be lost, it waits"
    mine = ("a.toml", "--set", "cluster.trainer.dp=4")
    said = submit(checkout, "sft_stage", *mine, PLACEMENT=place)
    words = (checkout / "words").read_text().splitlines()
    assert words.index("cluster.trainer.dp=1") > words.index("cluster.trainer.dp=4")
    assert "1 data-parallel rank(s), until a start is granted more" in said and "should a node be lost" in said
    said = submit(checkout, "sft_stage", *mine, PLACEMENT=place.replace("dp=1", "dp="), code=2)
    assert "n3: granted, and of no use to 2 trainer rank(s)" in said


def test_a_conversion_is_one_process_and_goes_on_until_its_folder_is_there(checkout: Path):
    job = ("to-hf", "a", "b/c", "--processes", "2")
    submit(checkout, "convert", *job, code=1, CODE="1")  # Requeue=0: so told, and left
    assert "crash 1 of at most 10 (exit code 1): not requeued" in (checkout / "said").read_text()
    words = (checkout / "words").read_text().splitlines()
    assert words[-len(job) - 3 :] == ["-m", "r1mega.cli", "convert", *job]
    assert "--ntasks=1" in words and "slurm/rank.sh" in words
    assert "done: " in submit(checkout, "convert", *job, OUT="b/c")
    (checkout / "words").unlink()
    (checkout / "b/.c.converting/parts").mkdir(
        parents=True
    )  # OUT had appeared, what was written it from had not gone
    assert f"done: {checkout}/b/c" in submit(checkout, "convert", *job)
    assert not (checkout / "words").exists() and not (checkout / "b/.c.converting").exists()
    shutil.rmtree(checkout / "runs")  # another job finds a folder that it did not make: `r1mega convert` refuses it
    assert "mend it and submit again" in submit(checkout, "convert", *job, code=2, CODE="2")
    assert (checkout / "words").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("verify", "a", "b"), ("to-hf", "a"), ("to-hf", "--dtype", "bf16", "a", "b")]
)
def test_a_conversion_is_told_what_to_convert(checkout: Path, arguments: tuple[str, ...]):
    said = submit(checkout, "convert", *arguments, code=2)
    assert "to-hf|to-megatron FROM OUT: FROM and OUT come before any option" in said


def test_starts_of_a_conversion_count_until_a_part_is_written(checkout: Path):
    job, parts = ("to-hf", "a", "b/c"), checkout / "b/.c.converting/parts"
    script = checkout / "slurm/job.sh"
    script.write_text(script.read_text().replace("MAX_IDLE_STARTS=10 ", "MAX_IDLE_STARTS=1 "))
    parts.mkdir(parents=True)
    for _ in range(2):
        submit(checkout, "convert", *job, code=1, CODE="1")
    (parts / "000001.json").touch()
    submit(checkout, "convert", *job, code=1, CODE="1")
    submit(checkout, "convert", *job, code=1, CODE="1")
    assert "the last 2 starts of this job came to nothing" in submit(checkout, "convert", *job, code=2, CODE="1")


def test_a_setting_with_an_equals_sign_is_the_environments_as_well(checkout: Path):
    asked = checkout / ".venv/bin/python"
    asked.write_text(asked.read_text().replace("[[", '[[ $* != *environment* ]] || echo "$*" >>asked\n[[', 1))
    submit(checkout, "sft_stage", "a.toml", "--cluster=c", "--set=cluster.trainer.dp=4", "--set=seed=1")
    (line,) = (checkout / "asked").read_text().splitlines()
    assert line == "-m r1mega.cli check a.toml --cluster c --set cluster.trainer.dp=4 --print environment"
    words = (checkout / "words").read_text().splitlines()
    assert words[words.index("a.toml") + 1 :][:6] == [
        "--cluster", "c", "--set", "cluster.trainer.dp=4", "--set", "seed=1"
    ]  # fmt: skip


SILENT = """#!/usr/bin/env bash
echo "${SLURM_TIME_FORMAT-}${SLURM_CLUSTERS-}" >>formats
[[ ! -e silent ]] || { echo 'Unable to contact slurm controller' >&2; exit 1; }
case "$*" in
  requeue*) echo "$*" >>requeued ;;
  *) echo JobState=RUNNING NodeAddr=10.0.0.1 PreemptTime=None Requeue=1 EndTime=Unknown ;;
esac
"""
ASKED = """#!/usr/bin/env bash
touch silent
kill -USR1 $PPID
/bin/sleep 0.5
exit 138
"""


def test_a_notice_while_slurm_does_not_answer_still_ends_in_a_requeue(checkout: Path):
    wait = "#!/usr/bin/env bash\n[[ $1 != 4 ]] || rm -f silent\n[[ $1 == 30 ]] || exit 0\nexec /bin/sleep 30\n"
    for name, text in (("scontrol", SILENT), ("srun", ASKED), ("sleep", wait)):
        (checkout / "bin" / name).write_text(text)
        (checkout / "bin" / name).chmod(0o755)
    said = submit(checkout, "sft_stage", "a.toml", code=137, SLURM_TIME_FORMAT="relative", SLURM_CLUSTERS="other")
    assert (checkout / "requeued").read_text() == "requeue 7\n", said
    assert {*(checkout / "formats").read_text().split()} == set()
