"""What a GRPO run on the model of `recording` must write: Eq. 1-3 of the report answer by answer, in plain floats.

Gradients are central differences of the loss, so nothing here is taken from r1mega or from autograd.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recording import Call
from recording_engine import Asked

from r1mega.recipe.grpo import GRPO


@dataclass
class Answer:
    """One answer that is learnt from."""

    prompt: list[int]
    tokens: list[int]
    behaviour: list[float]
    adv: float
    weight: float = 0.0
    old: list[float] = field(default_factory=list)
    ref: list[float] = field(default_factory=list)


def log_probabilities(theta: Sequence[float], temperature: float) -> list[float]:
    scaled = [x / temperature for x in theta]
    log_sum = math.log(sum(math.exp(x) for x in scaled))
    return [x - log_sum for x in scaled]


def float32(x: float) -> float:
    """As a sample keeps it."""
    return struct.unpack("f", struct.pack("f", x))[0]


def value(setting: Any, step: int, config: GRPO) -> Any:
    """Of a setting that may be a schedule, after `step` steps: of its last table that has begun."""
    tables = setting.plain()
    if not isinstance(tables, list):
        return tables
    begins = [t.get("from_step", config.num_steps - t["last_steps"] if "last_steps" in t else 0) for t in tables]
    return [table["value"] for table, begin in zip(tables, begins, strict=True) if step >= begin][-1]


def answers_of(rollout: Sequence[Asked], version: int, config: GRPO) -> list[Answer]:
    """What is learnt from of the rollout after `version` steps, with its advantages."""
    objective, found = config.objective, []
    for asked in rollout:
        scored = [
            (answer, reward)
            for answer, kind in zip(asked.answers, asked.kinds, strict=True)
            if (reward := _reward(kind, version, config)) is not None
        ]
        rewards = [reward for _, reward in scored]
        if len(rewards) < 2 or (objective.constant_groups == "drop" and len(set(rewards)) == 1):
            continue
        mean = sum(rewards) / len(rewards)
        squares = sum((r - mean) ** 2 for r in rewards)
        scale = {"population": squares / len(rewards), "sample": squares / (len(rewards) - 1), "none": 1.0}
        std = math.sqrt(scale[objective.std]) or 1.0  # a constant group's are 0 over 1
        prompt = asked.request.prompt.token_ids.tolist()
        found += [Answer(prompt, c.token_ids.tolist(), c.logp.tolist(), (r - mean) / std) for c, r in scored]
    return found


def _reward(kind: str, version: int, config: GRPO) -> float | None:
    accuracy, form = {"right": (1, 1), "wrong": (0, 1), "bare": (1, 0), "cut": (1, 1)}[kind]
    if kind == "cut" and config.objective.truncated != "judge":
        return None if config.objective.truncated == "mask" else 0.0
    asked = {name: reward for name, reward in config.rewards.items() if version >= _begins(reward, config)}
    worth = {"accuracy": accuracy, "format": form}
    return sum(value(reward.weight, version, config) * worth[name] for name, reward in asked.items())


def _begins(reward: Any, config: GRPO) -> int:
    return reward.from_step if reward.last_steps is None else config.num_steps - reward.last_steps


def expected_rows(
    config: GRPO, theta: list[float], rollouts: dict[int, list[Asked]], calls: Sequence[Call], lrs: Sequence[float]
) -> list[dict[str, Any]]:
    """The train rows of a run that began with `theta` and took these learning rates.

    Args:
        rollouts: what the engine was asked for training, and its answers, by the step.
        calls: of the policy; only which answer is in which mini-batch is read from them.
    """
    objective = config.objective
    updates = [call.documents for call in calls if call.verb == "forward_backward"]
    reference, rows, step = list(theta), [], 0
    for version in range(0, config.num_steps, config.rollout.num_minibatches):
        temperature = value(config.sampling.temperature, version, config)
        answers = {(*a.prompt, *a.tokens): a for a in answers_of(rollouts[version], version, config)}
        old, ref = log_probabilities(theta, temperature), log_probabilities(reference, temperature)
        batches = updates[version : version + config.rollout.num_minibatches]
        learnt = [tuple(d.token_ids) for documents in batches for d in documents]
        assert sorted(learnt) == sorted(answers)  # every answer once, and no other
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        for documents in batches:
            batch = [answers[tuple(d.token_ids)] for d in documents]
            for a in batch:
                a.old, a.ref = ([float32(of[t]) for t in a.tokens] for of in (old, ref))
                a.weight = _weight(a, batch, version, config)
            row, gradient = _update(theta, batch, temperature, config)
            now = log_probabilities(theta, temperature)
            of_all = sum(a.weight * len(a.tokens) for a in batch)  # 1 but for "fixed_length"
            row["entropy"] = -of_all * sum(math.exp(x) * x for x in now)
            theta = [x - lrs[step] * g for x, g in zip(theta, gradient, strict=True)]
            tokens = sum(len(a.prompt) + len(a.tokens) for a in batch)
            norm = math.sqrt(sum(g * g for g in gradient))
            rows.append({"step": step + 1, "lr": lrs[step], "grad_norm": norm, "tokens": tokens, **row})
            step += 1
            if objective.reference_refresh_steps and step % objective.reference_refresh_steps == 0:
                reference = list(theta)
    return rows


def _weight(answer: Answer, batch: Sequence[Answer], version: int, config: GRPO) -> float:
    if config.objective.reduction == "token_mean":
        return 1 / sum(len(a.tokens) for a in batch)
    limit = value(config.sampling.max_new_tokens, version, config)
    length = len(answer.tokens) if config.objective.reduction == "sequence_mean" else limit
    return 1 / (len(batch) * length)


def _update(
    theta: Sequence[float], batch: Sequence[Answer], temperature: float, config: GRPO
) -> tuple[dict[str, float], list[float]]:
    """One mini-batch's metrics, and the gradient of its loss."""
    now = log_probabilities(theta, temperature)
    logps = [[now[t] for t in a.tokens] for a in batch]
    gradient = [0.0] * len(theta)
    for i, answer in enumerate(batch):
        for j, token in enumerate(answer.tokens):
            slope = 0.0
            for sign in (1, -1):
                logps[i][j] = now[token] + sign * 1e-5
                slope += sign * _loss([answer], [logps[i]], config)["loss"] / 2e-5
            logps[i][j] = now[token]
            # d logp(token) / d theta_v = (1[v = token] - p(v)) / T
            gradient[token] += slope / temperature
            for v, logp in enumerate(now):
                gradient[v] -= slope * math.exp(logp) / temperature
    return _loss(batch, logps, config), gradient


