"""Reward hacking in a GRPO run: its row, its log, its figures; a resumed run's are the uninterrupted one's."""

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recording
from grpo_run import CLUSTER, Run, base, config, this_process_pool
from recording import stop_signal

from r1mega.diagnostics.settings import Hacking
from r1mega.runtime import events
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.run_dir import RunDir

__all__ = ["base"]  # a fixture

STEPS = 40
"""20 rollouts of 2 steps."""
DRIFT = '''
from pathlib import Path

def drift(num_tokens, *, clock, sign):
    """Up or down with the steps that the policy has taken; answers differ by their length."""
    return sign * int(Path(clock).read_text()) + num_tokens % 7
'''


def train(base: Path, run: Run, *, begun: int = 0, stop: int | None = None, window: int = 12) -> Run:
    """A run in which a reward and its truth part from the start on, or what is left of it after `begun` steps.

    Args:
        stop: a signal comes after this step.
    """
    from r1mega.stages import grpo

    folder = run.folder.parent
    clock, file = folder / "clock", folder / "drift.py"
    clock.write_text(str(begun))
    file.write_text(DRIFT)
    ways = {name: {"clock": str(clock), "sign": sign} for name, sign in (("up", 1), ("down", -1))}
    own = {name: {"file": str(file), "function": "drift", "settings": some} for name, some in ways.items()}
    recipe = config(base, {
        "num_steps": STEPS, "save": {"every_steps": 4},
        "objective": {"constant_groups": "keep", "truncated": "judge"},
        "rewards": {"up": own["up"], "down": {**own["down"], "weight": 0}},
        "hacking": {"trained": ("up",), "window": min(window, 19)},
    })  # fmt: skip
    # A window that nobody chose may be longer than the run.
    recipe = recipe.model_copy(update={"hacking": Hacking(trained=("up",), window=window)})

    def build(*arguments: Any, **settings: Any) -> Any:
        def after(taken: int) -> None:
            clock.write_text(str(begun + taken))
            if taken == stop:
                stop_signal()

        return recording.RecordingPolicy(*arguments, after_step=after, **settings)

    with contextlib.closing(RunDir(run.folder, recipe, CLUSTER, resume=bool(begun))) as run_dir:
        answers: Any = {"serve": run.engines.make, "pusher": run.engines.pusher, "pool": this_process_pool}
        with recording.recorded_saves():
            grpo.run(recipe, CLUSTER, run_dir, build=build, **answers)
    return run


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(base, Run(tmp_path_factory.mktemp("whole") / "run"))


def test_a_run_that_parts_is_warned_of_once(whole: Run):
    (row,) = whole.rows("hacking")
    # The 12th rollout is sampled after 22 steps and the 13th after 24: its first step's line is that of step 25.
    assert (row["step"], row["grade"], row["reward"], row["against"]) == (25, "parted", "up", "down")
    lines = whole.rows()
    window = lines[2:26:2]  # a line of each of the 12 rollouts
    rose, fell = (11 * np.polyfit(range(12), [r[f"reward/{n}"] for r in window], 1)[0] for n in ("up", "down"))
    assert f"the trained reward up rose by {rose:.3g} while down fell by {-fell:.3g}" in row["text"]
    assert rose == pytest.approx(22, abs=3)
    assert len(lines) == STEPS
    for line in lines:
        sampled = (line["step"] - 1) // 2 * 2
        assert line["hacking/up/trained"] == pytest.approx(line["reward/up"])
        assert line["hacking/up/down"] == pytest.approx(line["reward/down"])
        assert line["hacking/up/trained"] - line["hacking/up/down"] == pytest.approx(2 * sampled)
        assert line["hacking/up/response_length"] == line["response_length/mean"]
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert summary["hacking"] == {"parted": 1, "first step": 25}
    (event,) = events.read(whole.folder)
    assert (event.kind, event.step, event.text) == ("hacking", 25, f"reward hacking: {row['text']}")
    assert event.figures["cause"] == "parted: up against down"


@pytest.mark.parametrize("stop", [23, 24, 26])
def test_a_resumed_run_warns_when_the_uninterrupted_one_does(base: Path, whole: Run, tmp_path: Path, stop: int):
    """Stopped between two rollouts and within one, before and after the warning."""
    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(base, run, stop=stop)
    train(base, run, begun=stop)
    assert run.rows("hacking") == whole.rows("hacking")
    figures = [{n: x for n, x in row.items() if n.startswith("hacking/")} for row in run.rows()]
    assert figures == [{n: x for n, x in row.items() if n.startswith("hacking/")} for row in whole.rows()]


def test_a_run_that_is_too_short_says_that_nothing_is_watched(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        run = train(base, Run(tmp_path / "run"), window=21)
    assert "reward hacking is not watched: up is learnt from in 20 rollouts" in caplog.text
    assert run.rows("hacking") == []
    assert json.loads((run.folder / "summary.json").read_text())["hacking"] == {}


def test_the_log_says_what_was_seen(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        train(base, Run(tmp_path / "run"))
    (said,) = [record.getMessage() for record in caplog.records if "hacking" in record.getMessage()]
    assert said.startswith("step 25: reward hacking: over 12 rollouts the trained reward up rose by 2")
