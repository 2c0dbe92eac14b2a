"""Eq. 1-3 against numbers worked by hand, and against an independent derivation on a tiny softmax policy."""

import math
import random
from typing import get_args

import numpy as np
import pytest
import torch

from r1mega.algos.advantage import group_advantages, samples_from_groups
from r1mega.algos.grpo import GRPOLoss, Reduction, documents, split_at_random, token_weights, weighted
from r1mega.algos.kl import Estimator, kl_per_token
from r1mega.algos.likelihood import likelihood_loss
from r1mega.algos.schedule import learning_rate
from r1mega.buffers import Float32s, Int32s
from r1mega.config.training import Optimizer
from r1mega.samples import Completion, FinishReason, Group, Prompt, Sample, Verdict, VerdictStatus

EPS = torch.finfo(torch.float32).eps
FEW_BITS = 16 * EPS
"""Relative, of a few logarithms and differences in fp32."""


def test_advantages_by_hand():
    # rewards 1, 0, 0, 1: mean 1/2, deviations +-1/2, population std 1/2, sample std sqrt(1/3)
    assert group_advantages([1, 0, 0, 1]) == [1.0, -1.0, -1.0, 1.0]
    assert group_advantages([1, 0, 0, 1], std="none") == [0.5, -0.5, -0.5, 0.5]
    by_sample = group_advantages([1, 0, 0, 1], std="sample")
    assert by_sample == pytest.approx([math.sqrt(0.75) * s for s in (1, -1, -1, 1)])


def test_population_and_sample_std_differ_by_3_percent_at_sixteen():
    rewards = [1.0] * 5 + [0.0] * 11
    ratio = group_advantages(rewards)[0] / group_advantages(rewards, std="sample")[0]
    assert ratio == pytest.approx(math.sqrt(16 / 15))


@pytest.mark.parametrize("reward", [0.1, 0.0, 1.0, 2.3])
def test_constant_group_has_advantage_zero_exactly(reward: float):
    # The naive (r - mean) / std is -0.42 on sixteen rewards of 0.1.
    assert group_advantages([reward] * 16) == [0.0] * 16


def test_a_single_answer_is_no_group():
    with pytest.raises(ValueError, match="at least two"):
        group_advantages([1.0])


def _group(rewards: list[float | None]) -> Group:
    prompt = Prompt("p", "chain_sum", "1 + 1", "2", Int32s([1, 2]))
    completions = tuple(
        Completion("p", i, Int32s([5, 6]), Float32s([-0.1, -0.2]), "2", FinishReason.STOP, 0, i)
        for i in range(len(rewards))
    )
    verdicts = tuple(
        Verdict(VerdictStatus.FAILED, reason="judge") if r is None else Verdict(VerdictStatus.SCORED, r)
        for r in rewards
    )
    return Group(prompt, completions, verdicts)


def test_failed_verdicts_enter_neither_baseline_nor_batch():
    samples = samples_from_groups([_group([1.0, None, 0.0])], std="population", constant_groups="keep")
    assert [s.adv for s in samples] == [1.0, -1.0]


def test_a_group_with_one_scored_answer_is_dropped():
    assert samples_from_groups([_group([1.0, None, None])], std="population", constant_groups="keep") == []


def test_constant_groups_are_kept_or_dropped_as_named():
    groups = [_group([1.0, 1.0]), _group([1.0, 0.0])]
    assert len(samples_from_groups(groups, std="population", constant_groups="keep")) == 4
    assert [s.adv for s in samples_from_groups(groups, std="population", constant_groups="drop")] == [1.0, -1.0]


def test_token_weights_by_hand():
    assert token_weights([2, 4], "sequence_mean", max_length=8) == [1 / 4, 1 / 8]
    assert token_weights([2, 4], "token_mean", max_length=8) == [1 / 6, 1 / 6]
    assert token_weights([2, 4], "fixed_length", max_length=8) == [1 / 16, 1 / 16]


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_a_rank_that_does_not_hold_the_rollout_has_as_many_mini_batches_of_nothing(reduction: Reduction):
    minibatches = split_at_random([], 3, random.Random(0))
    assert [weighted(m, reduction, max_length=8) for m in minibatches] == [[], [], []]


