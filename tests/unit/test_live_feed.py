"""Curves of a stage: thinned, with their extremes; taken back where steps are; and in parts for whoever has some."""

import json
from pathlib import Path

import pytest
from watched_runs import eval_row, train_row, write_lines

from r1mega.report.catalogue import FIGURES
from r1mega.report.live import tail as tails
from r1mega.report.live import thinned as thinning
from r1mega.report.live.feed import FIRST, LIVE_FIGURES, Feed, curves_since
from r1mega.report.live.thinned import Thinned


def points(curve: Thinned) -> list[list[float]]:
    return curve.since(-1)[1]


def test_a_short_curve_is_kept_as_it_is():
    curve = Thinned()
    for x in range(5):
        curve.add(x, x / 3, end=10 * (x + 1))
    assert points(curve) == [[0, 0], [1, 0.33333], [2, 0.66667], [3, 1], [4, 1.3333]]


def test_a_long_curve_keeps_its_spikes_and_means(monkeypatch):
    monkeypatch.setattr(thinning, "MAX_POINTS", 8)
    curve, values = Thinned(), [float(x % 7) for x in range(1000)]
    values[617] = 99.0
    for x, value in enumerate(values):
        curve.add(x, value, end=x + 1)
    shown = points(curve)
    assert 8 <= len(shown) < 16 and shown[-1][0] == 999
    assert max(point[3] for point in shown) == 99.0 and min(point[2] for point in shown) == 0.0
    width = 128  # 1000 values in points of 2^7
    for i, point in enumerate(shown):
        part = values[i * width : (i + 1) * width]
        assert point[1] == pytest.approx(sum(part) / len(part), rel=1e-4)
        assert (point[2], point[3]) == (min(part), max(part))


def test_the_ends_of_an_interval_are_averaged_and_no_extremes(monkeypatch):
    monkeypatch.setattr(thinning, "MAX_POINTS", 2)
    curve = Thinned(interval=True)
    for x in range(4):
        curve.add(x, 0.5 + x / 10, x + 1, low=0.4 + x / 10, high=0.6 + x / 10)
    assert points(curve) == [[1, 0.55, 0.45, 0.65], [3, 0.75, 0.65, 0.85]]


def test_who_has_a_part_gets_the_rest_the_point_that_grew_included(monkeypatch):
    monkeypatch.setattr(thinning, "MAX_POINTS", 4)
    curve = Thinned()
    for x in range(8):
        curve.add(x, x, end=x + 1)  # joined in pairs with the eighth
    assert curve.joined == 1 and len(curve) == 4
    curve.add(8, 8, end=9)
    assert curve.since(8) == (4, [[8, 8]])
    curve.add(9, 10, end=10)
    assert curve.since(9) == (4, [[9, 9, 8, 10]]) and curve.since(10) == (5, [])


def test_what_is_taken_again_is_dropped(monkeypatch):
    curve = Thinned()
    for x in range(10):
        curve.add(x, x, end=x + 1)
    curve.drop_from(20)
    assert curve.joined == 0 and len(curve) == 10
    curve.drop_from(7)
    assert [p[0] for p in points(curve)] == [0, 1, 2, 3, 4, 5, 6] and curve.joined == 1


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    rows = [eval_row(0, 0.2), *(train_row(step) for step in range(1, 9)), eval_row(8, 0.6)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    return tmp_path


def fed(stage: Path) -> Feed:
    feed = Feed(stage)
    feed.refresh()
    return feed


def ids(told: list) -> dict[str, dict]:
    return {curve["id"]: curve for figure in told for curve in figure["curves"]}


def test_curves_are_the_catalogues_and_the_phases_and_speeds(stage: Path):
    told = curves_since(fed(stage), -1)
    curves = ids(told)
    assert curves["eval:eval/strict"]["points"] == [[0, 0.2, 0.1, 0.3], [8, 0.6, 0.5, 0.7]]
    assert [x for x, *_ in curves["train:reward/total"]["points"]] == list(range(1, 9))
    assert curves["train:reward/total"]["points"][0] == [1, 0.501, 0.4, 0.6] and curves["train:reward/total"]["bars"]
    assert curves["train:seconds/rollout"]["points"] == [[1, 4], [3, 4], [5, 4], [7, 4]]
    assert curves["train:live/rollout_rate"]["points"][0] == [1, 2500]  # 10,000 tokens in 4 s
    assert curves["train:live/update_rate"]["points"][0] == [1, 5000]
    order = [figure["id"] for figure in told]
    assert order.index("reward") < order.index("speed") < order.index("phases") and set(FIRST) >= set(order)
    assert {figure.file for figure in FIGURES} < {figure.file for figure in LIVE_FIGURES}


def test_a_figure_without_points_is_left_out(tmp_path: Path):
    write_lines(tmp_path / "metrics.jsonl", [{"kind": "train", "step": 1, "loss": None, "grad_norm": 0.5}])
    assert [figure["id"] for figure in curves_since(fed(tmp_path), -1)] == ["grad_norm"]


def test_steps_taken_again_replace_those_before(stage: Path):
    """As a run that went back to step 5 appends them: evaluations behind that are gone as well."""
    feed = fed(stage)
    before = feed.version
    with (stage / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_row(6, loss=7.0)) + "\n")
    feed.refresh()
    curves = ids(curves_since(feed, -1))
    assert [x for x, _ in curves["train:loss"]["points"]] == [1, 2, 3, 4, 5, 6]
    assert curves["train:loss"]["points"][-1] == [6, 7]
    assert [p[0] for p in curves["eval:eval/strict"]["points"]] == [0]
    assert feed.rollbacks == 1 and feed.version != before
    assert [row["step"] for row in feed.recent] == [1, 2, 3, 4, 5, 6]


def test_a_file_written_anew_takes_everything_back(stage: Path):
    feed = fed(stage)
    new = write_lines(stage / "new", [train_row(1), train_row(2)])
    new.replace(stage / "metrics.jsonl")
    feed.refresh()
    curves = ids(curves_since(feed, -1))
    assert [x for x, _ in curves["train:loss"]["points"]] == [1, 2] and "eval:eval/strict" not in curves
    assert feed.rollbacks == 1 and feed.counts["train"] == 2


def test_a_validation_measured_again_at_its_step_replaces_it(stage: Path):
    with (stage / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(eval_row(8, 0.7)) + "\n" + json.dumps(eval_row(8, 0.8)) + "\n")
    curves = ids(curves_since(fed(stage), -1))
    assert curves["eval:eval/strict"]["points"][-1] == [8, 0.8, 0.7, 0.9]
    assert len(curves["eval:eval/strict"]["points"]) == 2 and len(curves["train:loss"]["points"]) == 8


def test_a_long_file_is_read_in_parts_and_fits_in_memory(tmp_path: Path, monkeypatch):
    """A run that names a new phase a step fills no memory with names."""
    num = 3000
    rows = [train_row(step) | {f"seconds/phase_{step}": 1.0} for step in range(1, num + 1)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    monkeypatch.setattr(tails, "CHUNK_BYTES", 2**18)
    feed, looks = fed(tmp_path), 1
    while feed.tail.behind:
        feed.refresh()
        looks += 1
    assert looks > 3 and feed.counts["train"] == num and len(feed.curves) == 200
    assert len(feed.curves["train", "loss"]) < 2 * thinning.MAX_POINTS and len(feed.recent) == 400
