"""Kept answers made readable by a folder that our own server serves, once the answers are there."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpo_run import base
from one_pool import this_process_pool
from preference_run import rows
from rejection_run import CLUSTER, CONFIG, Server, made, write
from rewrite_run import ALL, FIRST, KEPT, say

from r1mega.buffers import Float32s, Int32s
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import ConfigError, DataError
from r1mega.preflight.look import look
from r1mega.recipe.load import load_recipe
from r1mega.recipe.rejection import Rejection
from r1mega.rollout.command import ServerPlace
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, FinishReason

__all__ = ["base"]  # a fixture

ROOT = Path(__file__).parents[2]
LAPTOP = str(ROOT / "configs/cluster/laptop.toml")
POSITIONS = 9000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server(say) as server:
        yield server


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A model that has room for what it is asked, and a chat template."""
    folder = tmp_path / "rewriter"
    shutil.copytree(base, folder)
    shutil.copy(ROOT / "configs/chat_templates/qwen.jinja", folder / "chat_template.jinja")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    return folder


def table(folder: Path, max_tokens: int = 64) -> str:
    return f'\n[rewrite]\nmodel = "{folder}"\nmax_tokens = {max_tokens}\n'


class Engine:
    """What `rollout.served.ServedModel` does; the model says what the tests' server would."""

    def __init__(self, tokenizer: Any, stop_after: int = -1) -> None:
        self.tokenizer, self.stop_after, self.texts, self.made = tokenizer, stop_after, list[str](), dict[str, Any]()

    def serve(self, model_dir: Path, layout: Any, **options: Any) -> "Engine":
        self.made = {"model_dir": model_dir, **options}
        return self

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None: ...

    def generate(self, requests: Any, params: Any, *, version: int, on_answer: Any) -> None:
        for place, request in enumerate(requests):
            self.texts.append(self.tokenizer.decode(list(request.prompt.token_ids)))
            said = say({"model": "rewriter", "messages": [{"content": self.texts[-1]}]})
            ids, logp = Int32s([5, 6]), Float32s([-1.0, -1.0])
            on_answer(place, (Completion("", 0, ids, logp, said, FinishReason.STOP, 0, request.seed),))
            if len(self.texts) == self.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)


def run(config: Path, run_dir: Path, engine: Engine, *, resume: bool = False) -> None:
    from r1mega.stages import rejection

    recipe = load_recipe(config, ALL)
    assert isinstance(recipe, Rejection)
    at = RunDir(run_dir, recipe, CLUSTER, resume=resume)
    try:
        rejection.run(recipe, CLUSTER, at, serve=engine.serve, pool=this_process_pool)
    finally:
        at.close()


def test_a_folder_rewrites_and_goes_on_after_a_signal(server: Server, folder: Path, tmp_path: Path):
    config, tokenizer = write(tmp_path, server, CONFIG + table(folder)), load_tokenizer(folder)
    stopped, engine = Engine(tokenizer, stop_after=2), Engine(tokenizer)
    with pytest.raises(Interrupted, match="continue with --resume"):
        run(config, tmp_path / "run", stopped)
    run(config, tmp_path / "run", engine, resume=True)
    assert engine.made["max_model_len"] == POSITIONS and engine.made["model_dir"] == folder
    assert engine.made["log_file"].name == "rewriter_vllm.log" and engine.made["places"] == (ServerPlace(),)
    asked = stopped.texts + engine.texts
    assert len(asked) == 6 and all(text.startswith("<|im_start|>system\nYou edit") for text in asked)
    of = made(tmp_path / "run")["rewrite"]
    became = list(KEPT.values())
    assert of["by"] == "model" and of["outcomes"] == {one: became.count(one) for one in became}
    assert of["asked"]["asked"] == 6 and of["asked"]["cached"] == len(stopped.texts) >= 2  # a signal takes its time
    ids = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in engine.texts)
    assert of["asked"]["tokens"] == ids + 2 * len(engine.texts)  # two tokens an answer, in this process
    (row,) = (row for row in rows(tmp_path / "run", "rows.jsonl") if row["messages"][1]["content"] == FIRST)
    rewritten = row["provenance"]["rewrite"]
    assert rewritten["model"] == str(folder) and len(rewritten["digest"]) == 32


def test_a_stage_serves_what_judges_or_rewrites_beside_an_endpoint(server: Server, folder: Path, tmp_path: Path):
    """So that its memory, its GPUs and the server of its chain are counted with."""
    judged = CONFIG.partition("[verify.judge.endpoint]")[0] + f'[verify.judge]\nmodel = "{folder}"\n'
    for text, serves in ((CONFIG, False), (CONFIG + table(folder), True), (judged, True)):
        recipe = load_recipe(write(tmp_path, server, text))
        assert (recipe.serves, recipe.holds().engine) == (serves, serves)


def test_a_look_at_a_folder_that_rewrites(server: Server, folder: Path, tmp_path: Path):
    config = write(tmp_path, server, CONFIG + table(folder))
    assert look(config, LAPTOP).absent == () and server.bodies == []
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has no chat template"):
        look(config, LAPTOP)
    config = write(tmp_path, server, CONFIG + table(folder, max_tokens=POSITIONS))
    with pytest.raises(ConfigError, match=r"rewrite.max_tokens: 9,000 of 9,000 tokens that its server takes"):
        look(config, LAPTOP)
