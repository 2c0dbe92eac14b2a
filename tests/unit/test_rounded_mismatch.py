"""Engine against trainer where either computes in bf16 or fp8: figures by hand, bounds, trend, and who is asked."""

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Cluster
from r1mega.diagnostics.rounded_mismatch import KLWatch, RolloutBounds, measure_spread, spread
from r1mega.diagnostics.settings import Mismatch
from r1mega.errors import MismatchError
from r1mega.samples import Sample
from r1mega.trainer.rescore import engine_spread

BF16: Any = {"dtype": "bf16"}
HALF = Cluster(device="cuda", trainer=BF16, rollout=BF16)


def sample(*differences: float, behaviour: float = 0.0) -> Sample:
    """An answer whose tokens the trainer gives `differences` more than the engine, nats."""
    engine = Float32s.repeated(behaviour, len(differences))
    old = Float32s(behaviour + d for d in differences)
    return Sample(Int32s([1]), Int32s.repeated(3, len(differences)), 0.0, behaviour_logp=engine, old_logp=old)


def figures(*samples: Sample) -> dict[str, float]:
    return spread([measure_spread(samples)])


def test_figures_by_hand():
    got = figures(sample(0.5, -0.25), sample(0.0, 2.0, -1.0))
    k3 = (math.exp(0.5) - 1.5) + (math.exp(-0.25) - 0.75) + 0.0 + (math.exp(2) - 3) + math.exp(-1)
    assert got == {
        "mismatch/mean": pytest.approx(3.75 / 5),
        "mismatch/p999": 2.0,
        "mismatch/max": 2.0,
        "mismatch/far": pytest.approx(1 / 5),  # 1 nat is not past 1 nat
        "mismatch/kl": pytest.approx(k3 / 5),
        "mismatch/answers": 2.0,
        "mismatch/tokens": 5.0,
    }


def test_the_kl_is_that_of_the_engine_from_the_trainer():
    """Tokens in the engine's own proportions, so that the mean over them is the expectation."""
    engine, trainer = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5)
    drawn = [0, 0, 1, 2]
    got = figures(*(sample(math.log(trainer[t] / engine[t])) for t in drawn))["mismatch/kl"]
    kl = sum(p * math.log(p / q) for p, q in zip(engine, trainer, strict=True))
    reverse = sum(q * math.log(q / p) for p, q in zip(engine, trainer, strict=True))
    assert got == pytest.approx(kl) and kl == pytest.approx(reverse)  # of these two both are equal
    skewed = (0.125, 0.25, 0.625)
    got = figures(*(sample(math.log(skewed[t] / engine[t])) for t in drawn))["mismatch/kl"]
    kl = sum(p * math.log(p / q) for p, q in zip(engine, skewed, strict=True))
    reverse = sum(q * math.log(q / p) for p, q in zip(engine, skewed, strict=True))
    assert got == pytest.approx(kl) and abs(kl - reverse) > 0.01


@pytest.mark.parametrize("tokens", [1, 999, 1000, 1001, 5000])
def test_the_percentile_is_too_small_by_one_part_in_128_at_most(tokens: int):
    rng = random.Random(tokens)
    gaps = [rng.lognormvariate(-5, 2) for _ in range(tokens)]
    exact = sorted(gaps)[math.ceil(tokens * 999 / 1000) - 1]
    got = figures(sample(*gaps))["mismatch/p999"]
    assert got <= exact * (1 + 1e-6) and exact <= got * (1 + 1 / 128) * (1 + 1e-6)


def test_one_token_in_a_thousand_is_past_the_percentile():
    assert figures(sample(*[0.25] * 999, 4.0))["mismatch/p999"] == 0.25
    assert figures(sample(*[0.25] * 998, 4.0, 4.0))["mismatch/p999"] == 4.0
    assert figures(sample(0.0, 0.0))["mismatch/p999"] == 0.0


def test_ranks_add_up_to_the_whole_whoever_has_what():
    rng = random.Random(5)
    answers = [sample(*(rng.gauss(0, 0.5) for _ in range(rng.randrange(1, 90)))) for _ in range(40)]
    whole = figures(*answers)
    parts = [measure_spread(answers[:3]), measure_spread([]), measure_spread(answers[3:])]
    assert spread(parts) == pytest.approx(whole, rel=1e-14)
    exact = ("mismatch/p999", "mismatch/max", "mismatch/far", "mismatch/tokens", "mismatch/answers")
    assert all(spread(parts)[name] == whole[name] for name in exact)


def test_the_stage_asks_all_data_parallel_ranks():
    other = measure_spread([sample(1.0, 1.0)])
    mesh = SimpleNamespace(gather_over_data=lambda mine: [mine, other])
    policy: Any = SimpleNamespace(mesh=mesh)
    assert engine_spread(policy, [[sample(0.0)], [sample(0.0)]])["mismatch/mean"] == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_log_probability_that_is_not_finite_stops_the_run(value: float):
    with pytest.raises(MismatchError, match="not finite"):
        figures(sample(0.0), sample(0.0, value))


