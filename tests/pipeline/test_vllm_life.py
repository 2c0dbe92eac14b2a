"""A real server's own life: it goes with its trainer, and says why it does not start."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import MAX_MODEL_LEN

from r1mega.config.cluster import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.rollout.server import Server
from r1mega.runtime import process

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

TRAINER = """
import sys, time
from pathlib import Path
from r1mega.config.cluster import RolloutLayout
from r1mega.rollout.server import Server
folder, log = map(Path, sys.argv[1:])
server = Server(folder, RolloutLayout(), max_model_len=256, seed=0, log_file=log)
server.wait_ready()
print(server.pid, flush=True)
time.sleep(6000)
"""


def test_no_server_outlives_a_killed_trainer(model_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINER, str(model_dir), str(tmp_path / "vllm.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout
        group = trainer.stdout.readline().strip()
        trainer.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 40 * process.GRACE_S
    while subprocess.run(["pgrep", "-g", group], capture_output=True).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_model_vllm_refuses(model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for file in model_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "none", "vocab_size": 9}')
    log_file = tmp_path / "vllm.log"
    with (
        Server(broken, RolloutLayout(), max_model_len=MAX_MODEL_LEN, seed=0, log_file=log_file) as server,
        pytest.raises(RolloutError, match=r"ended with code 1 (?s:.)*model type `none`"),
    ):
        server.wait_ready()
