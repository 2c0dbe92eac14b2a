"""slurm/: the steps of a job in each kind of environment, word for word, on Slurm's commands that are stood in for.

Neither pyxis nor Apptainer is on a machine that tests run on: golden files hold what would be started.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_containers import MADE, PYXIS

from r1mega.config.cluster import Cluster
from r1mega.config.entering import shell_lines
from r1mega.config.environment import Environment
from r1mega.config.load import load_cluster
from r1mega.config.slurm import GrantedNode, needs, place

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests/unit/goldens/steps"
VARIABLES = {"variables": {"NCCL_IB_HCA": "mlx5 0"}, "trainer": {"NVTE_FUSED_ATTN": 1}, "rollout": {"VLLM_A": "b"}}
KINDS = {
    "pyxis": {"container": {"kind": "pyxis", "image": "nvcr.io#r1mega:1", "mounts": ["/data:/data:ro"]}, **VARIABLES},
    "apptainer": {"container": {"kind": "apptainer", "image": "docker://r1mega:1", "mounts": ["/data"]}, **VARIABLES},
    "plain": VARIABLES,
}
CASES = [
    *((cluster, kind) for cluster in ("gpu1", "h800_1b5", "h800_14b", "h800_70b", "h800_v3") for kind in KINDS),
    ("laptop", "apptainer"),
]
SRUN = """#!/usr/bin/env bash
for word; do [[ $word != --job-name=* ]] || name=${word#*=}; done
printf '%s\\n' "$@" >"words.$name"
env -0 >"variables.$name"
"""
SCONTROL = """#!/usr/bin/env bash
case "$*" in
  *hostnames*) tr , '\\n' <<<"${@: -1}" ;;
  *partition*) echo "TotalNodes=${TOTAL:-1}" ;;
  *"oneliner job"*) echo "JobState=RUNNING PreemptTime=None NumNodes=1 ExcNodeList=${OUT:-(null)}" ;;
  *"oneliner node"*) echo NodeAddr=10.0.0.1 ;;
  show*) ;;
  *) echo "$*" >>asked ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"--print placement"*) echo "$*" >>placed; cat placement ;;
  *"--print environment"*) cat environment ;;
  *free_port*) echo 1234 ;;
  *r1mega.runtime.node_check*) printf '%s\\n' "$@" >checked; echo "seen"; echo "bad=${BAD-}"; exit "${CODE:-0}" ;;
esac
"""


def on(cluster: str, table: dict[str, object]) -> Cluster:
    machine = load_cluster(str(ROOT / f"configs/cluster/{cluster}.toml"))
    return machine.model_copy(update={"environment": Environment.model_validate(table)})


def job(folder: Path, machine: Cluster, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and output of slurm/rl_stage.sh with an RL stage on as many nodes as it asks for."""
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    shutil.copy(ROOT / "pyproject.toml", folder)
    wanted = needs(machine, trains=True, serves=True)
    nodes = [GrantedNode(f"n{k}", 96, machine.gpus_per_node) for k in range(1, max(wanted.nodes, 2) + 1)]
    placed = place(wanted, nodes[: wanted.nodes] if wanted.gpus_per_node else nodes)
    (folder / "placement").write_text(placed.lines)
    (folder / "environment").write_text(shell_lines(machine, folder))
    fakes = {
        ".venv/bin/python": PYTHON,
        "bin/srun": SRUN,
        "bin/scontrol": SCONTROL,
    }
    for name, text in fakes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_NODELIST": "n1"}
    around = {"PATH": f"{folder}/bin:/usr/bin:/bin", "SLURM_JOB_PARTITION": "p", **slurm, **variables}
    with (folder / "said").open("w") as said:  # no pipe: what watches the job's end would hold it open
        done = subprocess.run(
            ["bash", "slurm/rl_stage.sh", "a.toml", *arguments], cwd=folder, env=around, stdout=said,
            stderr=subprocess.STDOUT, timeout=120,
        )  # fmt: skip
    return done.returncode, (folder / "said").read_text()


def steps(folder: Path) -> dict[str, list[str]]:
    """Words of each srun by its step's name."""
    return {file.name.partition(".")[2]: file.read_text().splitlines() for file in sorted(folder.glob("words.*"))}