def test_a_difference_past_what_exp_takes_is_past_every_bound():
    found = figures(sample(0.0, 1000.0))
    with pytest.raises(MismatchError, match="KL"):
        RolloutBounds(mean=1e9, kl=1e9, causes="").refuse(found)


@pytest.mark.parametrize(("moe", "mean", "kl"), [(False, 1e-2, 1e-3), (True, 3e-2, 1e-2)])
def test_bounds_follow_the_model_unless_they_are_stated(moe: bool, mean: float, kl: float):
    left, stated = (RolloutBounds.of(s, HALF, moe=moe) for s in (Mismatch(), Mismatch(mean=0.5, kl=0.25)))
    assert (left.mean, left.kl) == (mean, kl) and (stated.mean, stated.kl) == (0.5, 0.25)
    within = {
        "mismatch/mean": mean,
        "mismatch/kl": kl,
        "mismatch/tokens": 9,
        "mismatch/p999": 9.0,
        "mismatch/far": 1.0,
    }
    left.refuse(within)  # at the bound, and whatever single tokens say
    for name, bound in (("mean", mean), ("kl", kl)):
        with pytest.raises(MismatchError, match=rf"more than mismatch\.{name} = {bound:g}\."):
            left.refuse({**within, f"mismatch/{name}": 1.01 * bound})


def said(cluster: Cluster, *, moe: bool) -> str:
    with pytest.raises(MismatchError) as error:
        RolloutBounds.of(Mismatch(), cluster, moe=moe).refuse(figures(sample(*[0.5] * 8)))
    return str(error.value)


def in_order(text: str, *parts: str) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_what_is_to_blame_is_named_in_the_order_in_which_it_is_ruled_out():
    text = said(HALF, moe=True)
    assert in_order(
        text, "nats, is 0.5, more than mismatch.mean = 0.03", "mismatch.kl = 0.01", "proven by checksums",
        '(1) answers replayed', "(2) what rounds: cluster.trainer.dtype = bf16, cluster.rollout.dtype = bf16",
        "head and router", "(3) the engine's kernels of experts", '"triton"', "(4)",
    ), text  # fmt: skip
    dense = said(HALF, moe=False)
    assert "experts" not in dense and "head must" in dense and "mismatch.mean = 0.01" in dense
    unproven = HALF.model_copy(update={"weights": HALF.weights.model_copy(update={"verify": 0})})
    assert in_order(said(unproven, moe=False), "Nobody has proven", "cluster.weights.verify = 1 first", "(1)")
    fp8 = HALF.model_copy(update={"weights": HALF.weights.model_copy(update={"fp8": True})})
    assert "cluster.weights.fp8 = True, fp8 on one side alone" in said(fp8, moe=False)


def watched(watch: KLWatch, values: list[float]) -> list[str]:
    return [text for value in values if (text := watch.see(value)[1])]


def test_a_kl_that_rises_is_warned_of_once_and_one_that_does_not_is_not():
    rng, settings = random.Random(3), Mismatch(window=12)
    flat = [1e-4 * (1 + 0.1 * rng.gauss(0, 1)) for _ in range(60)]
    assert watched(KLWatch(settings, 60), flat) == []
    rising = [1e-4 * (1 + 0.2 * i + 0.1 * rng.gauss(0, 1)) for i in range(60)]
    (text,) = watched(KLWatch(settings, 60), rising)
    assert text.startswith("engine and trainer drift apart: over 12 rollouts KL(engine || trainer) rose by 0.0002")
    slow = [1e-4 * (1 + 0.02 * i) for i in range(60)]  # certain, and no doubling
    assert watched(KLWatch(settings, 60), slow) == []
    assert KLWatch(settings, 60).level == pytest.approx(0.05 / 49)


def test_the_trend_is_a_figure_of_every_full_window():
    watch = KLWatch(Mismatch(window=12), 20)
    rows = [watch.see(0.5 + 0.25 * i)[0] for i in range(13)]
    assert rows[:11] == [{}] * 11
    assert [row["mismatch/kl_change"] for row in rows[11:]] == pytest.approx([0.25 * 11] * 2)
    assert [row["mismatch/kl_p"] for row in rows[11:]] == [0.0, 0.0]  # no noise at all


def test_a_warning_is_a_row_and_an_event(monkeypatch: pytest.MonkeyPatch):
    from r1mega.stages import comparing

    told: list[tuple[Any, ...]] = []
    records = SimpleNamespace(log=lambda *row: told.append(row), event=lambda *event: told.append(event))
    monkeypatch.setattr(comparing, "engine_spread", lambda policy, minibatches: {"mismatch/kl": 0.5})
    compared = comparing.ByRollout.__new__(comparing.ByRollout)
    compared._policy, compared._records = SimpleNamespace(mesh=SimpleNamespace(first=True)), records
    compared._bounds = SimpleNamespace(refuse=lambda found: None)
    compared._watch = SimpleNamespace(see=lambda kl: ({"mismatch/trend": kl}, f"KL rises to {kl}"))
    assert compared.compare(3, []) == {"mismatch/kl": 0.5, "mismatch/trend": 0.5}
    assert told == [("warning", 4, {"warning": "KL rises to 0.5"}), ("mismatch-alert", 4, "KL rises to 0.5")]
