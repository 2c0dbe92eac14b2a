"""What finished runs without a trainer have made, side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from r1mega.report.rows import Row, read_summary
from r1mega.report.text import visible


def table(title: str, run_dirs: Sequence[Path], lines: Callable[[Row], Mapping[str, str]]) -> Table | None:
    """A column a run; None where no run has any line.

    Args:
        lines: of a summary.json, name -> figure; empty where the run has made nothing of the kind.
    """
    columns = {run_dir: told for run_dir in run_dirs if (told := lines(read_summary(run_dir) or {}))}
    if not columns:
        return None
    out = Table(title=title, title_justify="left", show_lines=False)
    out.add_column("", no_wrap=True)
    for run_dir in columns:
        out.add_column(Text(visible(run_dir.name)), justify="right")
    for name in dict.fromkeys(name for told in columns.values() for name in told):
        out.add_row(name, *(told.get(name, "") for told in columns.values()))
    return out
