"""containers/: the Dockerfile copies what is there and makes what make makes; scripts and commands are what they
say they are."""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
SHELL = b"#!/usr/bin/env bash", b"# shellcheck shell=bash"
SCRIPTS = sorted(
    file
    for folder in ("containers", "slurm", "tools", ".ci")
    for file in (ROOT / folder).rglob("*")
    if file.is_file() and file.read_bytes().startswith(SHELL)
)
PYXIS = {
    "--container-image", "--container-mounts", "--container-workdir", "--container-name", "--container-save",
    "--container-mount-home", "--no-container-mount-home", "--container-remap-root", "--no-container-remap-root",
    "--container-entrypoint", "--no-container-entrypoint", "--container-writable", "--container-readonly",
    "--container-env",
}  # fmt: skip
"""Options that pyxis gives srun, as its manual lists them."""
MADE = "/opt/r1mega"
"""Where the image has code and environments."""


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M))
    return [(name, rest) for name, _, rest in (line.strip().partition(" ") for line in text.splitlines()) if name]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def locked(lock: str, package: str) -> str:
    return re.search(rf"^{package}==(\S+)", (ROOT / f"requirements/{lock}.lock").read_text(), flags=re.M)[1]


def test_the_base_is_one_release_with_the_cuda_of_the_torch_that_is_compiled_against():
    (base,) = of("FROM")
    version, ubuntu = re.fullmatch(r"nvidia/cuda:([\d.]+)-devel-ubuntu([\d.]+)", base).groups()
    assert version == locked("gpu-trainer", "cuda-toolkit")
    # Its C library is the one that the locks were resolved and looked at for, its Python theirs.
    for lock in ("gpu-trainer", "gpu-engine"):
        told = json.loads((ROOT / f"requirements/{lock}.files.json").read_text())
        assert (ubuntu, told["glibc"], told["python"]) == ("24.04", "2.39", "3.12")
    assert "python3.12" in " ".join(of("RUN")).split()


