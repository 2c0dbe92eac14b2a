"""A server that cannot start says why, before or while it starts."""

import importlib.util
import json
import socket
import sys
import time
from pathlib import Path

import pytest

from r1mega.config.schema import RolloutLayout
from r1mega.errors import RolloutError
from r1mega.rollout.server import Server


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 512, "kv_lora_rank": 64}))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def start(model_dir: Path, layout: RolloutLayout | None = None) -> Server:
    log = model_dir / "vllm.log"
    return Server(model_dir, layout or RolloutLayout(), max_model_len=64, seed=0, log_file=log)


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


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_incomplete_folder(model_dir: Path, name: str) -> None:
    (model_dir / name).unlink()
    with pytest.raises(RolloutError, match=name):
        start(model_dir)


def test_early_death_shows_the_log_of_this_start(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model_dir / "vllm.log").write_text("from an earlier run\n")
    runs(monkeypatch, "print('out of cheese'); raise SystemExit(3)")
    with start(model_dir) as server, pytest.raises(RolloutError, match="ended with code 3") as caught:
        server.wait_ready()
    assert "out of cheese" in str(caught.value) and "earlier run" not in str(caught.value)
    assert not server.alive()


def test_deadline_stops_the_server(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, "import time; time.sleep(60)")
    server = start(model_dir, RolloutLayout(start_timeout_s=0.5))
    assert server.alive()
    with pytest.raises(RolloutError, match=r"not ready after 0\.5 s"):
        server.wait_ready()
    assert not server.alive()


def test_stop_is_quick_and_may_be_repeated(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, "import time; time.sleep(60)")
    with start(model_dir) as server:
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 3
    assert not server.alive()


def test_command_line(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that correctness hangs on."""
    command = Server._command
    runs(monkeypatch, "import time; time.sleep(60)")
    with start(model_dir, RolloutLayout(tp=1, kv_cache_gib=0.5)) as server:
        plain = " ".join(command(server, 4096, 0, False))
        assert "--logprobs-mode processed_logprobs" in plain
        assert "--no-enable-chunked-prefill" in plain and "--max-num-batched-tokens 4096" in plain
        assert '"-rotary_embedding"' in plain and "--block-size 32" in plain
        assert f"--kv-cache-memory-bytes {2**29}" in plain
        assert "--block-size 16" in " ".join(command(server, 64, 0, True))
        assert server._environment(mla=False)["VLLM_MLA_DISABLE"] == "1"
