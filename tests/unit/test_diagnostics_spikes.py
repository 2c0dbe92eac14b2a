"""When a step's loss or norm counts as a spike: by hand, and where the numbers are known in closed form."""

import math
import statistics

import pytest

from r1mega.diagnostics.spikes import LEAST_SPREAD, TO_DEVIATION, Spike, finite, robust_z, spike

BOTH = {"loss": 10.0, "grad_norm": 4.0}


def test_deviations_are_counted_from_the_median_in_those_of_a_normal_distribution():
    assert pytest.approx(1 / statistics.NormalDist().inv_cdf(0.75), rel=1e-5) == TO_DEVIATION
    # 1 2 3 4 5: median 3, deviations 2 1 0 1 2, of which the median is 1.
    assert robust_z(3 + 4 * TO_DEVIATION, [5.0, 1.0, 4.0, 2.0, 3.0]) == pytest.approx(4.0)
    assert robust_z(3 - 4 * TO_DEVIATION, [5.0, 1.0, 4.0, 2.0, 3.0]) == pytest.approx(-4.0)
    # Of equal steps 0 ... 2k the deviations' median is k / 2 steps on a side: (k + 1) // 2 for the whole window.
    for k in (4, 7, 10):
        window = [float(i) for i in range(2 * k + 1)]
        assert robust_z(2.0 * k, window) == pytest.approx(k / (TO_DEVIATION * ((k + 1) // 2)))


def test_scale_and_place_of_a_curve_do_not_matter():
    window = [0.3, 0.1, 0.7, 0.4, 0.2, 0.9, 0.5]
    plain = robust_z(2.0, window)
    assert robust_z(2000.0, [1000 * x for x in window]) == pytest.approx(plain)
    assert robust_z(-1.0, [x - 3 for x in window]) == pytest.approx(plain)  # losses of RL have either sign


def test_spikes_in_the_window_hide_no_other():
    """Three of eight: mean and standard deviation would put the next one among them."""
    window = [1.0, 1.1, 0.9, 1.05, 0.95, 50.0, 60.0, 70.0]
    assert (60.0 - statistics.mean(window)) / statistics.stdev(window) < 2
    assert robust_z(60.0, window) > 200


def test_a_smooth_curve_is_judged_by_a_share_of_its_median():
    assert robust_z(1.1, [1.0] * 9) == pytest.approx(0.1 / LEAST_SPREAD)
    assert robust_z(1.1, [1.0 + 1e-9 * i for i in range(9)]) == pytest.approx(0.1 / LEAST_SPREAD, rel=1e-5)
    assert robust_z(-0.9, [-1.0] * 9) == pytest.approx(0.1 / LEAST_SPREAD)


def test_where_most_values_are_0_nothing_is_far_from_them():
    """Rollouts whose groups are all alike teach nothing; the first that does is no spike."""
    assert robust_z(0.3, [0.0] * 5 + [0.1] * 4) == 0.0
    assert robust_z(0.3, [0.0] * 4 + [0.1] * 5) > 0


def test_the_worst_of_the_judged_figures_is_told_once_the_window_is_full():
    windows = {"loss": [1.0, 2.0, 3.0, 4.0, 5.0], "grad_norm": [1.0, 2.0, 3.0, 4.0, 5.0]}
    at = 3 + 8 * TO_DEVIATION
    found = spike({"loss": at, "grad_norm": at}, windows, BOTH, 5)
    assert found is not None and (found.figure, found.value, found.median) == ("grad_norm", at, 3.0)
    assert found.z == pytest.approx(8.0) and str(found).startswith(
        "grad_norm 14.86, 8.0 deviations above the median 3"
    )
    assert spike({"loss": at, "grad_norm": at}, windows, {"loss": 10.0, "grad_norm": 0.0}, 5) is None  # not judged
    assert spike({"loss": at, "grad_norm": at}, windows, {"loss": 0.0, "grad_norm": 8.1}, 5) is None
    assert spike({"loss": -at, "grad_norm": 0.0}, windows, BOTH, 5) is None  # a fall
    assert spike({"loss": 1e9, "grad_norm": 1e9}, windows, BOTH, 6) is None  # not yet
    worst = spike({"loss": 1e9, "grad_norm": at}, windows, BOTH, 5)
    assert isinstance(worst, Spike) and worst.figure == "loss"  # by its own bound


def test_of_a_longer_window_the_last_values_count():
    window = {"loss": [1e6] * 9 + [1.0, 2.0, 3.0, 4.0, 5.0]}
    assert spike({"loss": 100.0}, window, {"loss": 10.0}, 5) is not None
    assert spike({"loss": 100.0}, window, {"loss": 10.0}, 14) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_finite(value: float):
    assert not finite({"loss": 1.0, "grad_norm": value}) and not finite({"loss": value, "grad_norm": 1.0})
    assert finite({"loss": -1.0, "grad_norm": 0.0})
