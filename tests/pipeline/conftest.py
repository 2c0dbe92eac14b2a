"""One vLLM server of a tiny random DeepSeek-V3, shared by all tests of this folder.

A test finds the server with whatever weights, version and layout the one before has left, and sets those it needs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_model import MAX_MODEL_LEN, make_model

from r1mega.config.cluster import RolloutLayout


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from r1mega.rollout.server import Server

    log_file = tmp_path_factory.mktemp("server") / "vllm.log"
    layout = RolloutLayout(kv_cache_gib=0.5)
    with Server(model_dir, layout, max_model_len=MAX_MODEL_LEN, seed=0, log_file=log_file) as server:
        server.wait_ready()
        yield server
