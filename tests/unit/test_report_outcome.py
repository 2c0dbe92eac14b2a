"""What a chain came to, as the terminal, the page and the figure show it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r1mega.errors import DataError
from r1mega.report import outcome
from r1mega.report.show import show


def cell(mean: float, low: float, high: float, **changes: int) -> dict[str, Any]:
    whole = {"mean": mean, "se": 0.02, "low": low, "high": high, "num_questions": 400, "num_answers": 1600}
    return whole | {"without_score": 0} | changes


def part(**changes: Any) -> dict[str, Any]:
    return {
        "a": "zero", "b": "dev1", "column": "reasoning", "is": "lower", "margin": 0.0, "holds": True,
        "reversed": False,
        "num_questions": 400, "left_out": 0, "mean_a": 0.78, "mean_b": 0.7, "prompts": "the same",
        "difference": {"mean": -0.08, "se": 0.02, "low": -0.1234, "high": -0.037},
    } | changes  # fmt: skip


def summary(*parts: dict[str, Any], outcome: str = "HOLDS", reverses: bool = False) -> dict[str, Any]:
    rows = [
        {"model": "zero", "label": "R1-Zero", "weights": "w0", "cells": {"reasoning": cell(0.78, 0.74, 0.82)}},
        {
            "model": "dev1", "label": "R1-<Dev1>", "weights": "w1",
            "cells": {
                "reasoning": cell(0.7, 0.655, 0.74, without_score=3),
                "instructions": {"num_questions": 0, "num_answers": 0, "without_score": 200},
            },
        },
    ]  # fmt: skip
    claims = [{"claim": "Dev1 falls", "outcome": outcome, "reversed": reverses, "parts": list(parts or [part()])}]
    return {
        "stages": {"eval": {"stage": "evaluate"}},
        "table": {"columns": {"reasoning": "Reasoning", "instructions": "Instructions"}, "rows": rows},
        "relations": claims,
    }


def written(tmp_path: Path, whole: dict[str, Any]) -> Path:
    (tmp_path / "eval").mkdir(exist_ok=True)
    (tmp_path / "eval/summary.json").write_text(json.dumps({"stage": "evaluate", "seconds": 1.0}))
    (tmp_path / "summary.json").write_text(json.dumps(whole))
    return tmp_path


def test_the_terminal_shows_table_and_relations(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    show(written(tmp_path, summary()))
    printed = capsys.readouterr().out
    assert "78.0% (74.0 to 82.0), n = 400" in printed
    assert "70.0% (65.5 to 74.0), n = 400, 3 without a score" in printed
    assert "no score, 200 without a score" in printed
    assert "HOLDS: Dev1 falls" in printed
    said = "Reasoning: R1-<Dev1> lower than R1-Zero: -8.0 points (-12.3 to -3.7; 400 questions), as claimed"
    assert said in printed
    assert (tmp_path / "figures/model_table.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"is": "not_lower", "margin": 0.03, "holds": False, "left_out": 2, "prompts": "each model's own"},
            "Reasoning: R1-<Dev1> not lower than R1-Zero by more than 3 points: -8.0 points (-12.3 to -3.7; 400 "
            "questions, 2 left out, asked in each model's own prompt), which the interval leaves open",
        ),
        ({"is": "higher", "holds": False, "reversed": True, "b": "student"}, "student higher than R1-Zero"),
        ({"is": "higher", "holds": False, "reversed": True}, "(-12.3 to -3.7; 400 questions), the reverse"),
        ({"holds": False, "why": "there is none"}, "Reasoning, R1-<Dev1> against R1-Zero: not judged: there is none"),
    ],
)
def test_a_part_in_words(tmp_path: Path, changes: dict[str, Any], said: str):
    lines = outcome.told(written(tmp_path, summary(part(**changes), outcome="DOES NOT HOLD", reverses=True)))
    assert lines[0] == "DOES NOT HOLD, reversed: Dev1 falls"
    assert said in lines[1]


def test_the_page_has_both_and_escapes_them(tmp_path: Path):
    show(written(tmp_path, summary(part(), part(column="instructions"), outcome="DOES NOT HOLD")))
    page = (tmp_path / "report.html").read_text()
    assert "<th>Reasoning</th><th>Instructions</th>" in page
    assert "R1-&lt;Dev1&gt;" in page and "R1-<Dev1>" not in page
    assert page.count("as claimed") == 2 and "DOES NOT HOLD" in page
    assert 'alt="model_table"' in page and "the relations below the table are paired" in page


def test_a_chain_without_a_table_shows_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole = summary()
    show(written(tmp_path, {"stages": whole["stages"]}))
    assert "HOLDS" not in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Models</h2>" not in page and "<h3>Relations</h3>" not in page
    assert not (tmp_path / "figures/model_table.png").exists()


def test_bars_stand_at_the_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bars: list[tuple[Any, ...]] = []

    class Axes:
        figure = SimpleNamespace(legend=lambda **_: None)

        def bar(self, left: Any, means: Any, width: float, **how: Any) -> None:
            bars.append((left, means, how["yerr"], how["label"]))

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    class Context:
        def __enter__(self) -> Axes:
            return Axes()

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(outcome, "new_axes", lambda *_: Context())
    outcome.draw(written(tmp_path, summary()))
    (left, means, arms, label), (_, none, _, _) = bars
    assert label == "Reasoning" and means == [0.78, 0.7] and none == []
    assert left == [pytest.approx(-0.1875), pytest.approx(0.8125)]
    assert arms[0] == [pytest.approx(0.04), pytest.approx(0.045)] and arms[1] == [pytest.approx(0.04)] * 2


@pytest.mark.parametrize("damage", [{"table": {"columns": {}}}, {"relations": [{"claim": "c"}]}])
def test_a_malformed_summary_is_one_message(tmp_path: Path, damage: dict[str, Any]):
    with pytest.raises(DataError, match=r"summary\.json: its (table is not one|relations are none)"):
        show(written(tmp_path, summary() | damage))