def test_what_is_copied_is_there_and_reaches_the_build():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    allowed = [line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    paths = [path for rest in of("COPY") for path in rest.split()[:-1]]
    assert len(paths) > 10
    for path in paths:
        assert any(f == path or f.startswith(path.rstrip("/") + "/") for f in tracked), path
        assert path.rstrip("/") in allowed or path.split("/")[0] in allowed, path
    assert {a for a in allowed if not any(p.split("/")[0] == a for p in paths)} == set()


def test_both_environments_are_made_by_make_after_what_they_are_made_of():
    steps = instructions()
    made = {t: i for i, (n, rest) in enumerate(steps) if n == "RUN" for t in re.findall(r"make (env-[a-z-]+)", rest)}
    assert list(made) == ["env-gpu-trainer", "env-gpu-engine"]
    before = [path for n, rest in steps[: min(made.values())] if n == "COPY" for path in rest.split()[:-1]]
    # What make looks at, what the package's installation looks at.
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(before) == {
        "Makefile", "pyproject.toml", "requirements/", "r1mega/__init__.py",
        package["readme"], package["license"]["file"],
    }  # fmt: skip
    for target in made:
        subprocess.run(
            ["make", "-n", target], cwd=ROOT, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"}
        )


def test_no_secret_stays_and_no_program_comes_from_the_network():
    said = " ".join(rest for _, rest in instructions())
    assert not re.search(r"token|passw|api_?key|://|curl|wget", said, flags=re.IGNORECASE)
    assert of("ADD") == []
    assert all("--mount=type=secret" in rest for rest in of("RUN") if "make env" in rest)
    # All that needs rights is over when the user changes.
    names = [name for name, _ in instructions()]
    assert of("USER") == ["r1mega"] and not {"RUN", "COPY"} & set(names[names.index("USER") :])


def blocks() -> list[str]:
    return re.findall(r"^```\n(.*?)^```", (FOLDER / "README.md").read_text(), flags=re.M | re.S)


def test_the_readmes_commands_are_commands():
    lines = [line for block in blocks() for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        subprocess.run(["bash", "-n", "-c", line], check=True)
        for word in shlex.split(line):
            option = word.partition("=")[0]
            assert "container" not in option or not option.startswith("-") or option in PYXIS, word
            if fnmatch.fnmatch(word, "[cst]*/*") and "=" not in word:
                assert (ROOT / word).exists(), word
    assert f"rollout.python={MADE}/.venv-gpu-engine/bin/python" in "\n".join(lines)
    assert f"WORKDIR {MADE}" in (FOLDER / "Dockerfile").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda f: str(f.relative_to(ROOT)))
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    if (shellcheck := shutil.which("shellcheck", path=PATH)) is None and not os.environ.get("R1MEGA_CI"):
        pytest.skip("no shellcheck here")
    done = subprocess.run([shellcheck, "-x", "-S", "warning", str(script)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- slurm/rl_stage.sh in a container ------------------------------------------------------------------------

PLACEMENT = "ranks=2\ntrainer=n1\nserver={server}\ntrainer_options=-N1 -n2\nserver_options=-N1 -n1\nunused="
SRUN = """#!/usr/bin/env bash
for word; do [[ $word != --job-name=* ]] || name=${word#*=}; done
printf '%s\\n' "$@" "R1MEGA_PYTHON=$R1MEGA_PYTHON" >"words.$name"
"""
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"--print placement"*) printf '%s\\n' "$PLACEMENT" ;;
  *free_port*) echo 1234 ;;
esac
"""


def steps(tmp_path: Path, server: str, **environment: str) -> dict[str, list[str]]:
    """Words of each srun by its step's name, of a job on Slurm's commands that are stood in for."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    fakes = {
        ".venv/bin/python": PYTHON,
        "bin/srun": SRUN,
        "bin/scontrol": "#!/usr/bin/env bash\necho JobState=RUNNING NodeAddr=10.0.0.1 PreemptTime=None\n",
    }
    for name, text in fakes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_PARTITION": "p", "PLACEMENT": PLACEMENT.format(server=server),
    }  # fmt: skip
    with (tmp_path / "said").open("w") as said:  # no pipe: what watches the job's end would hold it open
        subprocess.run(
            ["bash", "slurm/rl_stage.sh", "a.toml"], cwd=tmp_path, env={**variables, **environment},
            stdout=said, stderr=subprocess.STDOUT, timeout=120, check=True,
        )  # fmt: skip
    return {file.name.partition(".")[2]: file.read_text().splitlines() for file in tmp_path.glob("words.*")}


def test_steps_run_in_the_image(tmp_path):
    inside = f"{MADE}/.venv-gpu-trainer/bin/python"
    found = steps(tmp_path, "n2", R1MEGA_IMAGE="/i/a b.sqsh", R1MEGA_MOUNTS="/data:/data,/w:/w")
    assert set(found) == {"trainer", "rollout"}
    for words in found.values():
        assert "--container-image=/i/a b.sqsh" in words and "--no-container-mount-home" in words
        assert f"--container-mounts={tmp_path}:{tmp_path},/data:/data,/w:/w" in words
        assert f"--container-workdir={tmp_path}" in words
        assert words[-1] == f"R1MEGA_PYTHON={inside}"
        assert {w.partition("=")[0] for w in words if "container" in w.partition("=")[0]} <= PYXIS
    words = found["trainer"]
    assert words[words.index("slurm/rank.sh") + 2] == inside


def test_without_an_image_steps_run_as_ever(tmp_path):
    words = steps(tmp_path, "")["trainer"]
    assert words[words.index("slurm/rank.sh") + 2] == ".venv/bin/python"
    assert not [w for w in words if "container" in w]


def test_a_servers_step_has_the_interpreter_of_the_image(tmp_path):
    """slurm/server.sh, by itself."""
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\ncd "$(dirname "$0")" && printf "%s\\n" "$@" >words && touch over\n')
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "R1MEGA_PYTHON": str(python), "SLURM_PROCID": "1"}
    command = [str(ROOT / "slurm/server.sh"), str(tmp_path), "10.0.0.1,10.0.0.2"]
    subprocess.run(command, env=environment, check=True, timeout=60)
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:2] == ["-m", "r1mega.runtime.process"]
    assert words[3:] == [str(python), "-m", "r1mega.rollout.attendant", str(tmp_path), "1", "10.0.0.2"]
