"""Groups of the trainer's ranks: kept where nothing changed, ended where it did."""

import subprocess
import sys

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
