"""What people see of long work: a bar on a terminal, a line now and then in a log, and nothing of other ranks."""

import io

import pytest
from rich.console import Console

from r1mega.runtime import heartbeat, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_progress_in_a_log_has_every_digit(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.Bar("reading", 800_000, unit="row") as bar:
        bar.advance(12_345)
    assert "reading: 12,345/800,000 rows, " in capsys.readouterr().out


def test_time_that_runs_past_its_total_leaves_none(clock: list[float], capsys) -> None:
    with progress.Bar("pretrain", 20, unit="second") as bar:
        for seconds in (16.0, 4.25):
            clock[0] += seconds
            bar.advance(seconds, note="loss 2.500")
    first, last = capsys.readouterr().out.splitlines()
    assert first == "pretrain: 16/20 seconds, 1.00 second/s, 4 s left  loss 2.500"
    assert last == "pretrain: 20/20 seconds, 1.00 second/s, 0 s left  loss 2.500"


def test_in_a_log_each_thing_is_said_once_at_once_and_then_now_and_then(clock: list[float], capsys) -> None:
    with progress.Bar("grpo", 10) as bar:
        bar.say("evaluation", "waiting for the first of 8 answers")
        for come in range(1, 9):
            clock[0] += 4.0
            bar.say("evaluation", f"{come} of 8 answers")
        assert heartbeat.current.detail == "evaluation: 8 of 8 answers"  # what `r1mega status` shows
        bar.say("rollout", "waiting for the first of 4 answers")
        bar.advance(note="reward 0.50")
    assert capsys.readouterr().out.splitlines() == [
        "grpo: evaluation: waiting for the first of 8 answers",
        "grpo: evaluation: 4 of 8 answers",
        "grpo: evaluation: 8 of 8 answers",
        "grpo: rollout: waiting for the first of 4 answers",
    ]


def test_other_ranks_say_nothing(clock: list[float], capsys) -> None:
    with progress.Bar("grpo", 2, silent=True) as bar:
        bar.say("rollout", "waiting")
        clock[0] += 60.0
        bar.advance(2)
    assert bar.done == 2 and capsys.readouterr() == ("", "")


def test_on_a_terminal_the_words_stand_behind_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda quiet: terminal)
    with progress.Bar("grpo", 4, done=1) as bar:
        bar.say("rollout", "3 of 16 answers")
        bar._progress.refresh()  # type: ignore[union-attr]
        assert "1/4" in screen.getvalue() and "rollout: 3 of 16 answers" in screen.getvalue()
        bar.advance(note="reward 0.50, 34 tokens, KL 0.0012")
    assert "2/4" in screen.getvalue() and "reward 0.50, 34 tokens, KL 0.0012" in screen.getvalue()
