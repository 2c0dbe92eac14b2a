"""What `check` says of [health]: combinations that cannot happen, or do nothing, by what they should say."""

from typing import Any

import pytest
from grpo_run import SETTINGS

from r1mega.config.section import OnResume, marked
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.pretrain import Pretrain

PRETRAIN: dict[str, Any] = {
    "stage": "pretrain", "model": {"config": "config.json"}, "tasks": [{"name": "chain_sum"}], "num_steps": 500,
    "data": {"num_documents": 1000, "styles": {"think": 1, "tags": 0, "steps": 0, "plain": 0}},
    "documents_per_step": 2, "optimizer": {"lr": 1e-3}, "batch": {"chunk_tokens": 64}, "save": {"every_steps": 100},
}  # fmt: skip


def pretrain(health: dict[str, Any], **changes: Any) -> Pretrain:
    return Pretrain.model_validate({**PRETRAIN, **changes, "health": health})


def grpo(health: dict[str, Any], **changes: Any) -> GRPO:
    rollout = {**SETTINGS["rollout"], "keep_journal": False, **changes.pop("rollout", {})}
    return GRPO.model_validate({**SETTINGS, "model": {"path": "x"}, "rollout": rollout, **changes, "health": health})


def of_health(recipe: Any) -> list[str]:
    return [fault for fault in recipe.faults() if "health." in fault]


@pytest.mark.parametrize(
    ("health", "said"),
    [
        ({"spike": "off", "window": 32}, 'health.window: has no effect where health.spike = "off"'),
        ({"spike": "off", "grad_norm_z": 5.0}, "health.grad_norm_z: has no effect"),
        ({"loss_z": 0.0, "grad_norm_z": 0.0}, "health.spike: 'log' never happens where health.loss_z and"),
        ({"window": 500}, "health.window: no step is judged before 500 were taken, and num_steps is 500"),
        ({"limit": 5}, "health.limit: has no effect where neither health.non_finite nor health.spike is one of skip"),
    ],
)
def test_what_would_do_nothing_is_refused(health: dict[str, Any], said: str):
    (fault,) = of_health(pretrain(health))
    assert said in fault


def test_a_run_goes_back_to_checkpoints_that_there_are():
    (fault,) = of_health(pretrain({"spike": "roll_back"}, save={"every_steps": 500}))
    assert 'health.spike: "roll_back" has no checkpoint to go back to: save.every_steps = 500' in fault
    (fault,) = of_health(grpo({"non_finite": "roll_back"}, save={"every_steps": 3}))
    assert "save.every_steps = 3 is no multiple of rollout.num_minibatches = 2" in fault
    (fault,) = of_health(grpo({"non_finite": "roll_back"}, rollout={"keep_journal": True}))
    assert 'health.non_finite: "roll_back" removes the answers' in fault and "rollout.keep_journal" in fault


@pytest.mark.parametrize("action", ["stop", "skip", "roll_back", "drop_data"])
def test_every_choice_can_be_made(action: str):
    settings = {"non_finite": action, "spike": action, "window": 64, "loss_z": 0.0}
    assert not of_health(pretrain(settings)) and not of_health(pretrain({"spike": "off"}))
    assert not of_health(grpo({"non_finite": action})) and not of_health(grpo({}))


def test_dropping_what_comes_once_is_told_to_be_skipping():
    (note,) = pretrain({"non_finite": "drop_data"}).notes()
    assert note == 'health.non_finite: "drop_data" does what "skip" does here: nothing is learnt from twice'
    assert not pretrain({"non_finite": "drop_data"}, num_steps=501).notes() and not pretrain({}).notes()


def test_a_run_that_has_stopped_may_go_on_with_another_choice():
    assert "health" in marked(Pretrain, OnResume.FREE) and "health" in marked(GRPO, OnResume.FREE)
