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
