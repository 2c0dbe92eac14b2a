"""Laws of [hacking] in an RL stage's config, and what of a run is watched."""

from typing import Any, get_args

import pytest
from grpo_run import SETTINGS

from r1mega.data.question import Domain
from r1mega.diagnostics.settings import Hacking
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.hacking import trained_at, watched
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format
from r1mega.rewards.reward import ModelReward, Reward

EVERYTHING = GRPO.model_validate(
    {
        **SETTINGS,
        "model": {"path": "."},
        "questions": [{**SETTINGS["questions"][0], "domain": domain} for domain in get_args(Domain)],
    }
).questions


class Model(ModelReward):
    kind: str = "model"


def recipe(rewards: dict[str, Reward], num_steps: int = 60, **hacking: Any) -> GRPO:
    """Of 2 steps a rollout; [hacking] is stated."""
    base = GRPO.model_validate({**SETTINGS, "model": {"path": "."}, "num_steps": num_steps, "hacking": hacking})
    return base.model_copy(update={"rewards": rewards})


def faults(rewards: dict[str, Reward], num_steps: int = 60, **hacking: Any) -> list[str]:
    return [f for f in recipe(rewards, num_steps, **hacking).faults() if "hacking" in f]


def seen(rewards: dict[str, Reward], num_steps: int = 60, **hacking: Any):
    return watched(Hacking(**hacking), rewards, EVERYTHING, num_steps=num_steps, each=2)


RM = Model.model_validate({})
OTHER = Model.model_validate({"weight": 0})
RULE = Accuracy.model_validate({"weight": 0})


def test_by_default_what_models_give_is_held_against_what_has_no_weight():
    found = seen({"rm": RM, "other": OTHER, "rule": RULE, "format": Format()})
    assert found.truths == {"rm": ("other", "rule")} and found.rollouts == 30
    assert len(found.pairs) == 4 and found.looks(20) == 11
    named = seen({"rm": RM, "format": Format(), "accuracy": Accuracy()}, trained=("format",), truths=("accuracy",))
    assert named.truths == {"format": ("accuracy",)}
    assert seen({"accuracy": Accuracy(), "format": Format()}).truths == {}


def test_domains_that_never_meet_are_not_compared():
    rewards = {
        "helpful": Model.model_validate({"domains": ["helpful"]}),
        "harmless": Model.model_validate({"domains": ["harmless"]}),
        "maths": Accuracy.model_validate({"weight": 0, "domains": ["math"]}),
        "asked": Accuracy.model_validate({"weight": 0, "domains": ["helpful", "math"]}),
        "all": RULE,
    }
    assert seen(rewards).truths == {"helpful": ("asked", "all"), "harmless": ("all",)}


def test_only_rollouts_that_learn_from_it_are_looked_at():
    """Of 60 steps, 30 rollouts: the last 20 steps; a weight from step 30 on; one that ends at step 30."""
    last = Model.model_validate({"last_steps": 20})
    late = Model.model_validate({"weight": [{"value": 0}, {"from_step": 30, "value": 1}]})
    early = Model.model_validate({"weight": [{"value": 1}, {"last_steps": 30, "value": 0}]})
    assert [seen({"rm": rm, "rule": RULE}).rollouts for rm in (last, late, early)] == [10, 15, 15]
    assert [trained_at(last, step, 60) for step in (0, 39, 40, 59)] == [False, False, True, True]
    assert [trained_at(early, step, 60) for step in (0, 29, 30)] == [True, True, False]


@pytest.mark.parametrize(
    ("rewards", "hacking", "message"),
    [
        ({"rm": RM}, {"truths": ["quality"]}, "hacking.truths: there is no reward 'quality': there are rm"),
        ({"rm": RM}, {"trained": ["rn"]}, "hacking.trained: there is no reward 'rn': there are rm"),
        ({"rm": RM, "o": OTHER}, {"trained": ["o"]}, "hacking.trained: rewards.o has weight 0, so nothing is learnt"),
        ({"rm": RM, "b": RM}, {"truths": ["b"]}, "hacking.truths: a model gives rewards.b, and it is learnt from"),
        ({"accuracy": Accuracy()}, {}, "hacking: no reward that is learnt from is given by a model"),
        (
            {
                "rm": Model.model_validate({"domains": ["helpful"]}),
                "maths": Accuracy.model_validate({"domains": ["math"]}),
            },
            {"truths": ["maths"]},
            "hacking.truths: rewards.maths judges no answer that rm judges: their domains have nothing in common",
        ),
        ({"rm": RM}, {"window": 30}, "hacking.window: 30 rollouts, and hacking.patience = 2 such windows in a row, "),
        ({"rm": Model.model_validate({"last_steps": 24})}, {"window": 12}, "take 13 rollouts that the reward is"),
        ({"rm": RM, "rule": RULE}, {"truths": ["rule", "rule"]}, "hacking.truths: 'rule' is there twice"),
        ({"rm": RM, "rule": RULE}, {"trained": ["rm", "rm"]}, "hacking.trained: 'rm' is there twice"),
        (
            {"rm": RM, "late": Model.model_validate({"last_steps": 20})},
            {},
            "of rewards.late the run has 10 of 2 steps each",
        ),
        (
            {"rm": RM, "rule": Accuracy.model_validate({"weight": 0, "last_steps": 20})},
            {"truths": ["rule"]},
            "take 21 rollouts in which rewards.rule judges answers that a trained reward judges; the run has 10: ask",
        ),
        ({"rm": RM, "repetition": RULE}, {}, "rewards.repetition: hacking calls a figure of its own so"),
    ],
)  # fmt: skip
def test_what_is_refused(rewards: dict[str, Reward], hacking: dict[str, Any], message: str):
    found = faults(rewards, **hacking)
    assert len(found) == 1 and message in found[0], found


def test_rollouts_without_a_question_for_it_do_not_count():
    """Of 30 rollouts the last 10 ask general prompts, which alone the model judges."""
    general = {"domain": "general", "weight": [{"value": 0}, {"last_steps": 20, "value": 1}]}
    table = SETTINGS["questions"][0]
    late = GRPO.model_validate({**SETTINGS, "model": {"path": "."}, "questions": [table, {**table, **general}]})
    rewards = {"rm": Model.model_validate({"domains": ["general"]}), "rule": RULE}
    found = watched(Hacking(), rewards, late.questions, num_steps=60, each=2)
    assert (found.rollouts, found.truths) == (10, {"rm": ("rule",)})


def test_a_truth_that_is_named_twice_is_compared_once():
    assert seen({"rm": RM, "rule": RULE}, truths=("rule", "rule")).truths == {"rm": ("rule",)}


def test_what_is_not():
    assert faults({"rm": RM, "rule": RULE}) == []
    assert faults({"rm": RM}, window=29) == []
    assert faults({"rm": Model.model_validate({"last_steps": 26})}, window=12) == []
    assert faults({"rm": RM, "accuracy": Accuracy()}, truths=["accuracy"]) == []  # a rule that is learnt from
    # A window that nobody chose refuses no run; the stage says that nothing is watched.
    short = recipe({"rm": RM}, num_steps=6)
    plain = GRPO.model_validate({**SETTINGS, "model": {"path": "."}}).model_copy(update={"rewards": {"rm": RM}})
    assert [f for f in plain.faults() if "hacking" in f] == [] != [f for f in short.faults() if "hacking" in f]
