"""The live view in a terminal: the status, its curves as lines of blocks, and where the page is."""

import itertools
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from r1mega.report.live.chain import RunFacts
from r1mega.report.live.feed import FIRST, Feed
from r1mega.report.live.spans import figure, moment
from r1mega.report.live.status_text import lines, one_line
from r1mega.report.live.watcher import Watcher

EVERY_S = 2.0
LINE_EVERY_S = 15.0
"""Seconds between lines where there is no terminal to draw on."""
CATCH_UP_S = 1.0
"""How long metrics are read on before something is drawn; the rest comes with the next looks."""
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40
MAX_CURVES = 9
TOPIC_WIDTH, LABEL_WIDTH = 11, 34
TONES = {"good": "green", "bad": "bold red", "soft": "dim", "": ""}


def told(facts: RunFacts) -> list[Text]:
    """The lines of a status, each a topic and a fact."""
    return [
        Text.assemble((f"{topic:<{TOPIC_WIDTH}}", "bold"), (text, TONES[tone])) for topic, text, tone in lines(facts)
    ]


def watch(watcher: Watcher, console: Console, url: str, *, leave: Callable[[], bool] = lambda: False) -> None:
    """Show a run until Ctrl-C.

    Args:
        url: of the page.
        leave: asked after each look, for whoever wants it to end sooner.
    """
    if not console.is_terminal:
        return _lines_now_and_then(watcher, console, url, leave)
    with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        while True:
            live.update(screen(watcher, url, console.height), refresh=True)
            if leave():
                return None
            time.sleep(EVERY_S)


def _lines_now_and_then(watcher: Watcher, console: Console, url: str, leave: Callable[[], bool]) -> None:
    """The page's address, then the line that says where the run is whenever it is another one."""
    console.print(Text(f"page: {url}"), soft_wrap=True)
    before = ""
    while True:
        facts = watcher.facts()
        now = " · ".join(text for topic, text, _ in lines(facts) if topic in ("state", "at", "newest"))
        if now != before:
            console.print(Text(f"{moment(facts.now)} {now}"), soft_wrap=True)
        before = now
        if leave():
            return
        time.sleep(LINE_EVERY_S)


def screen(watcher: Watcher, url: str = "", height: int = 0) -> Group:
    """One picture, of at most `height` lines; 0: of any."""
    facts = watcher.facts()
    status = told(facts)
    curves: list[Text] = []
    if facts.current is not None:
        feed = watcher.feed(facts.current.path, facts.current.name)
        until = time.monotonic() + CATCH_UP_S
        while feed.tail.behind and time.monotonic() < until:
            feed = watcher.feed(facts.current.path, facts.current.name)
        curves = curve_lines(feed)
    foot = [Text(f"page       {url}", style="bold")] if url else []
    foot.append(
        Text(
            f"read {moment(facts.now)}; Ctrl-C leaves, and the run goes on" if url else f"read {moment(facts.now)}",
            "dim",
        )
    )
    shown = status
    if height:
        room = max(4, height - len(foot) - len(curves) - 1)
        shown = status[:room]
        for line in (*shown, *curves, *foot):
            line.no_wrap, line.overflow = True, "ellipsis"
        if len(status) > room:
            shown[-1] = Text(
                f"{'':<{TOPIC_WIDTH}}and {len(status) - room + 1} more lines; r1mega status has them", "dim"
            )
    return Group(*shown, *curves, *foot)


def curve_lines(feed: Feed) -> list[Text]:
    """The first curves that the run has, each a name, a line of blocks over all of its steps, and its last value."""
    found: list[Text] = []
    for shown, curves in feed.figures():
        for curve in curves if shown.file in FIRST else ():
            points = feed.curves[curve.kind, curve.key].since(-1)[1]
            name = one_line(f"{shown.title}: {curve.label}", LABEL_WIDTH)
            drawn = blocks([point[1] for point in points])
            found.append(
                Text.assemble(
                    f"{name:<{LABEL_WIDTH}} ", (f"{drawn:<{CURVE_WIDTH}}", "cyan"), f" {figure(points[-1][1])}"
                )
            )
            break  # the first of a figure says most
    return found[:MAX_CURVES]


def blocks(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """A curve in one line: means of `width` parts, from the smallest of them to the largest."""
    if not values:
        return ""
    num = min(width, len(values))
    cuts = [round(i * len(values) / num) for i in range(num + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((mean - low) / (high - low) * top) if high > low else top // 2] for mean in means)