def test_kl_estimators_by_hand():
    logp, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    ratio = torch.tensor([1.5])
    k3 = 0.25 / 0.5 - math.log(0.25 / 0.5) - 1
    assert kl_per_token(logp, ref, ratio, "k2").item() == pytest.approx(0.5 * math.log(2) ** 2, rel=FEW_BITS)
    assert kl_per_token(logp, ref, ratio, "k3").item() == pytest.approx(k3, rel=FEW_BITS)
    assert kl_per_token(logp, ref, ratio, "k3_weighted").item() == pytest.approx(1.5 * k3, rel=FEW_BITS)


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_every_estimators_gradient_pulls_towards_the_reference(estimator: Estimator):
    """Of a term of the loss: up where the reference is above, down where it is below; log(pi/ref) has 1 for both."""
    gradients = []
    for ref in (-0.7, -0.3):
        logp = torch.tensor([-0.5], requires_grad=True)
        fields = {name: torch.tensor([x]) for name, x in (("weight", 1.0), ("adv", 0.0), ("ref_logp", ref))}
        fields["old_logp"] = logp.detach()
        GRPOLoss(0.2, 0.2, 1.0, estimator)(logp, fields, torch.zeros(1, dtype=torch.int64))[0].backward()
        assert logp.grad is not None
        gradients.append(logp.grad.item())
    assert gradients[0] > 0 > gradients[1]


def test_k3_keeps_its_digits_near_zero():
    gap = 1e-4
    kl = kl_per_token(torch.tensor([0.0]), torch.tensor([gap]), torch.ones(1), "k3").item()
    assert kl == pytest.approx(gap**2 / 2, abs=2 * EPS * gap)  # exp(x) - x - 1 would be off by EPS


