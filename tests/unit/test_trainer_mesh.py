"""Groups of the trainer's ranks: kept where nothing changed, ended where it did."""

import subprocess
import sys

import torch

from r1mega.config.cluster import TrainerLayout

COUNT = """
import os
from r1mega.config.cluster import TrainerLayout
from r1mega.trainer import mesh
for timeout_s in (600.0, 600.0, 500.0, 400.0):
    mesh.start(TrainerLayout(threads=1, collective_timeout_s=timeout_s), device="cpu", seed=0)
    print(len(os.listdir("/proc/self/task")))
mesh.stop()
print(len(os.listdir("/proc/self/task")))
"""


def test_a_mesh_that_is_started_again_adds_no_threads():
    """Each of Megatron's groups has three of gloo's, so a process that starts many stages would be full of them."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COUNT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *again, stopped = map(int, done.stdout.split())
    assert again == [first] * 3
    assert stopped < first


FILES = """
import resource
from r1mega.runtime import resources
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
from r1mega.config.cluster import TrainerLayout
from r1mega.trainer import mesh
mesh.start(TrainerLayout(threads=1), device="cpu", seed=0)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
from megatron.core import parallel_state
print(*(name for name, group in vars(parallel_state).items() if name.endswith("_GLOO") and group is not None))
"""


def test_ranks_may_open_all_files_and_megatron_makes_no_groups_beside_its_own():
    """Of 512 ranks, each has a socket to every member of each of its groups; 64 files are enough to import torch."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_a_deterministic_layout_says_so_before_the_device_is_used(mesh, monkeypatch):
    """To Transformer Engine, cuBLAS, PyTorch and Megatron; another layout says nothing."""
    import os

    from r1mega.trainer import mesh as meshes
    from r1mega.trainer.precision import model_fields

    variables = "NVTE_ALLOW_NONDETERMINISTIC_ALGO", "CUBLAS_WORKSPACE_CONFIG"
    for variable in variables:
        monkeypatch.setenv(variable, "as it was")
    seen = []

    def device(_):
        seen.append(([os.environ[v] for v in variables], torch.are_deterministic_algorithms_enabled()))

    monkeypatch.setattr(meshes, "_device", lambda layout, name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", device)
    monkeypatch.setattr(meshes, "_join", lambda layout, backend: None)
    monkeypatch.setattr(meshes, "_form", lambda layout, device: None)
    try:
        for deterministic in (False, True):
            meshes.start(TrainerLayout(deterministic=deterministic), device="cuda", seed=0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [(["as it was"] * 2, False), (["0", ":4096:8"], True)]
    assert model_fields(TrainerLayout(deterministic=True))["deterministic_mode"]
    assert "deterministic_mode" not in model_fields(TrainerLayout())


def test_nccl_is_given_longer_than_the_watchdog_and_a_users_own_wish_stays(monkeypatch):
    import os

    from r1mega.trainer import mesh as meshes

    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "7")
    for name in ("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.setenv(name, "gone at the end")
        monkeypatch.delenv(name)
    found = []
    monkeypatch.setattr(meshes, "_device", lambda layout, name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: found.append(dict(os.environ)))
    monkeypatch.setattr(meshes, "_join", lambda layout, backend: None)
    monkeypatch.setattr(meshes, "_form", lambda layout, device: None)
    meshes.start(TrainerLayout(collective_timeout_s=900), device="cuda", seed=0)
    said = {name: value for name, value in found[0].items() if name.startswith("TORCH_NCCL_")}
    assert said == {
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "990", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "7",
    }  # fmt: skip
