"""Failed verdicts: counted, told, never learnt from; past a bound the run stops. In the loop, by one's own reward.

A reward fails at random here as a server does that is down now and then: by a hash of what it judges.
"""

import hashlib
import re
import threading
import time
from pathlib import Path
from typing import Any

import grpo_run
import pytest
import torch
from grpo_run import Run, base
from recording import stop_signal

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import RewardError
from r1mega.rewards.failures import Failures
from r1mega.rewards.pool import Pool
from r1mega.rollout.collect import judged
from r1mega.runtime import events
from r1mega.runtime.interrupt import Interrupted
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus
from r1mega.stages import rank_zero

__all__ = ["base"]  # a fixture

FLAKY = '''\
"""Worth nothing, and down now and then."""

import hashlib


def flaky(question, response, num_tokens, *, percent):
    said = f"{question}/{response}/{num_tokens}"
    if int(hashlib.sha256(said.encode()).hexdigest(), 16) % 100 < percent:
        raise OSError("no such model server")
    return 0.0
'''


def breaks(prompt: Prompt, answer: Completion, percent: int) -> bool:
    """Whether the reward above fails on it. A truncated answer is worth 0 unseen."""
    said = f"{prompt.question}/{prompt.prefill + answer.text}/{len(answer.token_ids)}"
    return not answer.truncated and int(hashlib.sha256(said.encode()).hexdigest(), 16) % 100 < percent


def group(statuses: str) -> Group:
    """s scored, f failed, F failed in another way, u unscorable."""
    made = {
        "s": Verdict(VerdictStatus.SCORED, 1.0), "f": Verdict(VerdictStatus.FAILED, reason="no sandbox"),
        "F": Verdict(VerdictStatus.FAILED, reason="no disk"), "u": Verdict(VerdictStatus.UNSCORABLE, reason="none"),
    }  # fmt: skip
    answers = tuple(
        Completion("p", i, Int32s([5]), Float32s([-0.1]), "", FinishReason.STOP, 0, i) for i in range(len(statuses))
    )
    return Group(Prompt("p", "math", "q", "1", Int32s([1])), answers, tuple(made[status] for status in statuses))


def test_past_its_share_it_stops_with_the_commonest_reasons():
    watch = Failures(0.25)
    watch.see(3, [group("f" * 25 + "s" * 75)])
    with pytest.raises(RewardError) as told:
        watch.see(4, [group("F" * 7 + "f" * 20 + "s" * 73)])
    first, *reasons = str(told.value).splitlines()
    assert first.startswith(
        "step 4: 27 of the latest 100 verdicts have failed, through no fault of the answers, and "
    )
    assert "rollout.max_failed allows 0.25" in first
    assert [line.strip() for line in reasons] == ["20 x no sandbox", "7 x no disk"]


def test_what_cannot_be_scored_has_not_failed():
    Failures(0.0).see(1, [group("u" * 100 + "s")])
    with pytest.raises(RewardError):
        Failures(0.0).see(1, [group("s" * 100 + "f")])


def test_few_verdicts_say_little_by_themselves_and_more_together():
    watch = Failures(0.25)
    for step in range(2):
        watch.see(step, [group("f" * 6 + "s" * 6)])  # 6 and 12 are no more than a quarter of 64
    with pytest.raises(RewardError, match="18 of the latest 36"):
        watch.see(2, [group("f" * 6 + "s" * 6)])
    watch = Failures(0.25)
    for step in range(30):  # what is long ago counts no more: 16 of the latest 64 at most
        watch.see(step, [group("f" * 16 + "s" * 16 if step == 0 else "s" * 32)])
    watch.see(30, [group("f" * 16 + "s" * 48)])


def test_verdicts_that_models_have_added_to_take_the_place_of_those_before():
    watch = Failures(0.25)
    watch.see(1, [group("s" * 100)])
    with pytest.raises(RewardError, match="26 of the latest 100"):
        watch.see_again(1, [group("f" * 26 + "s" * 74)])
    watch = Failures(0.25)
    watch.see(1, [group("s" * 40)])
    with pytest.raises(RewardError, match="17 of the latest 40"):  # and not 17 of 80, which would be allowed
        watch.see_again(1, [group("f" * 17 + "s" * 23)])