def _fields(**values: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def test_loss_by_hand():
    # Two outputs of 1 and 2 tokens, A = 1 and -1, ratios 2, 0.5, 1; clip 0.2; sequence mean of token means.
    old = [math.log(0.2), math.log(0.4), math.log(0.3)]
    logp = torch.tensor([math.log(0.4), math.log(0.2), math.log(0.3)], dtype=torch.float64, requires_grad=True)
    fields = _fields(weight=[1 / 2, 1 / 4, 1 / 4], adv=[1.0, -1.0, -1.0], old_logp=old)
    loss, metrics = GRPOLoss(clip_low=0.2, clip_high=0.2, kl_coef=0.0)(logp, fields, torch.tensor([0, 1, 1]))
    # Token 1: min(2, 1.2) = 1.2. Token 2: min(-0.5, -0.8) = -0.8. Token 3: -1.
    assert loss.item() == pytest.approx(-(1.2 / 2 - 0.8 / 4 - 1.0 / 4))
    assert metrics["clip_fraction"].item() == pytest.approx(1 / 2 + 1 / 4)
    loss.backward()
    # Clipped tokens have no gradient; token 3 has d(-w r A)/dlogp = w.
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([0.0, 0.0, 0.25])


def test_clip_is_not_symmetric_when_named_so():
    logp = torch.tensor([math.log(1.25)], dtype=torch.float64)
    fields = _fields(weight=[1.0], adv=[1.0], old_logp=[0.0])
    assert GRPOLoss(0.2, 0.28, 0.0)(logp, fields, torch.tensor([0]))[0].item() == pytest.approx(-1.25)
    assert GRPOLoss(0.2, 0.2, 0.0)(logp, fields, torch.tensor([0]))[0].item() == pytest.approx(-1.2)


def test_eps_ten_clips_only_above_eleven():
    for ratio, clipped in ((10.9, 0.0), (11.1, 1.0)):
        logp = torch.tensor([math.log(ratio)], dtype=torch.float64)
        fields = _fields(weight=[1.0], adv=[1.0], old_logp=[0.0])
        assert GRPOLoss(10, 10, 0.0)(logp, fields, torch.tensor([0]))[1]["clip_fraction"].item() == clipped


def test_truncated_importance_weight():
    fields = _fields(weight=[0.5, 0.5], adv=[1.0, 1.0], old_logp=[0.0, 0.0], behaviour_logp=[math.log(0.8), -3.0])
    logp = torch.zeros(2, dtype=torch.float64)
    loss, _ = GRPOLoss(0.2, 0.2, 0.0, importance_cap=2.0)(logp, fields, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(-(0.5 * 1.25 + 0.5 * 2.0))


@pytest.mark.parametrize("ratio", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_weighted"])
def test_loss_and_gradient_equal_an_independent_derivation_on_a_softmax_policy(ratio: str, estimator: str):
    """Three outputs from a context-free softmax policy theta [V]; loss and gradient derived in numpy by hand."""
    rng = np.random.default_rng(5)
    num_tokens, doc = 9, np.array([0, 0, 1, 1, 1, 1, 2, 2, 2])
    theta, theta_old, theta_ref = (rng.normal(size=6) for _ in range(3))
    theta_old = theta + 0.3 * theta_old
    tokens = rng.integers(0, 6, num_tokens)
    adv = np.array([1.2, -0.7, 0.4])[doc]
    lengths = np.bincount(doc)
    weight = 1.0 / (3 * lengths[doc])
    beta, low, high = 0.3, 0.02, 0.03

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - np.log(np.exp(x).sum())

    lp, old, ref = (log_softmax(t)[tokens] for t in (theta, theta_old, theta_ref))
    # d logp_t / d theta = onehot(token_t) - softmax(theta), then by the chain rule through the ratio of each token.
    dlp = np.eye(6)[tokens] - np.exp(log_softmax(theta))
    if ratio == "token":
        rho, drho = np.exp(lp - old), np.exp(lp - old)[:, None] * dlp
    else:
        rho, drho = np.zeros(num_tokens), np.zeros((num_tokens, 6))
        for d in range(3):
            mine = doc == d
            scale = 1.0 if ratio == "sequence" else 1.0 / mine.sum()
            rho[mine] = np.exp((lp - old)[mine].sum() * scale)
            drho[mine] = rho[mine][:, None] * scale * dlp[mine].sum(0)
    clipped = np.clip(rho, 1 - low, 1 + high)
    free = rho * adv <= clipped * adv
    x = ref - lp
    base, dbase = {
        "k2": (x**2 / 2, -x[:, None] * dlp),
        "k3": (np.exp(x) - x - 1, (1 - np.exp(x))[:, None] * dlp),
        "k3_weighted": (np.exp(x) - x - 1, (1 - np.exp(x))[:, None] * dlp),
    }[estimator]
    kl, dkl = (rho * base, drho * base[:, None] + rho[:, None] * dbase) if "weighted" in estimator else (base, dbase)
    want = (weight * (-np.where(free, rho * adv, clipped * adv) + beta * kl)).sum()
    want_grad = (weight[:, None] * (-(free * adv)[:, None] * drho + beta * dkl)).sum(0)
    assert 0 < free.sum() < num_tokens  # both branches of the minimum are in the test

    policy = torch.tensor(theta, requires_grad=True)
    logp = torch.log_softmax(policy, -1)[torch.tensor(tokens)]
    given = {"weight": weight, "adv": adv, "old_logp": old, "ref_logp": ref}
    fields = {name: torch.tensor(value) for name, value in given.items()}
    loss, metrics = GRPOLoss(low, high, beta, estimator, ratio)(logp, fields, torch.tensor(doc))  # type: ignore
    loss.backward()
    assert loss.item() == pytest.approx(want, rel=1e-12)
    assert policy.grad is not None
    assert policy.grad.numpy() == pytest.approx(want_grad, rel=1e-10, abs=1e-14)
    assert metrics["clip_fraction"].item() == pytest.approx((weight * ~free).sum())
    assert metrics["kl/mean"].item() == pytest.approx((weight * kl).sum())


def test_documents_carry_one_value_per_target():
    samples = [
        Sample(Int32s([1, 2, 3]), Int32s([4, 5]), 0.5, *map(Float32s, ([-0.1, -0.2], [-0.3, -0.4], [-0.5, -0.6]))),
        Sample(Int32s([1]), Int32s([6]), -0.5, *map(Float32s, ([-1.0], [-1.1], [-1.2]))),
    ]
    first, second = documents(weighted(samples, "sequence_mean", max_length=8))
    assert first.token_ids == Int32s([1, 2, 3, 4, 5])
    assert first.learn_from == 3
    assert first.num_targets == 2
    assert first.fields == {
        "weight": Float32s([0.25, 0.25]),
        "adv": Float32s([0.5, 0.5]),
        "old_logp": Float32s([-0.3, -0.4]),
        "behaviour_logp": Float32s([-0.1, -0.2]),
        "ref_logp": Float32s([-0.5, -0.6]),
    }
    assert second.fields["weight"] == Float32s([0.5])


def test_likelihood_is_the_weighted_negative_log_likelihood():
    loss, _ = likelihood_loss(torch.tensor([-1.0, -3.0]), {"weight": torch.tensor([0.25, 0.75])}, torch.zeros(2))
    assert loss.item() == 2.5


def test_schedules_by_hand():
    cosine = Optimizer(lr=1.0, min_lr_ratio=0.1, schedule="cosine", warmup_steps=4)
    assert learning_rate(cosine, 0, 0.0) == pytest.approx(0.25)
    assert learning_rate(cosine, 4, 0.0) == pytest.approx(1.0)
    assert learning_rate(cosine, 4, 0.5) == pytest.approx(0.55)
    assert learning_rate(cosine, 4, 1.0) == pytest.approx(0.1)
    linear = Optimizer(lr=2.0, min_lr_ratio=0.0, schedule="linear")
    assert learning_rate(linear, 9, 0.25) == pytest.approx(1.5)
    assert learning_rate(Optimizer(lr=3e-6), 10_000, 1.0) == 3e-6
