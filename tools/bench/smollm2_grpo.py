"""What `make demo-smollm2` comes to: GRPO on SmolLM2-135M-Instruct, before, on the way and after.

Of the held-out word problems of configs/smollm2: the share of answers in the required format; accuracy in it (strict)
and of whatever number stands last (lenient), each with its 95% interval clustered by question; at the sampling
temperature and greedily. Beside it the rewards of the rollouts, seconds of each part, and transcripts: the answers to
the first question of the first rollout and of the last.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import harness

from r1mega.runtime.files import write_json

CONFIG = harness.ROOT / "configs/smollm2"
SHOWN = 4
"""Answers of each transcript."""


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def evaluations(metrics: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Step -> figures of the held-out questions."""
    return {
        f"step {row['step']}": {
            **{
                name: [round(row["result"][name][part], 4) for part in ("mean", "low", "high")]
                for name in ("strict", "lenient")
            },
            "format": round(row["eval/format"], 4),
            "tokens": round(row["eval/mean_tokens"], 1),
            "truncated": round(row["eval/truncated"], 4),
        }
        for row in metrics
        if row["kind"] == kind
    }


def transcript(samples: Path) -> dict[str, Any]:
    """The answers to the first question of a rollout."""
    answers = rows(samples)
    question = answers[0]["question"]
    own = [a for a in answers if a["question"] == question][:SHOWN]
    return {"question": question, "truth": own[0]["truth"], "answers": [a["text"] for a in own]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--commit", help="of the tree that ran, where it was no checkout")
    parser.add_argument("--note", default="", help="what else is to be said of this run")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "docs/measurements/smollm2_grpo.json")
    given = parser.parse_args()
    (part, *_) = json.loads((given.run / "run.json").read_text())["parts"]
    metrics = rows(given.run / "metrics.jsonl")
    train = [row for row in metrics if row["kind"] == "train"]
    begin_rollout = [row for row in train if "seconds/rollout" in row]
    samples = sorted((given.run / "samples").glob("step_*.jsonl"), key=lambda file: int(file.stem[5:]))
    sources = [Path(__file__).resolve(), *sorted(CONFIG.iterdir())]
    write_json(given.out, {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance([], sources),
        "commit": given.commit or part["commit"],
        "versions": part["versions"], "seed": part["seed"], "note": given.note,
        "steps": train[-1]["step"], "of": json.loads((given.run / "config.json").read_text())["stage"]["num_steps"],
        "held_out": {"sampled": evaluations(metrics, "eval"), "greedy": evaluations(metrics, "eval_greedy")},
        "rollouts": {
            f"step {row['step']}": {name: round(row[f"reward/{name}"], 4) for name in ("format", "accuracy")}
            for row in begin_rollout
        },
        "seconds": {
            what: round(sum(row.get(f"seconds/{what}", 0.0) for row in train))
            for what in ("rollout", "push", "logprobs", "update")
        },
        "mismatch_max": max(row["mismatch/max"] for row in train),
        "transcripts": {"first rollout": transcript(samples[0]), "last rollout": transcript(samples[-1])},
    })  # fmt: skip


if __name__ == "__main__":
    main()
