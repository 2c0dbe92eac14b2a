"""Rejection sampling at a real vLLM server: every answer is the fleet's own, token by token, and has its outcome."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_model import weight_version

from r1mega.config.cluster import Cluster
from r1mega.data.question import question_id
from r1mega.data.scope import scoped
from r1mega.data.signed_rows import is_intact
from r1mega.data.split import HELD_OUT
from r1mega.data.tokenizer import load_tokenizer
from r1mega.recipe.load import load_recipe
from r1mega.recipe.rejection import Rejection
from r1mega.rollout.engine import Request, SamplingParams, derived_seed
from r1mega.rollout.fleet import Fleet
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, Prompt
from r1mega.stages import rejection

pytestmark = pytest.mark.vllm
CLUSTER = Cluster(device="cpu")
NUM, N = 8, 6
CONFIG = """
stage = "rejection"
seed = 4

[[questions]]
kind = "jsonl"
path = "own.jsonl"
verifier = "none"
domain = "general"

[prompt]
template = "own.jinja"
few_shot = "shots.jsonl"

[answers]
per_question = 6
max_kept = 2

[sampling]
temperature = 1.0
top_p = 1.0
max_new_tokens = 40
stop = [LETTERS]

[verify]
format = "any"
unjudged = "keep"

[filters]
min_tokens = 3
min_language = 0
"""
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
QUESTIONS = [f"Question {i}, and what of it?" for i in range(NUM)]
SHOT = "[user]Is it?[assistant]It is."


class AtTheServer:
    """What `rollout.served.ServedModel` does, over a server that others started, at the weights that it has."""

    def __init__(self, server: Any) -> None:
        self._fleet, self._version = Fleet([server]), int(weight_version(server))

    def serve(self, *_: Any, **__: Any) -> "contextlib.AbstractContextManager[AtTheServer]":
        return contextlib.nullcontext(self)

    def generate(self, requests: Sequence[Request], params: SamplingParams, *, version: int, on_answer: Any) -> Any:
        assert version == 0
        return self._fleet.generate(requests, params, version=self._version, on_answer=on_answer)


@pytest.fixture
def ran(server: Any, model_dir: Path, tmp_path: Path) -> Iterator[tuple[Path, AtTheServer]]:
    rows = ({"question": question} for question in QUESTIONS)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    (tmp_path / "shots.jsonl").write_text('{"question": "Is it?", "response": "It is."}\n')
    letters = ", ".join(f'"{letter}"' for letter in "abcdefghijklmnopqrstuvwxyz")
    text = CONFIG.replace("LETTERS", letters) + f'\n[model]\npath = "{model_dir}"\n'
    (tmp_path / "rejection.toml").write_text(text)
    recipe, at = load_recipe(tmp_path / "rejection.toml"), AtTheServer(server)
    assert isinstance(recipe, Rejection)
    run_dir = RunDir(tmp_path / "run", recipe, CLUSTER, resume=False)
    try:
        rejection.run(recipe, CLUSTER, run_dir, serve=at.serve)
    finally:
        run_dir.close()
    yield tmp_path / "run", at


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def expected(at: AtTheServer, tokenizer: Any, questions: dict[str, str]) -> dict[tuple[str, int], Completion]:
    """The fleet's answers to the prompts as they are written by hand here."""
    from r1mega.buffers import Int32s

    params = SamplingParams(1.0, 40, top_p=1.0, stop=tuple("abcdefghijklmnopqrstuvwxyz"))
    texts = {id: f"{SHOT}[user]{question}" for id, question in questions.items()}
    ids = {id: Int32s(tokenizer(text, add_special_tokens=False)["input_ids"]) for id, text in texts.items()}
    asked = [Request(Prompt(id, "none", "", "", ids[id]), N, derived_seed(4, "rejection", 0, id)) for id in ids]
    answers = at.generate(asked, params, version=0, on_answer=None)
    return {(one.prompt_id, one.index): one for group in answers for one in group}


def test_every_answer_is_the_fleets_and_has_its_outcome(ran: tuple[Path, AtTheServer], model_dir: Path):
    folder, at = ran
    decided, rows = read(folder, "decisions.jsonl"), read(folder, "rows.jsonl")
    asked = [text for text in QUESTIONS if text not in HELD_OUT]
    fleet = expected(at, load_tokenizer(model_dir), {question_id("none", text): text for text in asked})
    assert len(decided) == len(fleet) == N * len(asked) and len(asked) > 2
    for row in decided:
        answer = fleet[row["question"], row["index"]]
        assert row["tokens"] == len(answer.token_ids)
        assert row["text_sha256"] == hashlib.sha256(answer.text.encode()).hexdigest()
        if answer.truncated:
            assert row["outcome"] == "truncated"
        elif scoped(answer.text, "summary") is None:
            assert row["outcome"] == "no_summary"
        elif len(answer.token_ids) < 3:
            assert row["outcome"] == "too_short"
        else:
            assert row["outcome"] in ("kept", "enough", "double")
    outcomes = [row["outcome"] for row in decided]
    assert outcomes.count("truncated") and outcomes.count("kept") == len(rows) <= 2 * NUM
    summary = json.loads((folder / "summary.json").read_text())["rejection"]
    assert summary["domains"]["general"] == {name: outcomes.count(name) for name in set(outcomes)}
    for row in rows:
        of = row["provenance"]
        assert is_intact(row) and of["policy"]["asked_as"] == f"{SHOT}[user]{{question}}"
        assert row["messages"][1]["content"] == fleet[of["question"]["id"], of["answer"]["index"]].text
