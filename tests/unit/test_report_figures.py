"""Figures from run directories: what is drawn, and from which numbers."""

import contextlib
import json

import pytest

from r1mega.errors import DataError
from r1mega.evaluation.metrics import Graded, summarise
from r1mega.report import figures
from r1mega.report.catalogue import CAPTIONS, COMPARISON, FIGURES
from r1mega.report.figures import draw, pass_at_1
from r1mega.report.rows import number, read_rows, series


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Fewer dots draw faster."""
    monkeypatch.setitem(figures.STYLE, "figure.dpi", 40)


PNG = b"\x89PNG\r\n\x1a\n"


def write(run_dir, rows=None, summary=None):
    run_dir.mkdir(parents=True, exist_ok=True)
    if rows is not None:
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


def train(step, **metrics):
    return {"kind": "train", "step": step, **metrics}


def test_only_figures_with_numbers_are_written(tmp_path):
    rows = [train(i, **{"kl/mean": 0.1 * i, "loss": None, "mismatch/max": 0.0}) for i in range(1, 4)]
    rows.append({"kind": "eval", "step": 0, "eval/strict": 0.4, "kl/mean": 9.0})
    written = draw(write(tmp_path, rows))
    assert [path.name for path in written] == ["pass_at_1.png", "kl.png"]
    assert all(path.parent == tmp_path / "figures" and path.read_bytes().startswith(PNG) for path in written)
    assert sorted((tmp_path / "figures").iterdir()) == sorted(written), "nothing else is left behind"


def test_every_figure_can_be_drawn_and_has_a_labelled_axis(tmp_path):
    keys = {(curve.kind, curve.key) for figure in FIGURES for curve in figure.curves}
    rows = [{"kind": kind, "step": step, key: 0.5} for kind, key in keys for step in (1, 2)]
    assert len(draw(write(tmp_path, rows), tmp_path / "elsewhere")) == len(FIGURES)
    assert all(figure.title and figure.y_label for figure in FIGURES)


def test_a_change_of_settings_is_a_dotted_line_in_every_figure(tmp_path, monkeypatch):
    drawn = []
    plain = figures.new_axes

    @contextlib.contextmanager
    def kept(*arguments):
        with plain(*arguments) as axes:
            yield axes
            drawn.append((arguments[1], axes.get_xlabel(), [tuple(line.get_xdata()) for line in axes.lines]))

    monkeypatch.setattr(figures, "new_axes", kept)
    rows = [train(i, **{"kl/mean": 0.1 * i, "entropy": 1.0}) for i in range(1, 9)]
    changed = [{"kind": "schedule", "step": step, "sampling.max_new_tokens": 9} for step in (2, 6)]
    draw(write(tmp_path / "plain", rows))
    num = len(drawn)
    draw(write(tmp_path / "changed", [*rows, *changed]))
    without, having = drawn[:num], drawn[num:]
    assert [title for title, *_ in without] == [title for title, *_ in having] and num >= 2
    for (_, label, lines), (_, dotted, more) in zip(without, having, strict=True):
        assert (label, dotted) == ("optimiser step", "optimiser step (dotted: settings change)")
        assert more[:2] == [(2.0, 2.0), (6.0, 6.0)] and len(more) == len(lines) + 2


def test_an_empty_run_has_no_figures_and_a_missing_one_is_an_error(tmp_path):
    assert draw(write(tmp_path / "empty", [])) == []
    with pytest.raises(DataError, match=r"cannot read .*metrics.jsonl"):
        draw(tmp_path / "absent")


def test_rows_of_a_running_stage(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    assert read_rows(file) == [{"kind": "train", "step": 1}]
    for text, message in (('{"a": 1}\nnonsense\n', "line 2: not JSON"), ("[]\n", "line 1: a row is a JSON object")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_rows(file)


def test_series_takes_finite_numbers_of_one_kind_in_order():
    rows = [train(3, y=0.3), train(1, y=0.1), train(2, y=None), train(4), train(5, y=True), train(6, y=float("inf"))]
    rows.append({"kind": "eval", "step": 7, "y": 0.7})
    assert series(rows, "train", "step", "y") == ([1, 3], [0.1, 0.3])
    assert number({"y": "0.5"}, "y") is None


def test_a_long_curve_is_thinned_out_and_keeps_its_spikes():
    ys = [0.0] * 100_000
    ys[12_345], ys[54_321], ys[-1] = 9.0, -9.0, 1.0
    xs, kept = figures._thin(range(100_000), ys)
    assert len(xs) <= figures.MAX_POINTS and (xs[0], xs[-1]) == (0, 99_999)
    assert {x: y for x, y in zip(xs, kept, strict=True) if y} == {12_345: 9.0, 54_321: -9.0, 99_999: 1.0}
    assert list(xs) == sorted(xs)
    assert figures._thin([1, 2], [3, 4]) == ([1, 2], [3, 4])


def test_the_running_mean_has_fewer_neighbours_towards_the_ends():
    assert figures._running_mean([6.0, 0.0, 3.0, 0.0, 6.0], 2) == [6.0, 3.0, 3.0, 3.0, 6.0]
    assert figures._running_mean([1.0, 2.0], 5) == [1.0, 2.0]


def test_every_figure_says_what_to_look_for():
    assert all(CAPTIONS[figure.file].endswith(".") for figure in FIGURES) and CAPTIONS[COMPARISON].endswith(".")


def evaluation(share):
    return {"strict": {"mean": share, "se": 0.01, "low": share - 0.1, "high": share + 0.2}}


def test_evaluations_stand_at_the_seconds_trained_so_far(tmp_path):
    seconds = {"seconds/rollout": 2.0, "seconds/update": 1.0}
    rl = write(
        tmp_path / "rl",
        [
            {"kind": "eval", "step": 0, "eval/strict": 0.4, "eval/strict_low": 0.3, "eval/strict_high": 0.45},
            train(1, **seconds),
            train(2, **seconds),
            {"kind": "eval", "step": 2, "eval/strict": 0.7},
            train(3, **seconds),
        ],
    )
    base = write(tmp_path / "base", summary={"stage": "evaluate", "seconds": 99, "eval": {"after": evaluation(0.4)}})
    control = write(tmp_path / "control", [train(1, **{"seconds/update": 5.0})], {"stage": "pretrain", "seconds": 5})
    after = write(
        tmp_path / "after", summary={"stage": "evaluate", "seconds": 99, "eval": {"after": evaluation(0.5)}}
    )
    unlogged = write(tmp_path / "unlogged", summary={"seconds": 8, "eval": {"after": evaluation(0.6)}})
    begin, end = (0, 0.4, 0.3, 0.45), (6, 0.7, 0.7, 0.7)  # of an older version: no interval, no bar
    assert figures._over_time([rl]) == [begin, end]
    assert figures._over_time([base, control, after]) == [(0, 0.4, 0.4 - 0.1, 0.4 + 0.2), (5, 0.5, 0.4, 0.7)]
    assert figures._over_time([rl, unlogged]) == [begin, end, (17, 0.6, 0.5, 0.6 + 0.2)]

    out = tmp_path / "figures" / "compare.png"
    assert pass_at_1({"GRPO": rl, "control": [base, control, after]}, out) == out
    assert out.read_bytes().startswith(PNG)


def test_no_evaluation_no_comparison(tmp_path):
    run = write(tmp_path / "run", [train(1, loss=1.0)])
    assert pass_at_1({"run": run, "absent": tmp_path / "absent"}, tmp_path / "compare.png") is None
    assert not (tmp_path / "compare.png").exists()


class Drawn:
    """What `errorbar` is asked for."""

    def __init__(self, monkeypatch):
        from matplotlib.axes import Axes

        self.bars, real = [], Axes.errorbar

        def errorbar(axes, x, y, yerr=None, **style):
            self.bars.append((style.get("label"), [*x], [*y], yerr))
            return real(axes, x, y, yerr=yerr, **style)

        monkeypatch.setattr(Axes, "errorbar", errorbar)


def test_bars_are_the_clustered_interval_of_the_evaluation(tmp_path, monkeypatch):
    """Not 1.96 standard errors, which leave [0, 1]: of 4 questions of which 3 are right, Wilson's by question."""
    answers = [Graded(str(q), q < 3, True, True, False, "think", 20) for q in range(4) for _ in range(2)]
    result = summarise(answers)
    low, high = wilson(0.75, 0.25, 4)
    drawn = Drawn(monkeypatch)
    rows = [{"kind": kind, "step": 3, **result.metrics()} for kind in ("eval", "eval_greedy")]
    draw(write(tmp_path, rows), tmp_path / "out")
    bars = {label: (x, y, yerr) for label, x, y, yerr in drawn.bars}
    for label in ("right, in the format (pass@1)", "right, in the format, greedy"):
        assert bars[label][:2] == ([3], [0.75])
        assert [arm for (arm,) in bars[label][2]] == pytest.approx([0.75 - low, high - 0.75], abs=1e-4)
    assert bars["right, in any format"][2] == [[pytest.approx(1 - wilson(1.0, 0.0, 4)[0], abs=1e-4)], [0.0]]
    assert bars["in the format"][2] is None
    compare = {"stage": "evaluate", "eval": {"after": result.to_json()}}
    pass_at_1({"one": write(tmp_path / "one", summary=compare)}, tmp_path / "compare.png")
    assert [arm for (arm,) in drawn.bars[-1][3]] == pytest.approx([0.75 - low, high - 0.75], abs=1e-4)


def wilson(mean, se, num):
    """By the formula of the guide, with Student's t of a table: 3.1824 at 3 degrees of freedom."""
    assert num == 4
    c, n = 3.1824, mean * (1 - mean) / se**2 if se else num
    half = c * (mean * (1 - mean) / n + c * c / (4 * n * n)) ** 0.5
    return [(mean + c * c / (2 * n) + sign * half) / (1 + c * c / n) for sign in (-1, 1)]
