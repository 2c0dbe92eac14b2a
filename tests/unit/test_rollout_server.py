"""A server that cannot start says why, before or while it starts; one that fails or freezes can be restarted."""

import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from r1mega.config.cluster import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.rollout import calls
from r1mega.rollout import server as server_module
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.installed import fault_of
from r1mega.rollout.server import PORTS, Server
from r1mega.runtime import process

FOR_EVER = "import time; time.sleep(600)"
NEVER_S = 1e6
"""A grace that a test cannot wait out: what comes back did not wait for its end."""


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 512, "kv_lora_rank": 64}))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def start(
    model_dir: Path, layout: RolloutLayout | None = None, max_model_len: int = 64, place: ServerPlace | None = None
) -> Server:
    layout, log = layout or RolloutLayout(), model_dir / "vllm.log"
    return Server(model_dir, layout, max_model_len=max_model_len, seed=0, log_file=log, place=place or ServerPlace())


def runs(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Start this Python program in vLLM's place."""
    monkeypatch.setattr(Server, "_command", lambda *_: [sys.executable, "-c", program])


def test_busy_port_is_named_before_anything_starts(model_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RolloutError, match=rf"port {port} .*Set rollout\.port to 0"):
            start(model_dir, RolloutLayout(port=port))
    assert not (model_dir / "vllm.log").exists()


def test_missing_vllm(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RolloutError, match=r"vLLM is not installed .*pip install"):
        start(model_dir)


CUDA = ServerPlace(device="cuda")


def test_a_build_of_vllm_is_not_given_another_devices_arguments(model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RolloutError, match=r"cluster\.device = cuda: the vLLM installed in .* is the one for CPUs"):
        start(model_dir, place=CUDA)
    monkeypatch.setattr(importlib.metadata, "version", {"vllm": "0.32.0"}.__getitem__)
    with pytest.raises(RolloutError, match=r"one for GPUs, and the cluster file's servers compute on the CPU"):
        start(model_dir)
    assert not (model_dir / "vllm.log").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo cuda", None),
        ("echo cpu", r"the vLLM installed in the environment of .* \(cluster\.rollout\.python\) is the one for CPUs"),
        ("echo", r"vLLM is not installed in the environment of .*requirements/gpu-engine\.lock"),
        (
            "echo no such module >&2; exit 1",
            r"cluster\.rollout\.python: .* does not answer as a Python does: no such",
        ),
        (None, r"cluster\.rollout\.python: .* does not answer as a Python does: .*No such file"),
    ],
)
def test_the_engines_own_environment_is_asked_which_vllm_it_has(
    tmp_path: Path, program: str | None, said: str | None
):
    python = tmp_path / "python"
    if program is not None:
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
    fault = fault_of(RolloutLayout(python=str(python)), "cuda")
    assert fault is None if said is None else re.search(said, str(fault))


def test_another_environment_is_asked_as_this_one_is(monkeypatch: pytest.MonkeyPatch):
    here = fault_of(RolloutLayout(), "cuda")
    assert "the one for CPUs" in str(here) and "one for CPUs" in str(
        fault_of(RolloutLayout(python=sys.executable), "cuda")
    )
    assert fault_of(RolloutLayout(), "cpu") is None


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_incomplete_folder(model_dir: Path, name: str) -> None:
    (model_dir / name).unlink()
    with pytest.raises(RolloutError, match=name):
        start(model_dir)


LOG = """\
(APIServer pid=1) WARNING 11-29 19:03:32 [system_utils.py:255] This can cause fd limit errors like `OSError: busy`.
(EngineCore pid=2) ERROR 11-29 19:06:46 [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=2) ERROR 11-29 19:06:46 [core.py:1512] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-29 19:06:46 [core.py:1512]   File "_ops.py", line 1279, in __call__
(EngineCore pid=2) ERROR 11-29 19:06:46 [core.py:1512]     raise RuntimeError: no
(EngineCore pid=2) ERROR 11-29 19:06:46 [core.py:1512] RuntimeError: Unsupported CPU attention: head_dim=16
(APIServer pid=1) ERROR 11-29 19:06:46 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encoun
"""
"""As vLLM 0.32 writes it, for a model of heads of 16 channels."""