def test_it_is_told_once_from_half_of_the_bound_on_and_again_when_it_was_over():
    told: list[tuple[int, str]] = []
    watch = Failures(0.5, lambda step, text: told.append((step, text)))
    for step, failed in enumerate((25, 26, 40, 13, 26, 12, 26)):  # of 100; the bound is 50
        watch.see(step, [group("f" * (failed - 1) + "F" + "s" * (100 - failed))])
    assert told == [
        (1, "26 of the latest 100 verdicts have failed: 25 x no sandbox; 1 x no disk"),
        (6, "26 of the latest 100 verdicts have failed: 25 x no sandbox; 1 x no disk"),
    ]


# ---- in the loop -------------------------------------------------------------------------------------------------


def changes(tmp_path: Path, percent: int | None) -> dict[str, Any]:
    """Settings of six rollouts of twelve answers, with such a reward or without it."""
    (tmp_path / "flaky.py").write_text(FLAKY)
    flaky = {"file": str(tmp_path / "flaky.py"), "function": "flaky", "settings": {"percent": percent}}
    table = {"rewards": {"flaky": flaky}} if percent is not None else {}
    return {"num_steps": 12, "objective": {"truncated": "zero", "std": "sample"}, **table}


def test_one_in_twenty_failing_changes_nothing_but_that_those_answers_never_were(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    failing = Run(tmp_path / "failing").start(base, changes(tmp_path, 5))

    def without_them(judges: Any, rubric: Any, step: int, prompt: Prompt, answers: tuple[Completion, ...]) -> Any:
        return judged(judges, rubric, step, prompt, tuple(a for a in answers if not breaks(prompt, a, 5)))

    monkeypatch.setattr(rank_zero, "judged", without_them)
    without = Run(tmp_path / "without").start(base, changes(tmp_path, None))
    failed = [row["rollout/failed"] for row in failing.rows()[::2]]
    assert 0 < sum(failed) < 0.15 * 72 and max(failed) < 12 and sum(n > 0 for n in failed) > 1
    theirs, ours = (run.policies[0] for run in (failing, without))
    assert torch.equal(theirs.theta, ours.theta)
    assert [call.documents for call in theirs.calls] == [call.documents for call in ours.calls]
    apart = re.compile("seconds|rollout/|response_length/|reward/flaky|reward/unscored|time")
    for theirs_row, ours_row in zip(failing.rows(), without.rows(), strict=True):
        assert {n: x for n, x in theirs_row.items() if not apart.search(n)} == {
            n: x for n, x in ours_row.items() if not apart.search(n)
        }
        assert theirs_row["rollout/answers"] - theirs_row["rollout/failed"] == ours_row["rollout/answers"]
        assert theirs_row["rollout/learnt_from"] == ours_row["rollout/learnt_from"]


def test_one_in_two_failing_stops_the_run_and_says_why(base: Path, tmp_path: Path):
    with pytest.raises(RewardError) as told:
        Run(tmp_path / "run").start(base, changes(tmp_path, 50))
    assert re.match(r"step (4|6|8): \d+ of the latest \d+ verdicts have failed", str(told.value))
    assert f" x {tmp_path / 'flaky.py'}:9: OSError: no such model server" in str(told.value)
    Run(tmp_path / "allowed").start(base, {**changes(tmp_path, 50), "rollout": {"max_failed": 0.7}})
    (said,) = events.read(tmp_path / "allowed")
    assert said.kind == "failing-verdicts" and "OSError: no such model server" in said.text


def test_a_signal_while_answers_are_judged_ends_the_run_and_its_workers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The reward would take ten minutes an answer."""
    source = "import pathlib, time\ndef slow(*, mark):\n    pathlib.Path(mark).touch()\n    time.sleep(600)\n"
    (tmp_path / "slow.py").write_text(source)
    mark, pools = tmp_path / "begun", list[Pool]()
    slow = {"file": str(tmp_path / "slow.py"), "function": "slow", "settings": {"mark": str(mark)}}

    def one_worker(*_: Any, **__: Any) -> Pool:
        pools.append(Pool(1, preloaded=("r1mega.rewards.registry",)))
        return pools[0]

    def stop_when_it_has_begun() -> None:
        while not mark.exists():
            time.sleep(0.05)
        stop_signal()

    monkeypatch.setattr(grpo_run, "this_process_pool", one_worker)
    threading.Thread(target=stop_when_it_has_begun, daemon=True).start()
    rewards = {"slow": slow, "accuracy": {"from_step": 4}, "format": {"from_step": 4}}
    with pytest.raises(Interrupted):
        Run(tmp_path / "run").start(base, {"rewards": rewards})
    (pool,) = pools
    with pytest.raises(RuntimeError):
        pool.submit(print)
    assert pool._nursery is not None and not pool._nursery.alive
    assert mark.exists() and time.time() - mark.stat().st_mtime < 120
