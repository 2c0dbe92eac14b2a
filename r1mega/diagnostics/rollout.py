"""What a rollout looked like, in the numbers people watch: rewards, lengths, groups that teach nothing."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from r1mega.diagnostics.repetition import mean_repetition
from r1mega.diagnostics.student_t import t_quantile
from r1mega.samples import FinishReason, Group, VerdictStatus

VERDICTS = ("reward/", "rewards/", "groups/", "rollout/failed", "rollout/unscorable")
"""How the names of figures begin that verdicts decide."""


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over the rollout's answers, `rollout/answers` in number; shares are in [0, 1], lengths in tokens.

    Rewards are means over the `reward/scored` scored answers alone, a part's over those that have it, and absent
    where there are none; `reward/unscored` is the share of the others, of which `rollout/failed` and
    `rollout/unscorable` are the numbers. `groups/constant` is the share of groups whose scored answers all have the
    same reward: they carry no preference; a group without a scored answer is none of them. `reward/total_low` and
    `reward/total_high` are the ends of the total's 95% interval, clustered by question, where there are several.
    `repetition/mean` is the share of repeated 4-grams, of 256 of the answers at most (`diagnostics.repetition`).
    `rewards/NAME/unmeasured` is the number of scored answers of which a reward of weight 0 could not say anything.
    `response_length/stop_string` is the share of answers that a stop string ended, absent where none was.
    Of each source of questions, where there are several, and of each domain: `share/source/LABEL`, of prompts, and
    `reward/source/LABEL`, a mean over scored answers; `.../domain/...` the same.
    """
    verdicts = [v for g in groups for v in g.verdicts]
    scored = [v for v in verdicts if v.scored]
    completions = [c for g in groups for c in g.completions]
    lengths = [len(c.token_ids) for c in completions]
    rewards = [of_group for g in groups if (of_group := [v.reward for v in g.verdicts if v.scored])]
    statuses = [v.status for v in verdicts]
    metrics = {
        "rollout/answers": float(len(verdicts)),
        "rollout/failed": float(statuses.count(VerdictStatus.FAILED)),
        "rollout/unscorable": float(statuses.count(VerdictStatus.UNSCORABLE)),
        "reward/scored": float(len(scored)),
        "reward/unscored": 1.0 - len(scored) / len(verdicts),
        "groups/constant": _mean([float(len(set(r)) < 2) for r in rewards]),
        "response_length/mean": _mean(lengths),
        "response_length/max": float(max(lengths)),
        "response_length/truncated": _mean([float(c.truncated) for c in completions]),
        "rollout/tokens": float(sum(lengths)),
        "repetition/mean": mean_repetition([c.token_ids for c in completions]),
    }
    if stopped := sum(c.finish_reason is FinishReason.STOP_STRING for c in completions):
        metrics["response_length/stop_string"] = stopped / len(completions)
    if scored:
        metrics["reward/total"] = _mean([v.reward for v in scored])
        metrics |= _interval("reward/total", rewards)
    for part in sorted({part for v in scored for part in v.parts}):
        metrics[f"reward/{part}"] = _mean([v.parts[part] for v in scored if part in v.parts])
    for name in sorted({name for v in scored for name in v.unmeasured}):
        metrics[f"rewards/{name}/unmeasured"] = float(sum(name in v.unmeasured for v in scored))
    for kind in ("source", "domain"):
        metrics |= _by(kind, groups)
    return metrics