def test_the_error_of_a_log_is_the_engines_own() -> None:
    said = "RuntimeError: Unsupported CPU attention: head_dim=16"
    assert server_module.cause_in(LOG) == server_module.cause_in(LOG, engine=True) == said
    front = "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error\n"
    assert server_module.cause_in(front) == "pydantic_core._pydantic_core.ValidationError: 1 validation error"
    assert server_module.cause_in(front, engine=True) is None
    assert server_module.cause_in("AttributeError: module 'networkx' has no attribute 'DiGraph'\n", engine=True)
    killed = LOG[: LOG.index("(EngineCore")] + LOG[LOG.rindex("(APIServer") :]
    assert server_module.cause_in(killed) is None  # nothing of its own: it may come back


def test_early_death_names_the_error_first(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, "raise NotImplementedError('no kernel')")
    with (
        start(model_dir) as server,
        pytest.raises(RolloutError, match=r"NotImplementedError: no kernel\. The end"),
    ):
        server.wait_ready()
    assert server.cause() == "NotImplementedError: no kernel"


def test_early_death_shows_the_log_of_this_start(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model_dir / "vllm.log").write_text("from an earlier run\n")
    runs(monkeypatch, "print('out of cheese'); raise SystemExit(3)")
    with start(model_dir) as server, pytest.raises(RolloutError, match="ended with code 3") as caught:
        server.wait_ready()
    assert "out of cheese" in str(caught.value) and "earlier run" not in str(caught.value)
    assert not server.alive()


def test_deadline_stops_the_server(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, FOR_EVER)
    server = start(model_dir, RolloutLayout(start_timeout_s=0.5))
    assert server.alive()
    with pytest.raises(RolloutError, match=r"not ready after 0\.5 s"):
        server.wait_ready()
    assert not server.alive()


