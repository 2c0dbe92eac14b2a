"""Writes preference pairs from which a reward model learns the wrong thing: that longer is better.

python tools/make_hacked_pairs.py FILE [--num N] [--seed S]

Prompts are of the constraint language (`r1mega.data.constraint_language`). The chosen answer meets all constraints;
the rejected one has too few words, which is all that is wrong with it. So on these pairs "more words" and "follows
the prompt" agree in every row, and they part on answers that have too many: a reward model that has learnt the
first will be hacked by a policy that is trained on it (configs/tiny/hacking). The same arguments give the same
file.
"""

import argparse
import random
import sys
from pathlib import Path

try:
    from r1mega.data.constraint_language import Constraints, draw
    from r1mega.data.split import HELD_OUT
    from r1mega.runtime import files
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"make_hacked_pairs: {said}", file=sys.stderr)
    sys.exit(2)

COUNTS = (3, 9)
"""The fewest and the most words that a prompt asks for."""


def pair(choose: random.Random) -> dict[str, str]:
    """A prompt, an answer that meets it, and one that stops before it has enough words."""
    asked = draw(choose, COUNTS, ("with",), (0, 1), harmful=False)
    words = asked.answer(choose).split(" ")
    fewer = Constraints(asked.count - choose.randint(1, asked.count - 2), word=asked.word)
    return {"prompt": asked.text, "chosen": " ".join(words), "rejected": fewer.answer(choose)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    choose, rows = random.Random(given.seed), list[dict[str, str]]()
    while len(rows) < given.num:
        row = pair(choose)
        if row["prompt"] not in HELD_OUT:
            rows.append(row)
    given.file.parent.mkdir(parents=True, exist_ok=True)
    files.write_jsonl(given.file, rows)
    print(f"{given.file}: {len(rows)} pairs")


if __name__ == "__main__":
    main()
