"""The live page in a browser, at a desk's and a phone's width: what people see of a run, and what a hostile run does.

`R1MEGA_SCREENSHOTS` names a folder that gets the pictures.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium_here import DESKTOP, PHONE, Page, browser, chromium
from watched_runs import HOSTILE, NOW, answer, eval_row, event, train_row, write_lines, write_stage

from r1mega.report.live.server import LivePage
from r1mega.report.live.watcher import Watcher

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium here: apt-get install chromium")
READ = "Number(document.documentElement?.dataset.read ?? 0)"


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    assert PROGRAM is not None
    with browser(PROGRAM) as page:
        yield page


@contextmanager
def watched(run_dir: Path, tab: Page, size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> Iterator[LivePage]:
    served = LivePage(Watcher(run_dir, clock=lambda: NOW))
    tab.events.clear()
    try:
        tab.show(served.url, size, dark=dark)
        tab.wait_for(f"{READ} >= 1")
        yield served
        assert tab.complaints() == [] and all(url.startswith((served.url, "data:,")) for url in tab.requested())
        tab.ask("Page.navigate", url="about:blank")
    finally:
        served.close()


def rows(num: int) -> list[dict]:
    found = [eval_row(0, 0.2)]
    for step in range(1, num + 1):
        reward = 0.2 + 0.7 * step / num + 0.03 * (step % 5)
        spiky = {"grad_norm": 0.5 + (step % 17 == 0), "mismatch/max": 1e-5 * (1 + step % 3), "loss": -0.1 / step}
        found.append(train_row(step, **{"reward/total": reward, "reward/accuracy": reward - 0.1, **spiky}))
        if step % 40 == 0:
            found.append(eval_row(step, 0.2 + 0.5 * step / num))
    return found


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A chain in its third stage, in which a server failed and a phase has become slow."""
    write_stage(tmp_path / "base", [train_row(9)], kind="pretrain", started="2026-09-21T07:00:00+00:00", done=True)
    write_stage(tmp_path / "cold_start", kind="sft", started="2026-09-21T08:00:00+00:00", done=True)
    told = [event("started", NOW - 4000), event("recovered-server", NOW - 900, "it had frozen", step=90)]
    slow = [*rows(199), train_row(200, **{"seconds/update": 31.0, "reward/total": 0.9})]
    rl = write_stage(tmp_path / "rl", slow, events=told, started="2026-09-21T09:00:00+00:00", written=NOW - 5)
    write_lines(
        rl / "samples/step_198.jsonl", [answer(f"How much is {i} + 1?", f"<think>{i}</think>") for i in range(4)]
    )
    (rl / "logs/vllm.log").write_text("WARNING 09-21 14:00:00 [a.py:3] Triton is not installed\n")
    names = ["base", "cold_start", "rl", "students", "eval"]
    (tmp_path / "chain.json").write_text(json.dumps({"wall_seconds": 5.0, "stages": names}))
    return tmp_path


def keep(tab: Page, name: str, height: int = 0) -> None:
    if folder := os.environ.get("R1MEGA_SCREENSHOTS"):
        tab.screenshot(Path(folder) / f"{name}.png", height)


def words(tab: Page, what: str = "body") -> str:
    return tab.value(f"document.querySelector({json.dumps(what)}).innerText")


def fits(tab: Page) -> bool:
    """Nothing stands out to the right of the screen."""
    return tab.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (PHONE, True)])
def test_a_chain_that_runs(chain: Path, tab: Page, size: tuple[int, int], dark: bool):
    with watched(chain, tab, size, dark=dark):
        text = words(tab)
        for part in (
            "running",
            "rl (grpo)",
            "step 200 of 400",
            "of steps left",
            "it had frozen",
            "How much is 3 + 1?",
        ):
            assert part in text, part
        assert "phase update: update took 31 s, 31.0 times its median" in words(tab, "#advice")
        assert [stage.split("\n")[0] for stage in words(tab, "#stages").split("\n") if stage] == [
            "base", "cold_start", "rl 200/400", "students", "eval",
        ]  # fmt: skip
        assert fits(tab)
        columns = tab.value("getComputedStyle(document.querySelector('#main')).gridTemplateColumns.split(' ').length")
        assert columns == (1 if size == PHONE else 3)
        paper = tab.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 150) == dark
        keep(tab, f"running_{'phone' if size == PHONE else 'desktop'}{'_dark' if dark else ''}")


