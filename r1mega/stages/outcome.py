"""What an RL run tells of itself: the words beside its bar, and summary.json."""

import json
from collections.abc import Mapping
from typing import Any

from r1mega.diagnostics.load_balance import summarise
from r1mega.runtime.run_dir import RunDir


def note(metrics: Mapping[str, Any]) -> str:
    """What people watch of a rollout and its steps, in the few words that fit behind a bar."""
    shown = {"reward/total": "reward {:.2f}", "response_length/mean": "{:.0f} tokens", "kl/mean": "KL {:.4f}"}
    return ", ".join(form.format(metrics[name]) for name, form in shown.items() if name in metrics)


def summary(run_dir: RunDir, rss: dict[str, float]) -> dict[str, Any]:
    """summary.json, from the metrics on disk, so that a resumed run counts all of its parts."""
    rows = run_dir.metrics()
    train = [r for r in rows if r["kind"] == "train"]
    evals = {kind: [r for r in rows if r["kind"] == kind] for kind in ("eval", "eval_greedy")}
    phases = {p: sum(r.get(f"seconds/{p}", 0.0) for r in train) for p in ("rollout", "logprobs", "update", "push")}
    sampled = sum(r["rollout/tokens"] for r in train if "seconds/rollout" in r)
    return {
        "stage": "grpo",
        "seconds": sum(phases.values()),
        "seconds_by_phase": phases,
        "steps": train[-1]["step"],
        "tokens_per_second": {
            "rollout": sampled / phases["rollout"],
            "train": sum(r["tokens"] for r in train) / phases["update"],
        },
        "peak_rss_gib": rss,
        "experts": summarise(train),
        "data": json.loads(run_dir.questions.read_text(encoding="utf-8")),
        "mismatch": {
            "mean": sum(r["mismatch/mean"] for r in train) / len(train),
            "max": max(r["mismatch/max"] for r in train),
            "max_untied": max(r["mismatch/max_untied"] for r in train),
            **{
                name: sum(r.get(f"mismatch/{name}", 0.0) for r in train if "seconds/rollout" in r)
                for name in ("answers", "answers_after_tie")
            },
        },
        "eval": {
            "before": evals["eval"][0]["result"],
            "after": evals["eval"][-1]["result"],
            "greedy_before": evals["eval_greedy"][0]["result"],
            "greedy_after": evals["eval_greedy"][-1]["result"],
        },
    }
