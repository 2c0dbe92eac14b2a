"""Laws between the steps of an RL stage: what falls between two rollouts would never come, or come too late."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from r1mega.errors import ConfigError
from r1mega.recipe.asking import Sampling
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.load import load_recipe
from r1mega.recipe.pretrain import Pretrain
from r1mega.recipe.sft import SFT
from r1mega.rollout.engine import SamplingParams

TINY = Path(__file__).parents[2] / "configs/tiny/qwen2.json"
OPTIMIZER = {"lr": 1e-3}
COMMON: dict[str, Any] = {
    "num_steps": 12,
    "optimizer": OPTIMIZER,
    "batch": {"chunk_tokens": 64},
    "save": {"every_steps": 4},
}
RL = {
    **COMMON,
    "stage": "grpo",
    "model": {"path": "/nowhere"},
    "questions": [{"kind": "reasoning_gym", "family": "chain_sum", "num": 8}],
    "rollout": {"num_prompts": 4, "num_minibatches": 4},
    "sampling": {"max_new_tokens": 8},
    "objective": {"group_size": 4, "reference_refresh_steps": 8},
    "evaluation": {
        "every_steps": 4,
        "questions": [{"kind": "reasoning_gym", "family": "chain_sum", "num": 2}],
    },
}


EVALUATE = {name: RL[name] for name in ("model", "sampling", "evaluation")} | {"stage": "evaluate"}


def faults(stage: Any) -> list[str]:
    return stage.faults()


def rl(**changes: Any) -> list[str]:
    changed = {name: {**RL.get(name, {}), **v} if isinstance(v, dict) else v for name, v in changes.items()}
    return faults(GRPO.model_validate({**RL, **changed}))


def test_what_falls_on_the_ends_of_rollouts_passes():
    assert rl() == []
    assert rl(objective={"reference_refresh_steps": 0}) == []  # never
    assert rl(evaluation={"every_steps": 12}, optimizer={"warmup_steps": 11}) == []
    assert rl(save={"every_steps": 4, "keep_every": 8}) == []


TWO = [
    {"kind": "reasoning_gym", "family": "chain_sum", "num": 8},
    {"kind": "reasoning_gym", "family": "chain_sum", "num": 8, "domain": "general"},
]
RM = {"kind": "reward_model", "path": "/nowhere", "scope": "summary", "domains": ["general"], "last_steps": 4}
LATE = [{"value": 0}, {"last_steps": 4, "value": 1}]
"""Of 12 steps, four a rollout."""


def test_schedules_that_change_between_rollouts_pass():
    limit = [{"value": 8}, {"from_step": 4, "over_steps": 4, "value": 16}]
    assert (
        rl(sampling={"max_new_tokens": limit, "temperature": [{"value": 1}, {"last_steps": 4, "value": 0.7}]}) == []
    )
    late = {"kind": "format", "last_steps": 4, "domains": ["general"]}
    questions = [TWO[0], {**TWO[1], "weight": LATE}]
    assert rl(questions=questions, rewards={"accuracy": {"domains": ["math"]}, "late": late}) == []
    follows = {"rewards": {"accuracy": 1.0, "overlong": {"buffer": 8}}, "objective": {"truncated": "judge"}}
    assert rl(sampling={"max_new_tokens": limit}, **follows) == []


INSIDE = "falls inside a rollout of rollout.num_minibatches = 4 steps"
SCHEDULE_FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"sampling": {"temperature": [{"value": 1}, {"from_step": 6, "value": 0.7}]}},
        f"sampling.temperature.1.from_step: 6 {INSIDE}",
    ),
    (
        {"sampling": {"max_new_tokens": [{"value": 8}, {"last_steps": 6, "value": 9}]}},
        f"sampling.max_new_tokens.1.last_steps: 6 steps before the end of num_steps = 12, step 6, {INSIDE}",
    ),
    (
        {"questions": [TWO[0], {**TWO[1], "weight": [{"value": 0}, {"from_step": 2, "value": 1}]}]},
        f"questions.1.weight.1.from_step: 2 {INSIDE}",
    ),
    ({"rewards": {"accuracy": {"from_step": 3}, "format": 1.0}}, f"rewards.accuracy.from_step: 3 {INSIDE}"),
    (
        {"rewards": {"accuracy": {"last_steps": 16}, "format": 1.0}},
        "rewards.accuracy.last_steps: 16 is more than the run's num_steps = 12",
    ),
    (
        {"rewards": {"accuracy": {"last_steps": 4, "from_step": 4}, "format": 1.0}},
        "rewards.accuracy.from_step, last_steps: say one of them",
    ),
    (
        {"rewards": {"accuracy": 1.0, "format": [{"value": 1}, {"from_step": 4, "over_steps": 2, "value": 0}]}},
        "rewards.format.weight.1.over_steps: 2 steps end inside a rollout",
    ),
    ({"questions": [{**TWO[0], "weight": 0}, TWO[1]]}, "questions.0.weight: is 0 throughout, so that none of its"),
    (
        {"questions": [{**TWO[0], "weight": LATE}, {**TWO[1], "weight": LATE}]},
        "questions: from step 0 on every table's weight is 0: nothing can be asked",
    ),
    (
        {"rewards": {"accuracy": {"last_steps": 4}, "format": {"from_step": 4}}},
        'questions.0: asked from step 0 on, where no reward with a weight is for domain = "math": name it in',
    ),
    (
        {"questions": TWO, "rewards": {"accuracy": {"domains": ["math"]}}},
        'questions.1: asked from step 0 on, where no reward with a weight is for domain = "general"',
    ),
    (
        {"rewards": {"accuracy": [{"value": 1}, {"from_step": 8, "value": 0}]}},
        'questions.0: asked from step 8 on, where no reward with a weight is for domain = "math"',
    ),
    (
        {
            "sampling": {"max_new_tokens": [{"value": 8}, {"from_step": 4, "value": 16}]},
            "rewards": {"accuracy": 1.0, "overlong": {"buffer": 4, "max_tokens": 8}},
            "objective": {"truncated": "judge"},
        },
        "rewards.overlong.max_tokens: 8 stays as it is where sampling.max_new_tokens changes; leave it out",
    ),
    (
        {
            "sampling": {"max_new_tokens": [{"value": 16}, {"from_step": 4, "value": 8}]},
            "rewards": {"accuracy": 1.0, "overlong": {"buffer": 9}},
            "objective": {"truncated": "judge"},
        },
        "rewards.overlong.buffer: 9 tokens before sampling.max_new_tokens = 8 would begin before the answer",
    ),
    (
        {
            "sampling": {"max_new_tokens": [{"value": 16}, {"from_step": 4, "value": 8}]},
            "rewards": {
                "accuracy": 1.0,
                "overlong": {"buffer": 4, "max_tokens": [{"value": 16}, {"from_step": 8, "value": 8}]},
            },
            "objective": {"truncated": "judge"},
        },
        "rewards.overlong: begins at 12 tokens (max_tokens - buffer), and no answer is longer than "
        "sampling.max_new_tokens = 8 from step 4 on",
    ),
]


@pytest.mark.parametrize(("changes", "said"), SCHEDULE_FAULTS)
def test_what_a_schedule_cannot_do_is_said_in_one_message(changes: dict[str, Any], said: str):
    (fault,) = rl(**changes)
    assert fault.startswith(said)


NOTES: list[tuple[dict[str, Any], list[str]]] = [
    ({"rewards": {"accuracy": 1.0, "format": [{"value": 1}, {"from_step": 8, "value": 2}]}}, []),
    (
        {"sampling": {"temperature": [{"value": 1}, {"from_step": 8, "value": 2}, {"from_step": 12, "value": 3}]}},
        ["sampling.temperature.2.from_step: 12 is not before the run's num_steps = 12: it never comes"],
    ),
    (
        {"rewards": {"accuracy": 1.0, "format": {"from_step": 12}}},
        ["rewards.format.from_step: 12 is not before the run's num_steps = 12: it is never asked"],
    ),
    (
        {"rewards": {"accuracy": 1.0, "format": {"domains": ["code"]}}},
        ['rewards.format: is asked of nothing: it is for domains = ["code"], and [[questions]] are of ["math"]'],
    ),
    (
        {"questions": TWO, "rewards": {"accuracy": 1.0, "rm": RM}},
        ["rewards.rm: is asked from step 8 on, and questions.1, of its domain, from step 0 on: until then other"],
    ),
    (
        {
            "questions": [TWO[0], {**TWO[1], "weight": [{"value": 0}, {"from_step": 4, "value": 1}]}],
            "rewards": {"accuracy": 1.0, "rm": RM},
        },
        ["rewards.rm: is asked from step 8 on, and questions.1, of its domain, from step 4 on: until then other"],
    ),
    ({"questions": [TWO[0], {**TWO[1], "weight": LATE}], "rewards": {"accuracy": 1.0, "rm": RM}}, []),
]


@pytest.mark.parametrize(("changes", "said"), NOTES)
def test_what_may_not_be_meant_is_said(changes: dict[str, Any], said: list[str]):
    changed = {name: {**RL.get(name, {}), **v} if isinstance(v, dict) else v for name, v in changes.items()}
    recipe = GRPO.model_validate({**RL, **changed})
    notes = recipe.notes()
    assert len(notes) == len(said) and all(map(str.startswith, notes, said)), notes


def test_lengths_are_held_against_the_longest_of_a_run():
    recipe = GRPO.model_validate(
        {**RL, "sampling": {"max_new_tokens": [{"value": 8}, {"from_step": 96, "value": 90}]}}
    )
    assert recipe.longest() == (91, "sampling.max_new_tokens")
    assert [recipe.server_tokens(step) for step in (0, 8, 12)] == [90] * 3
    anew = {**RL["rollout"], "server_length": "restart"}
    grows = [{"value": 8}, {"from_step": 4, "over_steps": 4, "value": 20}, {"last_steps": 4, "value": 4}]
    recipe = GRPO.model_validate({**RL, "rollout": anew, "sampling": {"max_new_tokens": grows}})
    # Once for all of the way up, and not again for less.
    assert [recipe.server_tokens(step) for step in (0, 3, 4, 6, 8, 12)] == [8, 8, 20, 20, 20, 20]


def test_an_evaluation_refuses_a_schedule_by_its_name():
    for name, value in (("temperature", 0.7), ("max_new_tokens", 8)):
        settings = {**RL["sampling"], name: [{"value": value}, {"from_step": 4, "value": value}]}
        with pytest.raises(
            ValidationError, match="should be one value: this stage takes no optimiser steps"
        ) as error:
            Evaluate.model_validate({**EVALUATE, "sampling": settings})
        assert [fault["loc"] for fault in error.value.errors()] == [("sampling", name)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"objective": {"reference_refresh_steps": 6}},
            "objective.reference_refresh_steps: 6 falls inside a rollout",
        ),
        (
            {"objective": {"reference_refresh_steps": 1}},
            "objective.reference_refresh_steps: 1 falls inside a rollout",
        ),
        ({"evaluation": {"every_steps": 6}}, "evaluation.every_steps: 6 falls between two rollouts"),
        ({"evaluation": {"every_steps": 3}}, "evaluation.every_steps: 3 falls between two rollouts"),
        ({"num_steps": 10}, "num_steps: 10 optimiser steps are no whole number of rollouts of 4"),
        ({"rollout": {"num_prompts": 3, "num_minibatches": 8}}, "12 outputs (3 prompts x group_size 4) do not split"),
        ({"optimizer": {"warmup_steps": 12}}, "optimizer.warmup_steps: 12 leaves no step at the full learning rate"),
        (
            {"rollout": {"num_prompts": 9, "num_minibatches": 4}},
            "questions: num = 8 is less than one rollout's 9 prompts",
        ),
        ({"rewards": {"accuracy": 0, "format": 0}}, "rewards: every weight is 0"),
    ],
)
def test_what_would_never_come_is_refused(changes: dict[str, Any], said: str):
    found = rl(**changes)
    assert any(said in fault for fault in found), found


def test_grpo_takes_no_top_p_and_an_evaluation_does():
    (fault,) = rl(sampling={"top_p": 0.95})
    assert fault.startswith("sampling.top_p: 0.95 renormalises the engine's log-probabilities")
    assert "of another distribution than the policy's" in fault
    sampled = {"max_new_tokens": 8, "top_p": 0.95, "stop": ["</answer>"]}
    assert faults(Evaluate.model_validate({**EVALUATE, "sampling": sampled})) == []
    assert rl(sampling={"top_p": 1.0, "stop": ["</answer>"]}) == []
    for wrong in (0, 1.01, "0.9"):
        with pytest.raises(ValidationError, match=r"sampling\.top_p"):
            Evaluate.model_validate({**EVALUATE, "sampling": {**sampled, "top_p": wrong}})


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ([""], ["sampling.stop: an empty string would end every answer at once"]),
        (["a", "a"], ["'a' is there twice"]),
        (["</answer>\n", "b", "</answer>"], ["'</answer>\\n' ends no answer, since it contains '</answer>'"]),
        (["b", "ab", "abc"], ["'ab' ends no answer, since it contains 'b'", "'abc' ends no answer"]),
        (["ab", "bc", "B"], []),
    ],
)
def test_stop_strings_that_end_no_answer_are_refused(stop: list[str], said: list[str]):
    for found in (rl(sampling={"stop": stop}), faults(Evaluate.model_validate({**EVALUATE, "sampling": {
        "max_new_tokens": 8, "stop": stop,
    }}))):  # fmt: skip
        assert len(found) == len(said)
        assert all(text in fault for text, fault in zip(said, found, strict=True))


@pytest.mark.parametrize(("kl_coef", "mtp"), [(0.0, "off"), (0.1, "off"), (0.0, "detached")])
def test_memory_is_counted_for_what_the_objective_asks_for(kl_coef: float, mtp: str):
    objective = {**RL["objective"], "kl_coef": kl_coef, "mtp": mtp}
    holds = GRPO.model_validate({**RL, "objective": objective}).holds()
    assert (holds.trainer, holds.engine) == (True, True)
    assert (holds.reference, holds.mtp_learns) == (kl_coef > 0, mtp != "off")


def test_settings_of_sampling_and_what_the_engine_takes_have_the_same_names():
    assert {*Sampling.model_fields} == {field.name for field in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize(("steps", "refused"), [(11, False), (12, True), (13, True)])
def test_warm_up_leaves_a_step_at_the_full_rate_in_every_stage(steps: int, refused: bool):
    optimizer = {**OPTIMIZER, "warmup_steps": steps}
    styles = {"think": 1, "tags": 0, "steps": 0, "plain": 0}
    pretrain = {
        **COMMON,
        "stage": "pretrain",
        "tasks": [{"name": "chain_sum"}],
        "model": {"config": str(TINY)},
        "documents_per_step": 4,
    }
    pretrain |= {"data": {"num_documents": 8, "styles": styles}}
    sft = {k: v for k, v in COMMON.items() if k != "num_steps"} | {"stage": "sft", "num_epochs": 1}
    sft |= {"model": {"path": "/nowhere"}, "data": {"dataset": "some", "max_tokens": 64}, "batch_size": 4}
    stages = [
        GRPO.model_validate({**RL, "optimizer": optimizer}),
        Pretrain.model_validate({**pretrain, "optimizer": optimizer}),
        SFT.model_validate({**sft, "max_steps": 12, "optimizer": optimizer}),
    ]
    for stage in stages:
        assert [fault.startswith(f"optimizer.warmup_steps: {steps} leaves no step") for fault in faults(stage)] == (
            [True] if refused else []
        ), stage.stage


def test_a_target_that_the_language_reward_does_not_know_is_named():
    (source,) = RL["questions"]
    esperanto, german = [{**source, "target_language": "eo"}], [{**source, "target_language": "de"}]
    (fault,) = rl(questions=esperanto, rewards={"language": 1.0})
    assert fault.startswith("questions.0.target_language: the language reward does not know 'eo'")
    assert rl(questions=esperanto) == rl(questions=german, rewards={"language": 1.0}) == []


def test_steps_are_said_in_words_where_there_are_words_for_them():
    base = TINY.parent / "language/0_base.toml"
    assert load_recipe(base).data.step_words == ("en", "zh")
    with pytest.raises(ConfigError, match=r"data.step_words: the steps of gcd cannot be said in words"):
        load_recipe(base, ["tasks=[{name='gcd'}]"])
    assert load_recipe(base, ["tasks=[{name='gcd'}]", "data.step_words=[]"]).data.step_words == ()
    with pytest.raises(ConfigError, match=r"data.slips: the steps of gcd have no running result to slip in"):
        load_recipe(base, ["tasks=[{name='gcd'}]", "data.step_words=[]", "data.slips=0.1"])