@pytest.mark.parametrize(("cluster", "kind"), CASES)
def test_steps_are_what_the_golden_files_say(tmp_path: Path, cluster: str, kind: str):
    """To write them anew: delete them, run this, and look at what has changed."""
    code, said = job(tmp_path, on(cluster, KINDS[kind]))
    assert code == 0, said
    parts = ("\n".join([f"# {name}", *words, ""]) for name, words in steps(tmp_path).items())
    found = "".join(parts).replace(str(tmp_path), "/home/me/r1mega")
    golden = GOLDENS / f"{cluster}_{kind}.txt"
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(found)
        pytest.fail(f"{golden} was written: look at it")
    assert found == golden.read_text()
    assert {path.stem for path in GOLDENS.iterdir()} <= {"_".join(case) for case in CASES}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_files_hold_what_a_container_needs(kind: str):
    """Held against the manuals, not against what wrote them."""
    for cluster in ("h800_v3", "gpu1"):
        parts = (GOLDENS / f"{cluster}_{kind}.txt").read_text().split("# ")[1:]
        read = {part.split("\n")[0]: part.split("\n")[1:-1] for part in parts}
        assert set(read) == {"trainer", "rollout"} if cluster == "h800_v3" else {"trainer"}
        for name, words in read.items():
            script = words.index("slurm/rank.sh" if name == "trainer" else "slurm/server.sh")
            options, inside = words[:script], words[script:]
            named = {word.partition("=")[0] for word in options if word.startswith("--container")}
            assert named <= PYXIS and bool(named) == (kind == "pyxis")
            assert (options[-1] == "docker://r1mega:1") == (kind == "apptainer")
            if kind == "apptainer":  # the program is the first word that is no option of srun
                began = next(i for i, word in enumerate(options) if not word.startswith("-"))
                assert options[began : began + 3] == ["apptainer", "exec", "--nv"]
            python = ".venv/bin/python" if kind == "plain" else f"{MADE}/.venv-gpu-trainer/bin/python"
            own = "NVTE_FUSED_ATTN=1" if name == "trainer" else "VLLM_A=b"
            at = inside.index("env")
            assert inside[at : at + 4] == ["env", "NCCL_IB_HCA=mlx5 0", own, python]


def test_variables_of_all_reach_the_job_and_the_cluster_files_value_holds(tmp_path):
    code, said = job(tmp_path, on("gpu1", VARIABLES), NCCL_IB_HCA="mine", OTHER="kept")
    found = dict(one.split("=", 1) for one in (tmp_path / "variables.trainer").read_text().split("\0")[:-1])
    assert code == 0 and (found["NCCL_IB_HCA"], found["OTHER"]) == ("mlx5 0", "kept")
    assert "NCCL_IB_HCA is 'mine' where the job was submitted, and mlx5 0 by the cluster file, which holds" in said
    assert not {"NVTE_FUSED_ATTN", "VLLM_A"} & found.keys()  # put before the interpreter of their own step


@pytest.mark.parametrize("name", ["R1MEGA_IMAGE", "R1MEGA_MOUNTS", "R1MEGA_PYTHON"])
def test_a_variable_that_names_a_container_is_refused_with_the_remedy(tmp_path, name: str):
    code, said = job(tmp_path, on("gpu1", {}), **{name: "/i.sqsh"})
    assert code == 2 and steps(tmp_path) == {}
    assert (
        f"{name}: set where the job was submitted" in said
        and "--set cluster.environment.container.image=FILE" in said
    )
    assert "Not requeued" in said


def test_an_image_that_is_not_there_is_told_before_anything_starts(tmp_path):
    image = tmp_path / "no such.sif"
    code, said = job(tmp_path, on("gpu1", {"container": {"kind": "apptainer", "image": str(image)}}))
    assert code == 2 and steps(tmp_path) == {}
    assert f"environment.container.image: there is no {image} on " in said
    image.touch()


def interpreter(folder: Path) -> Path:
    """An environment's, which is no Python."""
    python = folder / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    return python


def test_a_venv_is_active_in_every_step(tmp_path):
    python = interpreter(tmp_path / "env s")
    code, said = job(tmp_path, on("h800_1b5", {"venv": str(tmp_path / "env s")}))
    assert code == 0, said
    for name, words in steps(tmp_path).items():
        assert str(python) in words
        found = dict(one.split("=", 1) for one in (tmp_path / f"variables.{name}").read_text().split("\0")[:-1])
        assert found["VIRTUAL_ENV"] == str(tmp_path / "env s")
        assert found["PATH"].startswith(f"{tmp_path / 'env s'}/bin:{tmp_path}/bin:")


def test_a_venv_without_python_is_refused(tmp_path):
    code, said = job(tmp_path, on("gpu1", {"venv": str(tmp_path / "none")}))
    assert code == 2 and f"environment.venv: {tmp_path}/none has no bin/python" in said


