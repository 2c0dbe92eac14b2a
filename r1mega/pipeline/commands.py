"""`r1mega trace`: what the command line shows of where rows come from."""

import json
from pathlib import Path
from typing import Annotated

import typer

from r1mega.errors import ConfigError

BROKEN = 1
"""Exit code where a row does not resolve; 2 is for what cannot be read."""


def trace(
    row: Annotated[
        str | None,
        typer.Argument(help="A row: 8 digits or more of its sha256, or FILE:LINE, or RUN_DIR:LINE."),
    ] = None,
    every: Annotated[
        Path | None,
        typer.Option("--all", help="Trace every row that the run in this directory trained on, or wrote."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--in", help="Where the chain's run directories lie. Default: runs, or the folder of RUN_DIR."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell where a row comes from: checkpoint, prompt, answer, verdict, filters, edits; and who learnt it.

    Exit code 0 where it resolves (with --all: every row), 1 where not, with what is wrong; 2 for what cannot be read.
    """
    if (row is None) == (every is None):
        raise ConfigError("r1mega trace: give a row (its sha256, or RUN_DIR:LINE), or --all RUN_DIR, not both")
    from r1mega.pipeline import life_text

    if every is not None:
        from r1mega.pipeline.trace_all import trace_all

        tally = trace_all(every, folder or every.resolve().parent, silent=as_json)
        print(json.dumps(tally.to_json(), indent=2) if as_json else life_text.of_all(tally, every))
        resolves = tally.rows > 0 and not tally.num_broken
    else:
        from r1mega.pipeline.life import trace as trace_row

        assert row is not None
        life = trace_row(row, folder or _default_folder(row))
        print(json.dumps(life, indent=2) if as_json else life_text.of_row(life))
        resolves = life["resolves"]
    if not resolves:
        raise typer.Exit(BROKEN)


def _default_folder(row: str) -> Path:
    """The folder of the run directory that a row is named by; otherwise runs."""
    path = Path(row.rpartition(":")[0])
    if ":" not in row or not path.exists():
        return Path("runs")
    return (path if path.is_dir() else path.parent).resolve().parent
