"""How fast conversations become tokens (r1mega/data/chat.py, sft_data.py).

In turn in one process: `call` renders 512 conversations and tokenises the pieces by the tokenizer's own call, the
baseline; `encode` is `Chat.encode`, which does both and joins the pieces. Beside them `prepare`, once: from a JSONL
file to a store on disk, its tokens a second and the seconds of CPU and of wall clock that a million of them take.
Lengths are lognormal like the report's 800,000 (median 3,300 tokens, sigma 1, at most 32,768); words are this
repository's.
"""

import argparse
import inspect
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness

from r1mega.data.chat import Chat
from r1mega.data.conversations import conversation
from r1mega.data.settings import SFTData
from r1mega.data.sft_data import Wanted, prepare
from r1mega.data.tokenised import opened
from r1mega.runtime.files import write_json

TOKENS_PER_WORD = 1.9


def rows(num: int) -> Iterator[dict[str, str]]:
    files = sorted(f for f in harness.ROOT.glob("*/**/*") if f.suffix in (".md", ".py") and ".venv" not in f.parts)
    words = [w for f in files for w in f.read_text().split()]
    rng = random.Random(0)

    def text(length: int) -> str:
        found: list[str] = []
        while len(found) < length:
            start = rng.randrange(len(words))
            found += words[start : start + 200]
        return " ".join(found[:length])

    for _ in range(num):
        tokens = min(32768, 3300 * math.exp(rng.gauss(0, 1)))
        thought = f"<think>\n{text(int(tokens / TOKENS_PER_WORD))}\n</think>"
        yield {"prompt": text(60), "response": f"{thought}\n\n{text(50)}"}


def whole(chat: Chat, num: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(num)))
        data = SFTData(files=(folder / "rows.jsonl",), max_tokens=32768, too_long="truncate")
        wall, cpu = time.perf_counter(), time.process_time()
        prepare(Wanted(data, None, seed=0), chat, folder / "data", folder / "trained_on.jsonl")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        tokens = sum(opened(folder / "data", "train").lengths)
    return {
        "conversations": num,
        "tokens": tokens,
        "tokens_per_second": round(tokens / wall),
        "wall_s_per_million": round(wall / tokens * 1e6, 4),
        "cpu_s_per_million": round(cpu / tokens * 1e6, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a Hugging Face folder with a tokenizer")
    parser.add_argument("--chat-template", type=Path, help="a Jinja file instead of the tokenizer's template")
    parser.add_argument("--num", type=int, default=8192, help="conversations from file to store")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    from r1mega.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(given.tokenizer)
    chat = Chat(tokenizer, [tokenizer.eos_token_id], given.chat_template)
    some = [conversation(row, f"row {i}") for i, row in enumerate(rows(512))]

    def call(lap: harness.Lap) -> None:
        texts = [piece.text for c in some for piece in chat.pieces(c)]
        _ = tokenizer(texts, add_special_tokens=False)["input_ids"]
        lap("tokens")

    def encode(lap: harness.Lap) -> None:
        chat.encode(some)
        lap("tokens")

    sources = [Path(file).resolve() for file in (__file__, harness.__file__, *map(inspect.getfile, (Chat, prepare)))]
    about = {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance(["transformers", "tokenizers"], sources),
    }
    about |= {"vocabulary": len(tokenizer), "template": given.chat_template.name if given.chat_template else None}
    variants = harness.compare({"call": call, "encode": encode}, baseline="call", repetitions=given.repetitions)
    found = {"variants": variants, "prepare": whole(chat, given.num)}
    write_json(given.out, about | found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