@pytest.mark.timeout(300)  # half of what the programs sleep
def test_stop_is_quick_and_may_be_repeated(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the processes, and not when they have had their grace."""
    monkeypatch.setattr(server_module, "STOP_GRACE_S", NEVER_S)
    runs(monkeypatch, FOR_EVER)
    with start(model_dir) as server:
        server.stop()
    assert not server.alive()


@pytest.mark.parametrize(
    ("name", "too_few", "enough"),
    [
        pytest.param("VLLM_MAX_STOP_STRINGS", 26, 100_000, id="any number of stop strings is taken"),
        pytest.param("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 10, 60 * calls.KEEPALIVE_S, id="clients end idle connections"),
    ],
)
def test_a_limit_of_the_server_is_lifted(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, too_few: int, enough: float
) -> None:
    """As vLLM reads its environment, in a file that needs nothing else of it."""
    runs(monkeypatch, FOR_EVER)
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None and vllm.origin is not None
    if not (file := Path(vllm.origin).with_name("envs.py")).exists():
        pytest.skip("a stand-in for vLLM (tests/without_vllm)")
    limit = runpy.run_path(str(file))["environment_variables"][name]
    monkeypatch.delenv(name, raising=False)
    assert limit() < too_few
    with start(model_dir) as server:
        monkeypatch.setenv(name, server._environment()[name])
    assert limit() > enough


def test_command_line(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server is of reaches its command line; the rest: test_rollout_command.py."""
    command = Server._command
    runs(monkeypatch, FOR_EVER)
    with start(model_dir, RolloutLayout(tp=1, kv_cache_gib=0.5), max_model_len=4096) as server:
        plain = " ".join(command(server))
        assert f"--model {model_dir} " in plain and "--max-model-len 4096" in plain and "--seed 0" in plain
        assert f"--host 127.0.0.1 --port {server.port}" in plain and server.port in PORTS
        assert server._environment()["VLLM_MLA_DISABLE"] == "1" and "--block-size 32" in plain
        (model_dir / "config.json").write_text(json.dumps({"kv_lora_rank": 512, "qk_rope_head_dim": 64}))
        assert "--block-size 16" in " ".join(command(server))
        server.host = "node2"
        assert "--host 0.0.0.0" in " ".join(command(server)) and server.url == f"http://node2:{server.port}"
        server.host = "fd00::2"
        assert "--host ::" in " ".join(command(server)) and server.url == f"http://[fd00::2]:{server.port}"
        server.place = ServerPlace(device="cuda", gpus=(1,))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
        assert "--hf-overrides" in command(server) and server._environment()["CUDA_VISIBLE_DEVICES"] == "5"


# ---- restarts -----------------------------------------------------------------------------------------------

VLLM = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(b'{"world_size": 1}')
    do_POST = do_GET
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""What `wait_ready` and `healthy` need of vLLM."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "_command", lambda self: [sys.executable, "-c", VLLM, str(self.port)])


def freeze(server: Server) -> None:
    """SIGSTOP for the whole group, as a debugger or a full disk might."""
    os.killpg(server.pid, signal.SIGSTOP)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("fake")
def test_a_frozen_server_is_noticed_and_restarted(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STOP_GRACE_S", NEVER_S)  # which a frozen one would use up
    with start(model_dir) as server:
        server.wait_ready()
        assert server.healthy(100.0)
        first = (server.pid, server.incarnation)
        freeze(server)
        begin = time.monotonic()
        assert not server.healthy(0.5)
        seconds = server.restart("frozen")
        assert server.alive() and server.healthy(100.0) and server.incarnation == first[1] + 1
        assert 0 < seconds < time.monotonic() - begin
        with pytest.raises(ProcessLookupError):
            os.kill(first[0], 0)
    assert not server.alive() and not server.healthy(1.0)


@pytest.mark.usefixtures("fake")
def test_a_configured_port_is_kept_and_a_free_one_chosen_anew(model_dir: Path) -> None:
    with start(model_dir) as free:
        port = free.port
        free.wait_ready()
        free.restart("test")
        assert free.port in PORTS and free.url.endswith(str(free.port))
    while not process.port_is_free(port):  # the kernel may keep it for a moment
        time.sleep(0.02)
    with start(model_dir, RolloutLayout(port=port)) as fixed:
        fixed.wait_ready()
        freeze(fixed)
        fixed.restart("test")
        assert fixed.port == port and fixed.healthy(100.0)


@pytest.mark.usefixtures("fake")
def test_a_server_of_another_number_of_ranks_is_refused_at_once(model_dir: Path) -> None:
    """Weights would be sent to ranks that are not there."""
    with start(model_dir, RolloutLayout(tp=2, dp=3)) as server:
        assert server.world_size == 6
        with pytest.raises(RolloutError, match=r"has 1 rank\(s\), and cluster\.rollout\.tp = 2 x dp = 3 make 6"):
            server.wait_ready()
        assert not server.alive()


@pytest.mark.usefixtures("fake")
def test_a_dead_server_is_restarted(model_dir: Path) -> None:
    with start(model_dir) as server:
        server.wait_ready()
        os.killpg(server.pid, signal.SIGKILL)
        server.restart("killed")
        assert server.healthy(100.0)


def test_a_restart_that_fails_may_be_tried_again(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = FOR_EVER
    monkeypatch.setattr(Server, "_command", lambda self: [sys.executable, "-c", program, str(self.port)])
    with start(model_dir, RolloutLayout(start_timeout_s=1)) as server:
        with pytest.raises(RolloutError, match="not ready after 1 s"):
            server.restart("first")
        program = VLLM
        server.layout = RolloutLayout(start_timeout_s=300)
        server.restart("second")
        assert server.healthy(100.0)


def test_stop_ends_a_restart_that_is_under_way(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer is leaving: nothing may be started after it."""
    runs(monkeypatch, FOR_EVER)
    errors: list[str] = []

    def restart() -> None:
        try:
            server.restart("test")
        except RolloutError as error:
            errors.append(str(error))

    with start(model_dir) as server:
        thread = threading.Thread(target=restart)
        thread.start()
        while server.incarnation == 1:
            time.sleep(0.01)
    thread.join(300)
    assert errors and not thread.is_alive() and not server.alive()
    with pytest.raises(RolloutError, match="will not start again"):
        server.restart("after the end")


@pytest.mark.usefixtures("fake")
def test_a_launcher_comes_first(model_dir: Path) -> None:
    with start(model_dir, RolloutLayout(launch=("nice", "-n", "3"))) as server:
        server.wait_ready()
        assert server.port in PORTS
        command = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")
        assert command[4:8] == ["nice", "-n", "3", sys.executable]
        server.restart("test")
        assert server.healthy(100.0)
    with socket.create_server(("127.0.0.1", 0)) as other:  # on the launcher's host the port may be free
        start(model_dir, RolloutLayout(launch=("true",), port=other.getsockname()[1])).stop()


def test_a_host_that_is_not_this_one_needs_a_launcher(model_dir: Path) -> None:
    with pytest.raises(RolloutError, match=r"of 192\.0\.2\.7 can be listened on .*rollout\.launch"):
        start(model_dir, RolloutLayout(host="192.0.2.7"))