def _interval(name: str, rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """The ends of a mean's 95% interval, whose answers are clustered by question; none of a single question.

    The mean of n answers in G groups is a ratio of two sums. Its standard error is sqrt(G / (G - 1) x S) / n, where S
    sums the squares of each group's sum of distances from it; Student's t with G - 1 degrees of freedom.

    Args:
        rewards: of each group, none of them empty.
    """
    num, answers = len(rewards), sum(map(len, rewards))
    if num < 2:
        return {}
    mean = sum(map(sum, rewards)) / answers
    apart = [sum(reward - mean for reward in group) for group in rewards]
    half = t_quantile(num - 1) * math.sqrt(num / (num - 1) * sum(d * d for d in apart)) / answers
    return {f"{name}_low": mean - half, f"{name}_high": mean + half}


def _by(kind: Literal["source", "domain"], groups: Sequence[Group]) -> dict[str, float]:
    """Shares and rewards of the questions of each source or domain; nothing where all are of one."""
    names = sorted({getattr(g.prompt, kind) for g in groups})
    found: dict[str, float] = {}
    for name in names if len(names) > 1 else ():
        mine = [g for g in groups if getattr(g.prompt, kind) == name]
        found[f"share/{kind}/{name}"] = len(mine) / len(groups)
        if scored := [v.reward for g in mine for v in g.verdicts if v.scored]:
            found[f"reward/{kind}/{name}"] = _mean(scored)
    return found


def reward_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Those figures of `rollout_metrics` that verdicts decide."""
    return {name: x for name, x in rollout_metrics(groups).items() if name.startswith(VERDICTS)}


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an RL run came to: seconds by phase, tokens a second, mismatch, and its first and last evaluations.

    Args:
        rows: of metrics.jsonl, all of the run's parts.
    """
    train = [r for r in rows if r["kind"] == "train"]
    evals = {kind: [r["result"] for r in rows if r["kind"] == kind] for kind in ("eval", "eval_greedy")}
    names = ["rollout", "logprobs", "update", "push"]
    names += ["reward_models"] if any("seconds/reward_models" in r for r in train) else []
    phases = {name: sum(r.get(f"seconds/{name}", 0.0) for r in train) for name in names}
    first_lines = [r for r in train if "seconds/rollout" in r]
    return {
        "seconds": sum(phases.values()),
        "seconds_by_phase": phases,
        "tokens_per_second": {
            "rollout": sum(r["rollout/tokens"] for r in first_lines) / phases["rollout"],
            "train": sum(r["tokens"] for r in train) / phases["update"],
        },
        "mismatch": _mismatch(train, first_lines),
        "eval": {
            "before": evals["eval"][0],
            "after": evals["eval"][-1],
            "greedy_before": evals["eval_greedy"][0],
            "greedy_after": evals["eval_greedy"][-1],
        },
    }


def _mismatch(train: Sequence[Mapping[str, Any]], first_lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Engine against trainer: means and largest figures over a run's lines, sums over its rollouts; each as far as
    lines have it (diagnostics/mismatch.py, rounded_mismatch.py)."""

    def of(name: str) -> list[float]:
        return [r[f"mismatch/{name}"] for r in train if f"mismatch/{name}" in r]

    means = {name: sum(found) / len(found) for name in ("mean", "kl") if (found := of(name))}
    largest = {name: max(found) for name in ("max", "max_untied", "p999") if (found := of(name))}
    counts = ["answers"] if "kl" in means else ["answers", "answers_after_tie"]
    sums = {name: sum(r.get(f"mismatch/{name}", 0.0) for r in first_lines) for name in counts}
    if "kl" in means:
        tokens = [(r["mismatch/tokens"], r["mismatch/far"]) for r in first_lines]
        largest["kl_largest"] = max(of("kl"))
        sums |= {
            "tokens_compared": sum(n for n, _ in tokens),
            "tokens_far": float(round(sum(n * f for n, f in tokens))),
        }
    return {**means, **largest, **sums}


def transcripts(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The rollout as people read it, a row an answer: samples/step_N.jsonl."""
    return [
        {
            "step": step,
            "question": group.prompt.question,
            "truth": group.prompt.truth,
            "text": group.prompt.prefill + completion.text,
            "status": verdict.status,
            "reward": verdict.reward,
            "parts": dict(verdict.parts),
            "reason": verdict.reason,
            "tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
        }
        for group in groups
        for completion, verdict in zip(group.completions, group.verdicts, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
