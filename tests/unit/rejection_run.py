"""Runs of the rejection stage against a real HTTP server, whose answers are written by hand, each for one outcome."""

import json
from pathlib import Path
from typing import Any

from endpoint_server import EndpointServer
from one_pool import this_process_pool
from own_questions import TRAINED
from preference_run import shown

from r1mega.config.cluster import Cluster
from r1mega.data.question import question_id
from r1mega.recipe.load import load_recipe
from r1mega.recipe.rejection import Rejection
from r1mega.rollout.engine import derived_seed
from r1mega.runtime.run_dir import RunDir

CLUSTER = Cluster(device="cpu")
CONFIG = """
stage = "rejection"

[sampling]
temperature = 1.0
max_new_tokens = 80

[[questions]]
kind = "jsonl"
path = "sums.jsonl"
verifier = "math"

[[questions]]
kind = "jsonl"
path = "general.jsonl"
verifier = "none"
domain = "general"

[answers]
per_question = 15
max_kept = 2

[verify]
format = "r1"

[filters]
min_tokens = 5
max_tokens = 60
max_paragraph_words = 20

[thinking]
domains = ["general"]
simple_words = 1

[endpoint]
url = "URL"
model = "policy"
first_wait_s = 0.01
longest_wait_s = 0.02

[verify.judge.endpoint]
url = "URL"
model = "judge"
first_wait_s = 0.01
longest_wait_s = 0.02
"""
SUM = TRAINED[0]
CUT = "[CUT]"
BOX = "</think> So it is \\boxed{1}."
RIGHT = f"<think>One plus nought is one.{BOX}"
MADE: dict[str, list[tuple[str, str]]] = {
    SUM: [
        ("kept or enough", RIGHT),
        ("wrong", "<think>One plus nought is two.</think> So it is \\boxed{2}."),
        ("truncated", f"<think>One plus nought is one.{BOX}{CUT}"),
        ("no_summary", "<think>One plus nought is one, or is it not? It is"),
        ("unformatted", "So it is, as anybody can see, \\boxed{1}."),
        ("too_short", "<think>Yes.</think> \\boxed{1}"),
        ("too_long", f"<think>One.{BOX}" + "\n" + " ".join(f"word{i}" for i in range(60))),
        ("repetition", "<think>" + "one two three four " * 10 + BOX),
        ("long_paragraph", "<think>Now " + " ".join(f"and {i} more" for i in range(8)) + BOX),
        ("code_block", f"<think>I write a program.\n```python\nprint(1)\n```\n{BOX}"),
        ("mixed_languages", f"<think>One plus nought 等于一，没有别的可能。{BOX}"),
        ("double", f"{RIGHT} "),
        ("kept or enough", f"<think>Nought adds nothing at all to it.{BOX}"),
        ("kept or enough", f"<think>One is what is left when nothing comes.{BOX}"),
        ("wrong", f"<think>One plus nought is one.</think> So it is one of {' '.join('234567')}."),
    ],
    "Who wrote it?": [
        ("kept or enough", "<think>I think it was her.</think> Mary Shelley"),
        ("wrong", "<think>I think it was him.</think> Lord Byron"),
        ("unscorable", "<think>I think I am mumbling now.</think> Mumble"),
        ("failed", "<think>I think it all breaks now.</think> Breaks"),
        *[("wrong", f"<think>I think it was number {i}.</think> Nobody {i}") for i in range(11)],
    ],
    "hello": [
        ("kept or enough", "<think>\nThe user greets me now.\n</think>\n\nHello there"),
        ("double", "<think>\nThey say hello to me.\n</think>\n\nHello there"),
        ("kept or enough", "<think>\n```ls``` is what I think of.\n</think>\n\nHi you all"),
        *[("wrong", f"<think>I think it was number {i}.</think> Nobody {i}") for i in range(12)],
    ],
}
"""Question -> of each of its answers what becomes of it, and its text."""
TRUTHS = {SUM: "1", "Who wrote it?": "Mary Shelley", "hello": "any greeting"}
RIGHT_ONES = ("Mary Shelley", "Hello there", "Hi you all")
NUM = sum(map(len, MADE.values()))


IDS = {question: question_id("math" if question == SUM else "none", question) for question in MADE}


def index_of(question: str, seed: int) -> int:
    """Which of a question's answers has a seed."""
    return seed - derived_seed(0, "rejection", 0, IDS[question])


def judge(body: dict[str, Any]) -> str:
    _, truth, said = shown(body)
    assert truth in TRUTHS.values()
    return "Well." if said == "Mumble" else f"So it is.\n[[{'right' if said in RIGHT_ONES else 'wrong'}]]"


def say(body: dict[str, Any]) -> str:
    if body["model"] == "judge":
        return judge(body)
    question = body["messages"][-1]["content"]
    return MADE[question][index_of(question, body["seed"])][1]


class Server(EndpointServer):
    """Answers as they are written above: one that ends with CUT was cut at the length limit."""

    def answer(self, body: dict[str, Any], path: str) -> dict[str, Any]:
        made = super().answer(body, path)
        message = made["choices"][0]["message"]
        if message["content"].endswith(CUT):
            message["content"] = message["content"].removesuffix(CUT)
            made["choices"][0]["finish_reason"] = "length"
        return made


def write(folder: Path, server: EndpointServer, config: str = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    for name, questions in (("sums", [SUM]), ("general", ["Who wrote it?", "hello"])):
        rows = ({"question": q, "truth": TRUTHS[q]} for q in questions)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rejection.toml").write_text(config.replace("URL", server.url))
    return folder / "rejection.toml"


def run(config: Path, folder: Path, *overrides: str, resume: bool = False) -> None:
    """The stage, in this process."""
    from r1mega.stages import rejection

    recipe = load_recipe(config, overrides)
    assert isinstance(recipe, Rejection)
    run_dir = RunDir(folder, recipe, CLUSTER, resume=resume)
    try:
        rejection.run(recipe, CLUSTER, run_dir, pool=this_process_pool)
    finally:
        run_dir.close()


def made(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["rejection"]
