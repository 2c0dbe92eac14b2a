"""What a finished run and a finished pipeline show."""

import json
import os
from pathlib import Path

import pytest

from r1mega.errors import DataError
from r1mega.evaluation.metrics import Graded, summarise
from r1mega.report.show import show


def result(right: int, of: int = 4) -> dict:
    graded = [Graded(str(q), q < right, q < right, True, False, "think", 20) for q in range(of)]
    return summarise(graded).to_json()


def stage(run_dir: Path, summary: dict, rows: list[dict]) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "summary.json").write_text(json.dumps(summary))
    if rows:
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A base, RL that was evaluated before and after, and a control with an evaluation of its own."""
    train = [{"kind": "train", "step": s, "loss": 1.0 / s, "seconds/update": 60.0} for s in (1, 2)]
    evals = [
        {"kind": "eval", "step": s, "eval/strict": v, "eval/strict_low": v - 0.1, "eval/strict_high": v + 0.2}
        for s, v in ((0, 0.25), (2, 0.75))
    ]
    stages = {
        "base": ({"stage": "pretrain", "seconds": 120.0, "steps": 2}, train),
        "rl": ({"stage": "grpo", "seconds": 120.0, "eval": {"before": result(1), "after": result(3)}}, train + evals),
        "control": ({"stage": "pretrain", "seconds": 120.0, "steps": 2}, train),
        "control_eval": ({"stage": "evaluate", "eval": {"after": result(2)}}, []),
    }
    for name, (summary, rows) in stages.items():
        stage(tmp_path / name, summary, rows)
    evaluated = {"stage": {"model": {"path": str(tmp_path / "control/hf")}}}
    (tmp_path / "control_eval/config.json").write_text(json.dumps(evaluated))
    samples = tmp_path / "rl/samples"
    samples.mkdir()
    for step, text in ((0, "it is seven"), (2, "<think>1+1=2</think><answer>2</answer>")):
        row = {"step": step, "question": "1 + 1 =", "truth": "2", "text": text, "reward": 0.0, "parts": {}}
        (samples / f"step_{step}.jsonl").write_text(json.dumps(row) + "\n")
    whole = {
        "stages": {name: summary for name, (summary, _) in stages.items()},
        "questions": {"trained_on": 1200, "held_out": 4, "overlap": 0},
    }
    (tmp_path / "summary.json").write_text(json.dumps(whole))
    return tmp_path


def test_a_pipeline_shows_rl_beside_its_control(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    show(pipeline)
    printed = capsys.readouterr().out
    for part in ("25.0", "75.0", "50.0", "control_eval", "it is seven", "<think>1+1=2</think>", "1,200 trained on"):
        assert part in printed, part
    assert (pipeline / "figures/rl_and_control.png").stat().st_size > 5_000
    assert (pipeline / "rl/figures/pass_at_1.png").exists()
    assert (pipeline / "base/figures/loss.png").exists()
    assert not (pipeline / "control_eval/figures").exists()


def test_a_run_that_goes_on_is_shown_as_far_as_it_got(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    (pipeline / "summary.json").unlink()
    (pipeline / "control_eval/summary.json").unlink()
    (pipeline / "rl/summary.json").unlink()
    show(pipeline)
    printed = capsys.readouterr().out
    assert f"{pipeline}/rl: not finished: no summary.json yet" in printed and "it is seven" in printed
    drawn = len(list((pipeline / "rl/figures").glob("*.png")))
    assert f"figures, {drawn}: {pipeline}/rl/figures\n" in printed and f": {pipeline}/figures" not in printed


def test_a_chains_end_draws_no_curve_that_its_stage_has_drawn(pipeline: Path):
    show(pipeline)
    kept, changed = pipeline / "base/figures/loss.png", pipeline / "rl/metrics.jsonl"
    kept.write_bytes(b"as it is")
    old = kept.stat().st_mtime_ns
    os.utime(changed, ns=(old + 10**9, old + 10**9))  # written after its figures
    of_rl = pipeline / "rl/figures/loss.png"
    of_rl.write_bytes(b"of yesterday")
    show(pipeline, again=False)
    assert kept.read_bytes() == b"as it is" and of_rl.stat().st_size > 5_000
    show(pipeline)
    assert kept.stat().st_size > 5_000


def test_the_page_is_named_first_and_figures_by_their_folders(pipeline: Path, capsys: pytest.CaptureFixture[str]):
    show(pipeline)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"page: {pipeline}/report.html"
    assert [line.split(" ")[-1] for line in others if line.startswith("figures, ")] == [
        str(pipeline / folder) for folder in ("base/figures", "rl/figures", "control/figures", "figures")
    ]
    assert not any(line.endswith(".png") for line in others)


def test_a_stage_without_questions_has_no_heading_of_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = {"stage": "sft", "seconds": 60.0, "steps": 2, "loss": 1.25, "validation_loss": 1.5}
    stage(tmp_path / "sft", summary, [{"kind": "train", "step": 1, "loss": 1.25, "seconds/update": 60.0}])
    show(tmp_path / "sft")
    printed, page = capsys.readouterr().out, (tmp_path / "sft/report.html").read_text()
    assert "Held-out" not in printed and "before" not in printed and "after" not in printed
    assert (
        "Training: losses, time, memory" in printed
        and "loss over the last 5% of steps, nats" in printed
        and "1.2500" in printed
    )
    assert "Held-out questions</h3>" not in page and "agreement of engine" not in page
    assert "No held-out questions in this kind of stage" in page and "<h3>Losses, time, memory</h3>" in page


def test_where_there_is_no_run_is_one_message(tmp_path: Path):
    with pytest.raises(DataError, match="no run here"):
        show(tmp_path)
