"""`r1mega status` and `r1mega watch`."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from r1mega.report.live.chain import RunReader
from r1mega.report.live.life import EXIT_CODES
from r1mega.report.live.status_text import as_json
from r1mega.report.live.terminal import screen, told
from r1mega.report.live.watcher import Watcher, shown

clock = time.time
RunDirectory = Annotated[Path, typer.Argument(help="A run directory, of a stage or a chain.")]


def status(
    run_dir: RunDirectory,
    for_scripts: Annotated[bool, typer.Option("--json", help="Print JSON in place of lines.")] = False,
) -> None:
    """Say where a run is, what happened, what it waits for, and where its logs are; nothing is written.

    Leaves with 0 where it is done, 3 where it runs or waits, 4 where it ended otherwise or nothing tells that it
    lives, and 2 where there is no run.
    """
    facts = RunReader(run_dir).read(clock())
    if for_scripts:
        print(json.dumps(shown(as_json(facts)), indent=2, allow_nan=False, default=str))
    else:
        console = _console()
        for line in told(facts):
            console.print(line, soft_wrap=True)
    raise typer.Exit(EXIT_CODES[facts.life.state])


def watch(
    run_dir: RunDirectory,
    port: Annotated[
        int,
        typer.Option(help="Of the page on this machine's loopback address. 0: any that is free.", min=0, max=65535),
    ] = 0,
    once: Annotated[
        bool, typer.Option("--once", help="Print one picture, and leave as `r1mega status` does.")
    ] = False,
) -> None:
    """Show a run while it runs, in the terminal and as a page; Ctrl-C leaves, and the run goes on.

    The run may begin later, on any machine that writes to a folder which is seen here. Nothing is written there.
    """
    from r1mega.report.live.server import LivePage
    from r1mega.report.live.terminal import watch as show

    watcher, console = Watcher(run_dir, clock), _console()
    if once:
        console.print(screen(watcher), soft_wrap=True)
        raise typer.Exit(EXIT_CODES[watcher.facts().life.state])
    page = LivePage(watcher, port)
    try:
        show(watcher, console, page.url)
    except KeyboardInterrupt:
        console.print(f"{run_dir} is watched no more", soft_wrap=True)
    finally:
        page.close()


def _console() -> Console:
    return Console(markup=False, highlight=False, emoji=False)
