"""One emulated cluster for all tests of this folder, and scratch checkouts to submit from."""

import getpass
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulated_slurm import Slurm, missing

ROOT = Path(__file__).parents[2]
SHORT = {
    "0_base.toml": {"num_steps": 8, "documents_per_step": 16, "num_documents": 400, "warmup_steps": 2},
    "0_anneal.toml": {"num_steps": 2, "documents_per_step": 16, "num_documents": 400, "warmup_steps": 1},
    "1_rl.toml": {
        "num_steps": 4, "num": 16, "num_prompts": 4, "num_minibatches": 2, "group_size": 4,
        "max_new_tokens": 16, "warmup_steps": 1, "samples_per_question": 1, "constant_groups": '"keep"',
    },
}  # fmt: skip
"""What the tests change in the tiny configs, so that a stage takes seconds. So young a base is never right, and all
its groups are constant."""


PYTHON = """#!/usr/bin/env bash
# In place of .venv/bin/python: free_port answers at once, r1mega run is the test's own program.
case "$*" in
  *" check "* | *" launch "*) exec {python} "$@" ;;
  *free_port*) echo 23456 ;;
  *r1mega.runtime.node_check*) echo bad= ;;
  *r1mega.runtime.process*) exec python3 "$@" ;;
  *r1mega.rollout.attendant*) exec {python} "$@" ;;
  *) source ./trainer.sh ;;
esac
"""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of three nodes. Where it cannot be had, tests are skipped, and fail where CI runs them."""
    reason = ""
    if absent := missing():
        reason = f"Slurm is not installed here ({', '.join(absent)}); `make system-deps` does that"
    elif getpass.getuser() != "root":
        reason = "Slurm's daemons start jobs as other users, which takes root"
    if reason:
        (pytest.fail if os.environ.get("CI") or os.environ.get("R1MEGA_CI") else pytest.skip)(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"), num_nodes=3)
    try:
        cluster.wait_ready()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def make_checkout() -> Callable[[Path], Path]:
    """Makes a folder that slurm/rl_stage.sh takes for the repository: this package and environment, own configs."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        for name in ("configs", "slurm"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / "r1mega").symlink_to(ROOT / "r1mega")
        (folder / ".venv").symlink_to(sys.prefix)
        for name, settings in SHORT.items():
            shorten(folder / "configs/tiny/r1_zero" / name, settings)
        for name in ("laptop", "laptop2"):
            with (folder / f"configs/cluster/{name}.toml").open("a") as cluster:
                cluster.write("start_timeout_s = 600\n")  # of the last section, the rollout's; for a busy machine
                cluster.write("[environment.checks]\nall_reduce = false\n")  # test_slurm_nodes.py has one
        return folder

    return make


@pytest.fixture(scope="session")
def stub(make_checkout: Callable[[Path], Path]) -> Callable[..., Path]:
    """Makes a checkout whose `r1mega run` is lines of shell, with a stage a.toml and a cluster file c."""

    def make(
        parent: Path, trainer: str, num_ranks: int = 1, config: str = "configs/tiny/r1_zero/0_base.toml"
    ) -> Path:
        folder = make_checkout(parent / "checkout")
        (folder / ".venv").unlink()
        python = folder / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(PYTHON.format(python=sys.executable))
        python.chmod(0o755)
        text = (
            (folder / config)
            .read_text()
            .replace('"../deepseek_v3.json"', f'"{folder}/configs/tiny/deepseek_v3.json"')
        )
        (folder / "a.toml").write_text(text)
        (folder / "configs/cluster/c.toml").write_text(f'device = "cpu"\n[trainer]\ndp = {num_ranks}\n')
        (folder / "trainer.sh").write_text(trainer)
        return folder

    return make


def shorten(config: Path, settings: dict[str, int | str]) -> None:
    lines = config.read_text().splitlines()
    for key, value in settings.items():
        places = [i for i, line in enumerate(lines) if line.startswith(f"{key} = ")]
        assert places, f"{config.name} has no {key}"
        for i in places:
            lines[i] = f"{key} = {value}"
    config.write_text("\n".join(lines) + "\n")
