"""Reward hacking on the page: the figure, the moment it marks, the list of warnings, the line of the table."""

import io
import json
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from r1mega.report import figures, hacking, page, summary
from r1mega.report.catalogue import CAPTIONS, HACKING

TEXT = "over 20 rollouts the trained reward <rm> rose by 2 while rule fell by 0.5"


def line(step: int, **changed) -> dict:
    found = {"trained": step / 4, "rule": 0.9 - step / 20, "other": 0.5, "response_length": 20.0, "repetition": 0.0}
    return {"kind": "train", "step": step, "loss": 0.1} | {f"hacking/rm/{n}": x for n, x in (found | changed).items()}


def warned(step: int, grade: str = "parted") -> dict:
    return {
        "kind": "hacking",
        "step": step,
        "grade": grade,
        "reward": "rm",
        "against": "rule",
        "p": 1e-6,
        "text": TEXT,
    }


def write(run_dir: Path, rows: list[dict]) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def drawn(run_dir: Path):
    """The axes that were drawn, left and right, before their file was written."""
    from matplotlib.figure import Figure

    kept = []
    whole = Figure.savefig

    def savefig(canvas, *arguments, **settings):
        kept.extend(canvas.axes)
        return whole(canvas, *arguments, **settings)

    with mock.patch.object(Figure, "savefig", savefig), mock.patch.dict(figures.STYLE, {"figure.dpi": 40}):
        assert hacking.draw(run_dir) == run_dir / "figures/hacking.png"
    return kept


def test_the_figure_has_what_parted_and_when(tmp_path: Path):
    rows = [line(step) for step in range(1, 13)] + [warned(9), warned(11, "suspected")]
    left, right = drawn(write(tmp_path, rows))
    trained, *marks = left.get_lines()
    assert list(trained.get_ydata()) == [step / 4 for step in range(1, 13)]
    assert [(mark.get_xdata()[0], mark.get_linestyle()) for mark in marks] == [(9, "-"), (11, ":")]
    assert [list(truth.get_ydata())[-1] for truth in right.get_lines()] == pytest.approx([0.3, 0.5])
    assert right.get_ylim() == (-0.02, 1.02)
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == ["rm", "rule", "other", "warned: parted", "warned: suspected"]


def test_truths_that_are_no_shares_have_their_own_scale_and_absent_values_no_point(tmp_path: Path):
    left, right = drawn(write(tmp_path, [line(1, rule=-3.0), line(2, rule=None), line(3, rule=5.0)]))
    assert list(right.get_lines()[0].get_xdata()) == [1, 3]
    assert right.get_ylim()[0] < -3 and right.get_ylim()[1] > 5
    assert len(left.get_lines()) == 1


def test_a_run_without_a_watched_reward_has_no_figure(tmp_path: Path):
    assert hacking.draw(tmp_path) is None
    assert hacking.draw(write(tmp_path, [{"kind": "train", "step": 1, "loss": 0.1}])) is None


def test_the_page_lists_the_warning_and_the_table_counts_it(tmp_path: Path):
    run_dir = write(tmp_path / "rl", [line(1), line(2), warned(2), warned(2, "suspected")])
    with mock.patch.dict(figures.STYLE, {"figure.dpi": 40}):
        html = page.write(run_dir, [hacking.draw(run_dir)]).read_text(encoding="utf-8")
    escaped = TEXT.replace("<", "&lt;").replace(">", "&gt;")
    assert f"step 2: reward hacking: {escaped}" in html and f"step 2: reward hacking suspected: {escaped}" in html
    assert f'alt="{HACKING}"' in html and CAPTIONS[HACKING].split(";")[0].replace("'", "&#39;") in html
    assert "warnings of reward hacking: parted" in html  # as far as an unfinished run has got
    whole = {"stage": "grpo", "steps": 4, "hacking": {"parted": 1.0, "first step": 2.0}}
    (run_dir / "summary.json").write_text(json.dumps(whole))
    console = Console(file=io.StringIO(), width=120)
    console.print(summary.table([run_dir]))
    lines = [shown for shown in console.file.getvalue().splitlines() if "hacking" in shown]
    assert [shown.split("│")[1].strip() for shown in lines] == [
        "warnings of reward hacking: parted", "warnings of reward hacking: first step",
    ]  # fmt: skip
    assert [shown.split("│")[2].strip() for shown in lines] == ["1", "2"]
