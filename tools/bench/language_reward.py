"""How fast the language reward is, and how often it is wrong about a clause (r1mega/rewards/language.py).

Speed: thoughts of 8,000 characters, about 2,000 tokens of English, made of the hand-labelled texts of the tests in
random order, so that some clauses come back; answers per second of one core's processor time, each thought judged
once. Errors: of every clause of those texts that is in a language of a shared alphabet, alone, without neighbours: is
the likeliest language the labelled one?
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import harness

from r1mega.rewards.language import share_of
from r1mega.rewards.languages import identify, table
from r1mega.rewards.languages.neutral import without_neutral
from r1mega.rewards.languages.words import clauses
from r1mega.runtime.files import write_json

TEXTS = harness.ROOT / "tests/unit/data/language_texts.jsonl"
CHARACTERS = 8_000
KINDS = {
    "English": ("en",),
    "English and German": ("en", "de"),
    "English and Chinese": ("en", "zh"),
    "Chinese": ("zh",),
}
"""Thoughts -> languages of the parts that they are made of; formulae and code are in all."""


def thoughts(parts: list[tuple[str, str]], languages: tuple[str, ...], num: int) -> list[str]:
    """Texts of CHARACTERS characters."""
    draw = random.Random(f"{languages}")
    usable = [text for language, text in parts if language in (*languages, "-")]
    found = []
    for _ in range(num):
        text = ""
        while len(text) < CHARACTERS:
            text += draw.choice(usable).strip() + " "
        found.append(text[:CHARACTERS])
    return found


def seconds_of(text: str) -> float:
    started = time.process_time()
    share_of(text, "en")
    return time.process_time() - started


def errors(parts: list[tuple[str, str]]) -> dict[str, Any]:
    """Clauses whose likeliest language is another than the labelled one, by number of words."""
    wrong: dict[str, list[str]] = {"of one word": [], "of more": []}
    num = dict.fromkeys(wrong, 0)
    for language, text in parts:
        (script, *more) = table.SCRIPTS.get(language, ["", ""])
        rivals = table.of_one_script(script)
        if more or len(rivals) < 2:
            continue
        for clause in clauses(without_neutral(text, language)):
            words = clause.texts.get(script, [])
            size = "of more" if len(words) > 1 else "of one word"
            num[size] += 1
            if identify._evidence(language, rivals, " ".join(words)) < 0:
                wrong[size].append(f"{language}: {' '.join(words)}")
    return {size: {"clauses": num[size], "wrong": wrong[size]} for size in wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=100, help="thoughts of each kind")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    parts = [(language, text.replace("|", "")) for row in rows for language, text in row["parts"]]
    share_of("the model is loaded", "en")
    speed: dict[str, Any] = {}
    for kind, languages in KINDS.items():
        seconds = [seconds_of(text) for text in thoughts(parts, languages, arguments.num)]
        speed[kind] = {"answers_per_s": harness.spread([1 / s for s in seconds])}
    sources = [harness.ROOT / "r1mega/rewards/languages" / f"{name}.py" for name in ("identify", "neutral", "words")]
    write_json(arguments.out, {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance(["py3langid", "numpy", "regex"], [Path(__file__).resolve(), *sources, TEXTS]),
        "characters": CHARACTERS, "target": "en", "thoughts_of_each_kind": arguments.num,
        "load_average": round(os.getloadavg()[0], 1), "speed": speed, "clauses_alone": errors(parts),
    })  # fmt: skip


if __name__ == "__main__":
    main()
