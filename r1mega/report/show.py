"""A run, shown: figures drawn, its page, the table of its stages, answers early and late, and where to look."""

from pathlib import Path

from rich.console import Console

from r1mega.report import (
    data_cards,
    figures,
    hacking,
    heatmap,
    outcome,
    page,
    preferences,
    rejection,
    reliability,
    summary,
)
from r1mega.report.catalogue import COMPARISON
from r1mega.report.rows import read_object, read_summary
from r1mega.report.runs import learns_from, stage_dirs


def show(run_dir: Path, *, again: bool = True) -> None:
    """Draw the figures of a stage or of a pipeline's stages, write the page, and print what came out.

    A stage that has not finished is shown as far as it got.

    Args:
        again: False: curves that were drawn after a stage's last metrics stay, as its own report has left them.

    Raises:
        DataError: `run_dir` is neither, or a file in it is malformed.
    """
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(width=120, markup=False)  # a file has no width; 80 would cut the table's names
    stages = stage_dirs(run_dir)
    drawn = [
        path for stage in stages if (stage / "metrics.jsonl").is_file() for path in figures.draw(stage, again=again)
    ]
    drawn += [path for stage in stages for kind in (hacking, heatmap, reliability) if (path := kind.draw(stage))]
    drawn += [path for stage in stages for kind in (preferences, rejection, data_cards) for path in kind.draw(stage)]
    if len(stages) > 1:
        drawn += _comparison(run_dir, stages)
    drawn += outcome.draw(run_dir)
    written = page.write(run_dir, drawn)
    console.print(f"page: {written}", soft_wrap=True)
    finished = [stage for stage in stages if read_summary(stage) is not None]
    if finished:
        console.print(summary.table([s for s in finished if (read_summary(s) or {}).get("eval")] or finished))
    for stage in finished:
        if (of_models := summary.table_of_models(stage)) is not None:
            console.print(of_models)
    for made in (preferences.table(finished), rejection.table(finished), data_cards.table(finished)):
        if made is not None:
            console.print(made)
    for stage in stages:
        if stage not in finished:
            console.print(f"{stage}: not finished: no summary.json yet", soft_wrap=True)
    for stage in stages:
        if any((stage / "samples").glob("*.jsonl")):
            summary.transcripts(stage, console)
    if (made := outcome.table(run_dir)) is not None:
        console.print(made)
    for line in outcome.told(run_dir):
        console.print(line, soft_wrap=True)
    questions = (read_summary(run_dir) or {}).get("questions")
    if questions:
        held_out, trained_on = questions["held_out"], questions["trained_on"]
        console.print(f"{held_out} held-out questions, {trained_on:,} trained on, none in common (checked)")
    for folder in dict.fromkeys(path.parent for path in drawn):
        number = sum(path.parent == folder for path in drawn)
        console.print(f"figures, {number}: {folder}", soft_wrap=True)
    console.print(f"all of it: {run_dir}", soft_wrap=True)


def _evaluated(stage: Path) -> Path | None:
    """The stage whose final model an evaluate stage asked."""
    model = (read_object(stage / "config.json") or {}).get("stage", {}).get("model", {}).get("path")
    return stage.parent / Path(model).parent.name if model else None


def _comparison(run_dir: Path, stages: list[Path]) -> list[Path]:
    """RL and its control from the same base against training time, where the pipeline has both."""
    by = {stage: learns_from((read_summary(stage) or {}).get("stage")) for stage in stages}
    rl = [s for s in stages if by[s] == "rewards"]
    evaluated = [s for s in stages if by[s] == "nothing" and (read_summary(s) or {}).get("eval")]
    if not rl:
        return []
    (run_dir / "figures").mkdir(exist_ok=True)
    pairs = [(model, s) for s in evaluated if (model := _evaluated(s)) in stages and by[model] == "text"]
    if not pairs:
        return []
    drawn = figures.pass_at_1(
        {"RL": rl[0], "control: pretraining continued": list(pairs[0])},
        run_dir / f"figures/{COMPARISON}.png",
    )
    return [drawn] if drawn else []