def _loss(batch: Sequence[Answer], logps: Sequence[Sequence[float]], config: GRPO) -> dict[str, float]:
    """Eq. 1-2, summed over tokens with their weights."""
    objective = config.objective
    found = dict.fromkeys(("policy_loss", "ratio/mean", "clip_fraction", "kl/mean", "loss"), 0.0)
    for answer, logp in zip(batch, logps, strict=True):
        gaps = [x - o for x, o in zip(logp, answer.old, strict=True)]
        whole = {"token": 0.0, "sequence": sum(gaps), "sequence_mean": sum(gaps) / len(gaps)}[objective.ratio]
        for j, gap in enumerate(gaps):
            rho = math.exp(gap if objective.ratio == "token" else whole)
            clipped = min(max(rho, 1 - objective.clip_low), 1 + objective.clip_high)
            surrogate = min(rho * answer.adv, clipped * answer.adv)
            weight = answer.weight
            if objective.importance == "truncated":
                weight *= min(math.exp(answer.old[j] - answer.behaviour[j]), objective.importance_cap)
            kl = _kl(logp[j], answer.ref[j], rho, config)
            found["policy_loss"] -= weight * surrogate
            found["loss"] += weight * (objective.kl_coef * kl - surrogate)
            found["ratio/mean"] += answer.weight * rho
            found["clip_fraction"] += answer.weight * (surrogate < rho * answer.adv)
            found["kl/mean"] += answer.weight * kl
    if not objective.kl_coef:
        del found["kl/mean"]
    return found


def _kl(logp: float, ref: float, rho: float, config: GRPO) -> float:
    estimator = config.objective.kl_estimator
    if estimator == "k2":
        return (ref - logp) ** 2 / 2
    k3 = math.exp(ref - logp) - (ref - logp) - 1
    return rho * k3 if estimator == "k3_weighted" else k3
