"""A finished run, shown: figures drawn, the table of its stages, answers early and late, and where to look."""

from pathlib import Path

from rich.console import Console

from r1mega.errors import DataError
from r1mega.report import figures, summary
from r1mega.report.rows import read_summary


def show(run_dir: Path) -> None:
    """Draw the figures of a stage or of a pipeline's stages, and print what came out.

    Raises:
        DataError: `run_dir` is neither, or a stage in it has not finished.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has no width; 80 would cut the table's names
    whole = read_summary(run_dir)
    if whole is None:
        raise DataError(f"{run_dir}: no summary.json here: no run, or one that has not finished")
    stages = [run_dir / name for name in whole["stages"]] if "stages" in whole else [run_dir]
    drawn = [path for stage in stages if (stage / "metrics.jsonl").is_file() for path in figures.draw(stage)]
    if len(stages) > 1:
        drawn += _comparison(run_dir, stages)
    console.print(summary.table([s for s in stages if (read_summary(s) or {}).get("eval")] or stages))
    for stage in stages:
        if any((stage / "samples").glob("*.jsonl")):
            summary.transcripts(stage, console)
    if "questions" in whole:
        held_out, trained_on = whole["questions"]["held_out"], whole["questions"]["trained_on"]
        console.print(f"{held_out} held-out questions, {trained_on:,} trained on, none in common (checked)")
    for path in drawn:
        console.print(f"figure: {path}", soft_wrap=True)
    console.print(f"all of it: {run_dir}", soft_wrap=True)


def _comparison(run_dir: Path, stages: list[Path]) -> list[Path]:
    """RL and its control from the same base against training time, where the pipeline has both."""
    kinds = {stage: (read_summary(stage) or {}).get("stage") for stage in stages}
    rl = [s for s in stages if kinds[s] == "grpo"]
    evaluated = [s for s in stages if kinds[s] == "evaluate"]
    if not rl or not evaluated:
        return []
    (run_dir / "figures").mkdir(exist_ok=True)
    control = stages[stages.index(evaluated[0]) - 1]
    drawn = figures.pass_at_1(
        {"RL": rl[0], "control: pretraining continued": [control, evaluated[0]]},
        run_dir / "figures/rl_and_control.png",
    )
    return [drawn] if drawn else []