def test_curves_stand_where_their_figures_say(chain: Path, tab: Page):
    """Of the reward's curve: its last point is at the right end, and as high between its ticks as 0.9 is."""
    with watched(chain, tab):
        named = "(f) => f.querySelector('h3').textContent.startsWith('Reward')"
        find = f"[...document.querySelectorAll('figure')].find({named})"
        path = tab.value(f"{find}.querySelector('path.k0:not(.band)').getAttribute('d')")
        x, y = map(float, re.findall(r"[\d.]+ [\d.]+$", path)[0].split())
        marks = tab.value(
            f"[...{find}.querySelectorAll('text')].filter((t) => t.getAttribute('text-anchor') === 'end')"
            ".map((t) => [Number(t.textContent), Number(t.getAttribute('y')) - 4])"
        )
        (low, y_low), (high, y_high) = [mark for mark in marks if 0 <= mark[0] < 2][:2]
        assert low + (high - low) * (y - y_low) / (y_high - y_low) == pytest.approx(0.9, abs=0.02)
        width = tab.value(f"{find}.querySelector('svg').clientWidth")
        assert width - 24 < x <= width - 8
        assert "total 0.9" in tab.value(f"{find}.querySelector('.legend').innerText")


def test_the_page_follows_its_run(chain: Path, tab: Page):
    with watched(chain, tab):
        with (chain / "rl/metrics.jsonl").open("a") as file:
            file.write(json.dumps(train_row(201, **{"reward/total": 0.123})) + "\n")
        tab.wait_for("document.querySelector('.legend').innerText.includes('0.123')")
        assert tab.value("document.querySelector('path.k0:not(.band)').getAttribute('d').split('L').length") == 201


def test_another_stage_is_shown_when_it_is_chosen(chain: Path, tab: Page):
    with watched(chain, tab):
        tab.value("[...document.querySelectorAll('nav button')].find((b) => b.textContent === 'base').click()")
        tab.wait_for("document.querySelector('#where').innerText.startsWith('base (pretrain)')")
        assert "step 9" in words(tab, "#where")


def test_a_run_that_is_done(tmp_path: Path, tab: Page):
    run = write_stage(tmp_path / "r1_zero", rows(200), done=True, num_steps=200)
    for size, name in ((DESKTOP, "desktop"), (PHONE, "phone")):
        with watched(run, tab, size):
            text = words(tab)
            assert "done" in text and "step 200 of 200" in text and "70.0%" in text and "Look at" not in text
            assert tab.value("document.title") == "100% · done · r1_zero" and fits(tab)
            keep(tab, f"done_{name}")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_hostile_run_stays_text(tmp_path: Path, tab: Page, size: tuple[int, int]):
    """Its words stand wherever a run's own words do; no element is made of them, nothing is run or loaded."""
    told = [event(HOSTILE, NOW - 9, HOSTILE), event("crashed", NOW - 8, HOSTILE * 3)]
    chain = tmp_path / "chain"
    name = "<img src=x onerror=alert(1)>"
    run = write_stage(chain / name, rows(60), events=told, kind=HOSTILE)
    samples = [answer(HOSTILE, HOSTILE), answer("A" * 5000, "W" * 10_000_000), answer("أهلا", "مرحبا" * 50)]
    write_lines(run / "samples/step_2.jsonl", samples)
    (run / "logs/rank_1.log").write_text(f"ERROR {HOSTILE}\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_row(61) | {f"seconds/{HOSTILE}": 3.0, "loss": None}) + "\n")
    (chain / "chain.json").write_text('{"wall_seconds": 1}')
    with watched(chain, tab, size):
        text = words(tab)
        assert "<script>document.title='owned'</script>" in text and "\\x1b[31m" in text and "\\u202e" in text
        assert tab.value("document.title").startswith("15% · failed · <img") and name in text
        assert tab.value("document.querySelectorAll('script, img, iframe, style, object, embed').length") == 2
        assert fits(tab) and tab.value("document.body.innerText.length") < 40_000
        keep(tab, f"hostile_{'phone' if size == PHONE else 'desktop'}")


def test_a_server_that_is_gone_is_said(tmp_path: Path, tab: Page):
    run = write_stage(tmp_path / "run", rows(10), written=NOW - 5)
    with watched(run, tab) as served:
        served.close()
        tab.wait_for("!document.querySelector('#lost').hidden")
        assert "has not answered" in words(tab, "#lost")
        tab.events.clear()  # the request that failed is told of, as it should be