MODULES = """
module() { # as Environment Modules and Lmod: add, and list in LOADEDMODULES; the old one ends with 0 in any case
  unset_variable=$NEVER_SET # other people's shell
  case $2 in
    old-none) echo "Unable to locate a modulefile for 'old-none'" ;;
    none) return 1 ;;
    *) export LOADEDMODULES=${LOADEDMODULES:+$LOADEDMODULES:}$2/13.0 FROM_$2=yes ;;
  esac
}
"""


def test_modules_are_loaded_in_order_and_those_that_are_not_there_refused(tmp_path):
    (tmp_path / "init").mkdir()
    (tmp_path / "init/bash").write_text(MODULES)
    found = {}
    for number, modules in enumerate((("gcc", "cuda"), ("gcc", "none"), ("old-none",))):
        folder = tmp_path / str(number)
        folder.mkdir()
        machine = on("gpu1", {"modules": modules})
        found[modules] = (folder, *job(folder, machine, MODULESHOME=str(tmp_path)))
    folder, code, said = found["gcc", "cuda"]
    assert code == 0, said
    variables = (folder / "variables.trainer").read_text().split("\0")
    assert {"LOADEDMODULES=gcc/13.0:cuda/13.0", "FROM_gcc=yes", "FROM_cuda=yes"} <= set(variables)
    for modules in (("gcc", "none"), ("old-none",)):
        folder, code, said = found[modules]
        assert code == 2 and f"`module load {modules[-1]}` did not load it" in said and steps(folder) == {}


def test_without_modules_on_the_machine_that_is_said(tmp_path):
    if any(Path(file).exists() for file in ("/etc/profile.d/modules.sh", "/etc/profile.d/lmod.sh")):
        pytest.skip("this machine has modules")
    code, said = job(tmp_path, on("gpu1", {"modules": ["cuda"]}))
    assert code == 2 and "environment.modules: there is no `module` on " in said


CONDA = """#!/usr/bin/env bash
[[ $* == "shell.bash hook" ]] || exit 9
cat <<'END'
conda() { # as its own: activation runs scripts that know nothing of `set -u`
  [[ $1 == activate && $2 == r1mega ]] || { echo "EnvironmentNameNotFound: $2"; return 1; }
  : "$NEVER_SET"
  export CONDA_PREFIX=@ CONDA_DEFAULT_ENV=$2 PATH=@/bin:$PATH
}
END
"""


def test_a_conda_environment_is_activated(tmp_path):
    python = interpreter(tmp_path / "envs/r1mega")
    conda = tmp_path / "conda"
    conda.write_text(CONDA.replace("@", str(tmp_path / "envs/r1mega")))
    conda.chmod(0o755)
    for name, expected in (("r1mega", 0), ("other", 2)):
        folder = tmp_path / name
        folder.mkdir()
        code, said = job(folder, on("gpu1", {"conda": name}), CONDA_EXE=str(conda))
        assert code == expected, said
        if code:
            assert "EnvironmentNameNotFound: other" in said and "other could not be activated" in said
            continue
        assert str(python) in steps(folder)["trainer"]
        variables = (folder / "variables.trainer").read_text().split("\0")
        assert {f"CONDA_PREFIX={python.parents[1]}", "CONDA_DEFAULT_ENV=r1mega"} <= set(variables)


def test_where_there_is_no_conda_that_is_said(tmp_path):
    code, said = job(tmp_path, on("gpu1", {"conda": "r1mega"}))
    assert code == 2 and re.search(r"environment.conda: there is no conda on .*environment\.modules", said, re.S)


def test_a_servers_process_is_started_by_the_command_that_its_step_is_given(tmp_path):
    """slurm/server.sh, by itself."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\ncd "${0%/*}" && printf "%s\\n" "$VLLM_A" "$@" >words && touch over\n')
    python.chmod(0o755)
    command = [str(ROOT / "slurm/server.sh"), str(tmp_path), "10.0.0.1,10.0.0.2", "env", "VLLM_A=b c", str(python)]
    around = {"PATH": "/usr/bin:/bin", "SLURM_PROCID": "1"}
    subprocess.run(command, env=around, check=True, timeout=60)
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["b c", "-m", "r1mega.runtime.process"]
    interpreter = ["env", "VLLM_A=b c", str(python)]
    assert words[4:] == [*interpreter, "-m", "r1mega.rollout.attendant", str(tmp_path), "1", "10.0.0.2"]
