"""Runs of the preferences stage against a real HTTP server that answers and judges by rules worked out here."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from endpoint_server import EndpointServer

from r1mega.config.cluster import Cluster
from r1mega.data.split import HELD_OUT
from r1mega.recipe.load import load_recipe
from r1mega.recipe.preferences import MakePreferences
from r1mega.runtime.run_dir import RunDir

CLUSTER = Cluster(device="cpu")
NUM_QUESTIONS = 10
CONFIG = """
stage = "preferences"

[sampling]
max_new_tokens = 50

[[questions]]
kind = "jsonl"
path = "own.jsonl"
verifier = "none"
domain = "helpful"

[answers]
per_question = 4

[pairs]
per_question = 2

[endpoint]
url = "URL"
model = "policy"
first_wait_s = 0.01
longest_wait_s = 0.02

[judge.endpoint]
url = "URL"
model = "judge"
api_key_env = "A_KEY"
first_wait_s = 0.01
longest_wait_s = 0.02
"""


QUESTIONS = [f"Question number {i}, what do you say?" for i in range(10, 10 + NUM_QUESTIONS)]
NUM_ASKED = sum(question not in HELD_OUT for question in QUESTIONS)


SALT = 4


def drawn(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def answer(body: dict[str, Any]) -> str:
    """A thought, and a summary of a quality from 0 to 4 that follows from question and seed; longer by chance."""
    draw = drawn(SALT, body["messages"][-1]["content"], body["seed"])
    return f"<think>let me see</think>\nQuality {draw % 5}" + "." * (draw // 5 % 40)


def quality(text: str) -> int:
    return int((re.findall(r"Quality (\d)", text) or ["0"])[-1])


def verdict(first: str, second: str) -> str:
    """By quality alone: much better from two up."""
    more = quality(first) - quality(second)
    return {-2: "B>>A", -1: "B>A", 0: "A=B", 1: "A>B", 2: "A>>B"}[max(-2, min(2, more))]


def shown(body: dict[str, Any]) -> tuple[str, ...]:
    """The texts that a judge is given: question, and one answer or two, as they were framed."""
    text = body["messages"][-1]["content"]
    return tuple(
        found[1] for found in re.findall(r"=== [^\n]* begins (\w+) ===\n(.*?)\n=== [^\n]* ends \1 ===", text, re.S)
    )


def judge(body: dict[str, Any]) -> str:
    """A comparison, or a mark: safe from quality 2 up."""
    _, *answers = shown(body)
    if len(answers) == 1:
        return f"So it is.\n[[{'safe' if quality(answers[0]) >= 2 else 'unsafe'}]]"
    return f"I compare.\n[[{verdict(*answers)}]]"


def say(body: dict[str, Any]) -> str:
    return judge(body) if body["model"] == "judge" else answer(body)


def write(folder: Path, server: EndpointServer, config: str = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    rows = ({"question": question} for question in QUESTIONS)
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pairs.toml").write_text(config.replace("URL", server.url))
    return folder / "pairs.toml"


def run(config: Path, folder: Path, *overrides: str, resume: bool = False) -> None:
    """The stage, in this process."""
    from r1mega.stages import preferences

    recipe = load_recipe(config, overrides)
    assert isinstance(recipe, MakePreferences)
    run_dir = RunDir(folder, recipe, CLUSTER, resume=resume)
    try:
        preferences.run(recipe, CLUSTER, run_dir)
    finally:
        run_dir.close()


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def made(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["preference_data"]
