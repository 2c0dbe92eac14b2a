"""The table of stages and the transcripts, as a terminal shows them."""

import io
import json

import pytest
from rich.console import Console

from r1mega.errors import DataError
from r1mega.evaluation.metrics import Graded, summarise
from r1mega.report.summary import table, transcripts
from r1mega.samples import VerdictStatus

LOST = (VerdictStatus.FAILED, VerdictStatus.UNSCORABLE)


def result(rights):
    answers = [Graded(str(q), right, True, right, False, "think", 20) for q, right in enumerate(rights)]
    return summarise(answers).to_json()


def shown(print_to):
    console = Console(file=io.StringIO(), width=160)
    print_to(console)
    return console.file.getvalue()


def write(run_dir, summary):
    run_dir.mkdir()
    (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


def test_stages_stand_side_by_side(tmp_path):
    grpo = write(
        tmp_path / "grpo",
        {
            "stage": "grpo",
            "seconds": 155.4,
            "steps": 55,
            "tokens_per_second": {"rollout": 4321.0, "train": 900.0},
            "peak_rss_gib": 3.14,
            "mismatch": {"mean": 1e-7, "max": 8e-6},
            "eval": {
                "before": result([True, False, False, False]),
                "after": result([True, True, True, False]),
                "greedy_before": 0.875,
                "greedy_after": 0.88,
            },
        },
    )
    control = write(tmp_path / "control", {"stage": "evaluate", "eval": {"greedy_after": result([True, False])}})
    text = shown(lambda console: console.print(table([grpo, control])))
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "25.0% (1.6 to 86.9)" in lines["pass@1 (strict)"] and "75.0% (13.1 to 98.4)" in lines["pass@1 (strict)"]
    assert "87.5%" in lines["greedy"] and "88.0%" in lines["greedy"]
    assert "50.0% (0.2 to 99.8)" in lines["greedy strict"]
    assert "4,321" in lines["tokens per second: rollout"]
    assert "3.14" in lines["peak memory, GiB"]
    assert "8.0e-06" in next(line for name, line in lines.items() if name.endswith("nats: max"))
    assert "[" not in text, "markup leaks"


def test_a_run_that_has_not_finished_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no summary.json: the stage has not finished"):
        table([tmp_path])
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary.json: not JSON"):
        table([tmp_path])


def sample(step, question, text, reward):
    parts = {"accuracy": reward / 2, "format": reward / 2}
    return {"step": step, "question": question, "truth": "3", "text": text, "reward": reward, "parts": parts}


def test_transcripts_show_early_and_late_answers_to_the_same_questions(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    rows = {
        0: [sample(0, "early only", "x", 0.0), sample(0, "shared", "The answer is 4.", 0.0)],
        5: [sample(5, "shared", "middle", 0.0)],
        10: [sample(10, "late only", "y", 0.0), sample(10, "shared", "<think>4-1=3</think>", 2.0)],
    }
    for step, group in rows.items():
        (folder / f"step_{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in group))
    text = shown(lambda console: transcripts(tmp_path, console, num=1))
    assert text.count("shared") == 2
    assert text.index("step 0, reward 0") < text.index("The answer is 4.") < text.index("step 10, reward 2")
    assert "<think>4-1=3</think>" in text and "accuracy 1 · format 1" in text
    assert not any(absent in text for absent in ("middle", "only"))


def test_model_text_cannot_drive_the_terminal(tmp_path):
    (tmp_path / "samples").mkdir()
    row = sample(0, "[bold]q[/bold]", "\x1b[31mred\x07\u202e" + "long " * 1000, 0.0)
    (tmp_path / "samples" / "step_0.jsonl").write_text(json.dumps(row) + "\n")
    text = shown(lambda console: transcripts(tmp_path, console))
    assert "[bold]q[/bold]" in text and r"\x1b[31mred\x07\u202e" in text
    assert "\x1b" not in text and "\u202e" not in text
    assert len(text) < 4000


def test_no_samples_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no samples in"):
        transcripts(tmp_path, Console(file=io.StringIO()))


def test_figures_of_a_part_say_of_which(tmp_path):
    """Losses and experts' balance are of the last steps, mismatches of the answers that are compared."""
    summary = {
        "stage": "grpo",
        "steps": 40,
        "loss": 1.25,
        "mismatch": {"max": 3e-6, "answers": 640, "answers_after_tie": 2},
        "experts": {"max violation": 0.5, "dropped choices": 3.0},
        "data": {"conversations": 1200, "truncated": 7, "dropped": 5},
    }
    text = shown(lambda console: console.print(table([write(tmp_path / "run", summary)])))
    lines = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line}
    assert lines["loss over the last 5% of steps, nats"] == "1.2500"
    assert (lines["mismatch: answers compared"], lines["mismatch: of them after a tie"]) == ("640", "2")
    rounded = {"mean": 2e-3, "kl": 4e-5, "p999": 0.25, "kl_largest": 6e-5, "tokens_compared": 1e6, "tokens_far": 12.0}
    text = shown(lambda console: console.print(table([write(tmp_path / "bf16", summary | {"mismatch": rounded})])))
    of_bf16 = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line}
    assert [of_bf16[f"mismatch, nats: {name}"] for name in ("mean", "kl", "p999", "kl_largest")] == [
        "2.0e-03", "4.0e-05", "2.5e-01", "6.0e-05"
    ]  # fmt: skip
    assert of_bf16["mismatch: tokens compared"] == "1,000,000"
    assert of_bf16["mismatch: of them more than 1 nat apart"] == "12"
    assert lines["experts, last 5% of steps: max violation"] == "0.50"
    assert lines["experts, all steps: dropped choices"] == "3"
    assert (lines["data: conversations"], lines["data: truncated"], lines["data: dropped"]) == ("1,200", "7", "5")


def test_verdicts_that_are_no_scores_stand_apart(tmp_path):
    """Of 5 answers one failed and one could not be scored: the share is of the other three."""
    answers = [Graded(str(q), True, True, True, False, "think", 20) for q in range(3)]
    lost = [
        Graded(str(3 + i), False, False, False, False, "other", 20, None, status) for i, status in enumerate(LOST)
    ]
    record = summarise([*answers, *lost]).to_json()
    interval = {"mean": 0.5, "se": 0.1, "low": 0.25, "high": 0.75}
    scores = {"pass_at_k": [{"k": 4, "interval": interval, "num_questions": 3, "too_few": 2}], "cons_at_k": []}
    evals = {"after": record, "greedy_after": record}
    run = write(tmp_path / "run", {"stage": "evaluate", "eval": evals, "scores": scores})
    text = shown(lambda console: console.print(table([run])))
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "100.0% (" in lines["pass@1 (strict)"]
    for prefix in ("", "greedy "):
        for what, num in (("without a score: unscorable", 1), ("without a score: failed", 1), ("with one", 3)):
            assert lines[f"{prefix}answers {what}"].split("│")[-2].strip() == str(num)
    assert "50.0% (25.0 to 75.0), 2 questions with fewer left out" in lines["pass@4"]
    clean = write(tmp_path / "clean", {"stage": "evaluate", "eval": {"after": summarise(answers).to_json()}})
    assert "without a score" not in shown(lambda console: console.print(table([clean])))
