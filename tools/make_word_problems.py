"""Writes short word problems of one step as two JSONL files of questions: to train on, and held out.

python tools/make_word_problems.py FOLDER [--train N] [--held-out N] [--seed S]

The wording is this file's own. Which file a problem goes to is decided by its text alone, as in every stage
(`r1mega.data.split`); no problem occurs twice.
"""

import argparse
import random
import sys
from pathlib import Path

try:
    from r1mega.data.split import HELD_OUT
    from r1mega.runtime import files
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"make_word_problems: {said}", file=sys.stderr)
    sys.exit(2)

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Lily", "Max")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pens", "shells", "stamps", "toys")
SUMS = (
    "{n} has {a} {t} and gets {b} more. How many {t} does {n} have?",
    "{n} finds {a} {t} in the morning and {b} in the evening. How many {t} is that?",
    "There are {a} {t} in a box and {b} on the table. How many {t} are there?",
    "{n} buys {a} {t}. {m} buys {b} {t}. How many {t} do they buy together?",
    "What is {a} plus {b}?",
)
DIFFERENCES = (
    "{n} has {a} {t} and gives away {b}. How many {t} are left?",
    "There are {a} {t} in a box. {n} takes {b} out. How many {t} are left in the box?",
    "{n} has {a} {t}. {m} has {b}. How many more {t} does {n} have?",
    "What is {a} minus {b}?",
)


def problem(rng: random.Random) -> tuple[str, int]:
    """A question, and what it comes to."""
    n, m = rng.sample(NAMES, 2)
    words = {"n": n, "m": m, "t": rng.choice(THINGS)}
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    if rng.random() < 0.5:
        return rng.choice(SUMS).format(a=a, b=b, **words), a + b
    a, b = max(a, b + 1), min(a, b)
    return rng.choice(DIFFERENCES).format(a=a, b=b, **words), a - b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, wanted = random.Random(given.seed), {"questions": given.train, "held_out": given.held_out}
    found: dict[str, dict[str, int]] = {name: {} for name in wanted}
    while any(len(found[name]) < num for name, num in wanted.items()):
        text, truth = problem(rng)
        side = found["held_out" if text in HELD_OUT else "questions"]
        if len(side) < wanted["held_out" if side is found["held_out"] else "questions"]:
            side.setdefault(text, truth)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, asked in found.items():
        rows = ({"question": text, "truth": str(truth)} for text, truth in asked.items())
        files.write_jsonl(given.folder / f"{name}.jsonl", rows)
        print(f"{given.folder / name}.jsonl: {len(asked)} questions")


if __name__ == "__main__":
    main()
