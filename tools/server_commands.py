"""The command lines and environments of each cluster file's servers, as they are started; written as golden files.

    python tools/server_commands.py            # writes tests/unit/goldens/servers/CLUSTER.json, one a cluster file

A change of a golden file is a change of what runs on a cluster: look at it before it is committed.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from r1mega.config.load import load_cluster
    from r1mega.rollout.command import ServedFolder, ServerPlace, Start, command, environment
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"server_commands: {said}", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests/unit/goldens/servers"
MODELS = {
    "laptop": ("Qwen2.5-Math-1.5B", "DeepSeek-V3-Base"),
    "laptop2": ("Qwen2.5-Math-1.5B", "DeepSeek-V3-Base"),
    "gpu1": ("Qwen2.5-Math-1.5B",),
    "h800_1b5": ("Qwen2.5-Math-1.5B",),
    "h800_14b": ("Qwen2.5-Math-7B", "Qwen2.5-14B"),
    "h800_70b": ("Llama-3.3-70B-Instruct", "Qwen2.5-32B"),
    "h800_v3": ("DeepSeek-V3-Base",),
}
"""Cluster file -> models of configs/models that its servers hold; each one's stages are shown with it."""
MAX_MODEL_LEN, PORT, SEED = 34816, 20000, 7
PYTHON = "python"
"""In place of the interpreter's path."""


def parts(cluster: str) -> Iterator[dict[str, Any]]:
    """Every process of a cluster file's servers: of one a host, of each model, with a trainer and without."""
    machine = load_cluster(str(ROOT / f"configs/cluster/{cluster}.toml"), [])
    layout = machine.rollout.model_copy(update={"python": PYTHON})
    for model in MODELS[cluster]:
        config = json.loads((ROOT / "configs/models" / model / "config.json").read_text())
        folder = ServedFolder.of(Path("/models") / model, {**config, "quantization_config": None})
        for trains in (True, False):
            for number in range(layout.servers):
                place = ServerPlace.of(machine, number, trains=trains)
                for node in range(place.hosts):
                    start = Start(layout.host, PORT, MAX_MODEL_LEN, SEED, node, "10.0.0.1")
                    line = command(folder, layout, place, start)
                    yield {
                        "model": model,
                        "trains": trains,
                        "server": number,
                        "node": node,
                        "command": [PYTHON, *line[1:]],
                        "environment": {
                            name: value
                            for name, value in environment(
                                folder, layout, place, own_address=f"10.0.0.{node + 1}"
                            ).items()
                            if name != "PYTHONPATH"
                        },
                    }


def written(cluster: str) -> str:
    """The golden file: of parts that are started alike, the first one."""
    rows: list[dict[str, Any]] = []
    for row in parts(cluster):
        how = row["command"], row["environment"]
        if how not in [(other["command"], other["environment"]) for other in rows]:
            rows.append(row)
    return json.dumps(rows, indent=1) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for cluster in MODELS:
        (GOLDENS / f"{cluster}.json").write_text(written(cluster))
        print(f"{GOLDENS / cluster}.json")


if __name__ == "__main__":
    main()
