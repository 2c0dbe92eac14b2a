"""DAPO's soft overlong punishment, worked by hand; and the settings with which an answer would escape it."""

from pathlib import Path
from typing import Any

import pytest
from grpo_run import SETTINGS
from pydantic import ValidationError

from r1mega.buffers import Int32s
from r1mega.config.scheduled import Scheduled, Since
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.overlong import Overlong
from r1mega.rewards.reward import Answer
from r1mega.samples import Prompt

PROMPT = Prompt("p", "math", "?", "3", Int32s([1]))


@pytest.mark.parametrize(
    ("tokens", "worth"), [(1, 0), (80, 0), (81, -0.05), (85, -0.25), (90, -0.5), (100, -1), (101, -1), (999, -1)]
)
def test_it_falls_over_the_last_tokens_before_the_limit(tokens: int, worth: float):
    """L = 100, b = 20: free up to 80, then 1/20 a token."""
    score = overlong(max_tokens=100, buffer=20).judge(PROMPT, Answer("", tokens), ())
    assert (score.status, score.value) == ("scored", pytest.approx(worth))


def overlong(**settings: Any) -> Overlong:
    return Overlong.model_validate(settings).of_run(8, Scheduled.always(999)).at(0)


def test_it_follows_the_length_limit_or_a_schedule_of_its_own():
    """b = 4; an answer of 9 tokens. Under a limit of 8, from step 2 on 12, and of its own 10, in the last 2 of 8."""
    limit = Scheduled((Since(value=8), Since(value=12, from_step=2)))
    follows = Overlong(buffer=4).of_run(8, limit)
    own = Overlong.model_validate({"buffer": 4, "max_tokens": [{"value": 5}, {"last_steps": 2, "value": 10}]}).of_run(
        8, limit
    )
    for reward, worth in ((follows, [-1, -1, -0.25, -0.25, -0.25]), (own, [-1, -1, -1, -1, -0.75])):
        found = [reward.at(step).judge(PROMPT, Answer("", 9), ()).value for step in (0, 1, 2, 5, 6)]
        assert found == worth


def test_a_buffer_longer_than_the_limit_is_refused():
    with pytest.raises(ValidationError, match="buffer: 21 tokens before a limit of 20 would begin before the answer"):
        overlong(max_tokens=20, buffer=21)
    with pytest.raises(ValidationError, match="buffer: 21 tokens before a limit of 20 would begin before the answer"):
        overlong(max_tokens=[{"value": 40}, {"from_step": 2, "value": 20}], buffer=21)


def faults(**changes: Any) -> list[str]:
    table = {"kind": "overlong", "max_tokens": 8, "buffer": 4, **changes.pop("overlong", {})}
    settings = {**SETTINGS, "model": {"path": str(Path("base"))}, "rewards": {"accuracy": 1.0, "long": table}}
    settings["objective"] = {**SETTINGS["objective"], **changes}
    return [fault for fault in GRPO.model_validate(settings).faults() if fault.startswith("rewards.")]


def test_what_makes_it_pointless_is_refused():
    assert faults(truncated="judge") == faults(truncated="mask") == []
    (zero,) = faults(truncated="zero")
    assert zero.startswith("rewards.long: with objective.truncated = zero an answer that is cut scores 0, more than")
    (never,) = faults(truncated="judge", overlong={"max_tokens": 12})
    assert never == (
        "rewards.long: begins at 8 tokens (max_tokens - buffer), and no answer is longer than "
        "sampling.max_new_tokens = 8"
    )
