"""What the language reward does to a tiny base that mixes English and Chinese within a thought.

configs/tiny/language: RL from one base, once with the reward and once without (weight 0: it is measured and adds
nothing), otherwise alike, seed for seed. Of held-out questions: pass@1 at temperature 1 and greedily, with 95%
intervals. Of the answers sampled in the first and in the last rollout, those whose thought has a word: the share of
English words in it, counted by its letters and not by the reward, and how many of them mix, are in the target
language throughout, or in the other one.
"""

import argparse
import json
import re
import statistics
from pathlib import Path
from typing import Any

import harness

from r1mega.rewards.language import chain_of_thought
from r1mega.runtime.files import write_json

TARGET = "en"
ENGLISH, CHINESE = re.compile("[a-z]+"), re.compile("[\u4e00-\u9fff]")


def thoughts(rollout: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the sampled answers that have a thought with a word."""
    found = [chain_of_thought(answer["text"]) or "" for answer in rollout]
    counts = [(len(ENGLISH.findall(thought)), len(CHINESE.findall(thought))) for thought in found]
    shares = [english / (english + chinese) for english, chinese in counts if english + chinese]
    return {
        "answers": len(rollout), "with_words": len(shares),
        "share": round(statistics.mean(shares), 4),
        "mixed": round(statistics.mean(0 < share < 1 for share in shares), 4),
        "all_target": round(statistics.mean(share == 1 for share in shares), 4),
        "all_other": round(statistics.mean(share == 0 for share in shares), 4),
    }  # fmt: skip


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def figures(run: Path) -> dict[str, Any]:
    """What became of one run."""
    metrics = rows(run / "metrics.jsonl")
    held_out = {}
    for kind, name in (("eval", "sampled"), ("eval_greedy", "greedy")):
        held_out[name] = {
            f"step {row['step']}": {
                "pass@1": [round(row["result"]["strict"][part], 4) for part in ("mean", "low", "high")],
                "format": round(row["eval/format"], 4),
            }
            for row in metrics
            if row["kind"] == kind
        }
    steps = sorted((run / "samples").glob("step_*.jsonl"), key=lambda file: int(file.stem[5:]))
    sampled = {f"step {file.stem[5:]}": thoughts(rows(file)) for file in (steps[0], steps[-1])}
    train = {row["step"]: row for row in metrics if row["kind"] == "train"}
    each = max(1, len(train) // 10)
    curve = {
        f"step {step}": {name: round(row[f"reward/{name}"], 4) for name in ("accuracy", "format", "language")}
        for step, row in train.items()
        if step % each == 1 or step == max(train)
    }
    summary = json.loads((run / "summary.json").read_text())
    return {"held_out": held_out, "rollouts": sampled, "reward": curve, "seconds": round(summary["seconds"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("with_reward", type=Path, help="run directory of 1_rl.toml")
    parser.add_argument("control", type=Path, help="run directory of 1_control.toml")
    parser.add_argument("--commit", help="of the tree that ran, where it was no checkout")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    runs = {"with_reward": arguments.with_reward, "control": arguments.control}
    began = {name: json.loads((run / "run.json").read_text()) for name, run in runs.items()}
    if len({run["start"] for run in began.values()}) > 1:
        parser.error("the two runs did not start from the same weights")
    (part, *_) = began["with_reward"]["parts"]
    sources = [Path(__file__).resolve(), *sorted((harness.ROOT / "configs/tiny/language").glob("*.toml"))]
    write_json(arguments.out, {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance([], sources),
        "commit": arguments.commit or part["commit"],
        "versions": part["versions"], "seed": part["seed"], "base": began["control"]["start"], "target": TARGET,
        "runs": {name: figures(run) for name, run in runs.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
