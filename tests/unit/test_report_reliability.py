"""A reward model's reliability diagram: what is drawn, from which row, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1mega.diagnostics.preferences import of_pairs
from r1mega.errors import DataError
from r1mega.report import figures, reliability
from r1mega.report.catalogue import CAPTIONS
from r1mega.report.summary import cost_lines


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(figures.STYLE, "figure.dpi", 40)


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def bins(*scores: float) -> list[list[float]]:
    found = of_pairs([(s, 0.0) for s in scores], [(1, 1)] * len(scores)).bins
    return [[of.low, of.high, of.count, of.predicted, of.observed] for of in found]


def test_first_and_last_validation_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[tuple[list[float], list[float]]] = []
    real = reliability._line

    def line(axes: Any, points: Any, *rest: Any, **more: Any) -> None:
        drawn.append(([x for x, *_ in points], [y for _, y, _ in points]))
        real(axes, points, *rest, **more)

    monkeypatch.setattr(reliability, "_line", line)
    rows = [{"kind": "validation", "step": s, "validation/bins": b} for s, b in ((0, bins(0.1)), (5, bins(9.0)))]
    rows.append({"kind": "validation", "step": 9, "validation/bins": bins(2.0, -2.0, 2.0)})
    path = reliability.draw(write(tmp_path, [*rows, {"kind": "train", "step": 9}]))
    assert path == tmp_path / "figures/reliability.png" and path.read_bytes().startswith(b"\x89PNG")
    # sigmoid(0.1), right; sigmoid(2) = 0.881 of three, of which two are right
    assert drawn == [
        ([pytest.approx(0.525, abs=1e-3)], [1.0]),
        ([pytest.approx(0.8808, abs=1e-4)], [pytest.approx(2 / 3)]),
    ]
    assert path.stem in CAPTIONS


def test_a_run_without_bins_has_no_diagram_and_a_malformed_one_is_refused(tmp_path: Path):
    assert reliability.draw(tmp_path) is None
    assert reliability.draw(write(tmp_path, [{"kind": "validation", "step": 1, "validation/loss": 1.0}])) is None
    with pytest.raises(DataError, match="a validation's bins are not bins"):
        reliability.draw(write(tmp_path, [{"kind": "validation", "step": 1, "validation/bins": [[1, 2]]}]))


def test_the_summary_has_a_line_for_each_figure():
    found = cost_lines(
        {"validation_before": {"accuracy": 0.5}, "validation_after": {"accuracy": 0.9712, "pairs": 40.0}}
    )
    assert found == {
        "held out, before: accuracy": "0.5000", "held out, after: accuracy": "0.9712", "held out: pairs": "40",
    }  # fmt: skip
