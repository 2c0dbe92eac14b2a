"""What slurm/rl_stage.sh makes of granted nodes, CPUs and GPUs, with a few lines in place of `r1mega run`."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated_slurm import GPUS, Slurm, ended
from typer.testing import CliRunner

from r1mega.cli import app

pytestmark = pytest.mark.slow

SCRIPT = "slurm/sft_stage.sh"
SFT = "configs/distill/qwen2_5_14b.toml"
PLACE = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" > place_$RANK'
ALL_GPUS = ",".join(map(str, range(GPUS)))


def asked(cluster: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """The options that `r1mega check --print slurm` prints; its notes are on stderr."""
    monkeypatch.chdir(folder)
    said = CliRunner().invoke(app, ["check", SFT, "--cluster", cluster, "--print", "slurm"])
    assert said.exit_code == 0, said.output
    return said.stdout.split()


def places(folder: Path) -> list[list[str]]:
    """Of every rank in order: rank, local rank, world size, node, and the GPUs that it sees."""
    return [file.read_text().split() for file in sorted(folder.glob("place_*"), key=lambda f: int(f.name[6:]))]


@pytest.fixture(scope="module")
def submit(
    slurm: Slurm, stub: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[int, Path]]:
    """Gives the number and the folder of a new job."""

    def make(trainer: str, options: list[str], arguments: tuple[str, ...], num_ranks: int = 1) -> tuple[int, Path]:
        folder = stub(tmp_path_factory.mktemp("job"), trainer, num_ranks=num_ranks)
        return slurm.submit(*options, SCRIPT, *arguments, cwd=folder), folder

    return make


OWN, GPU = ("a.toml", "--cluster", "c"), (SFT, "--cluster", "h800_14b")
UNFIT = {
    "1 node(s) instead of 2": (["--gres=gpu:8"], GPU, 1),
    "8 GPU(s) instead of 16": ([], (*GPU, "--set", "cluster.gpus_per_node=16"), 1),
    "8 CPU(s) for 9 rank(s) of 1 thread(s)": ([], OWN, 9),
    "granted, and of no use to 1 trainer rank(s)": (["--nodes=2"], OWN, 1),
    "Unable to create step": (["--export=ALL,SLURM_CONSTRAINT=warp"], OWN, 1),
    "a heterogeneous job": (["--ntasks=1", ":", "--ntasks=1"], OWN, 1),
}
"""What is said: options of sbatch, arguments of the script, ranks of the cluster file."""
WAYS = {
    ("h800_14b", "printed"): None,
    ("h800_1b5", "gres"): ["--gres=gpu:8"],
    ("h800_1b5", "exclusive"): [],  # the script's own wish, where a step gets no GPU that it does not ask for
}
ARRAY = r"""
[[ $* == *slurm-*_2\ * ]] || { until [[ -f again ]]; do sleep 0.1; done; exit 0; }
[[ ! -f first ]] || { touch again; exit 0; }
touch first; exit 1
"""


@pytest.fixture(scope="module")
def array(submit) -> tuple[int, Path]:
    return submit(ARRAY, ["--array=1-2"], OWN)


@pytest.fixture(scope="module")
def unfit(submit, array) -> dict[str, tuple[int, Path]]:
    return {message: submit("touch started", *job) for message, job in UNFIT.items()}


def test_a_job_asks_for_the_gpus_of_the_cluster_file(
    slurm: Slurm, submit, unfit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    jobs = {}
    for (cluster, how), options in WAYS.items():
        options = asked(cluster, monkeypatch, Path(__file__).parents[2]) if options is None else options
        jobs[cluster, how] = submit(PLACE, options, (SFT, "--cluster", cluster))
    for (cluster, how), (job, folder) in jobs.items():
        said, _ = ended(slurm, job, "COMPLETED", folder)
        granted = slurm.ask("scontrol", "show", "hostnames", said["NodeList"]).split()
        ranks = {"h800_14b": 16, "h800_1b5": 8}[cluster]
        assert places(folder) == [
            [str(rank), str(rank % 8), str(ranks), granted[rank // 8], ALL_GPUS] for rank in range(ranks)
        ]
        if how == "printed":
            assert said["TresPerNode"] == "gres:gpu:8" and said["NumNodes"] == str(ranks // 8)


@pytest.mark.parametrize("message", UNFIT)
def test_a_grant_that_does_not_fit_is_one_message(slurm: Slurm, unfit, message: str):
    job, folder = unfit[message]
    said, output = ended(slurm, job, "FAILED", folder)
    assert (said["ExitCode"], said["Restarts"]) == ("2:0", "0")
    assert message in output and not (folder / "started").exists()
    assert "Traceback" not in output and "crash" not in output and len(re.findall("Not requeued", output)) <= 1


def test_the_tasks_of_an_array_come_back_one_by_one(slurm: Slurm, array):
    """Slurm gives the last one the number of the whole array, by which all would be requeued."""
    job, folder = array
    restarts = [ended(slurm, f"{job}_{task}", "COMPLETED", folder)[0]["Restarts"] for task in (1, 2)]
    assert restarts == ["0", "1"]
    assert {path.name for path in (folder / "runs").iterdir()} == {f"slurm-{job}_1", f"slurm-{job}_2"}
