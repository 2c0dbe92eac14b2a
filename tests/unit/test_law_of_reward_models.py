"""The law of verdicts for what models say: an answer that a model broke on changes nothing for the others.

Random rollouts, of which two reward models give scores, broken ones and answers without anything to read, are taken
once whole and once without the answers that failed, as if these had never been: the rest is the same in every bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_run import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mega.buffers import Float32s, Int32s
from r1mega.diagnostics.rollout import reward_metrics
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.format import Format
from r1mega.rewards.reward import Score, Unread, failed, scored
from r1mega.rewards.reward_model import LearntReward
from r1mega.rewards.rubric import Place, Rubric
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus
from r1mega.stages.rank_zero import usable

NAMES = ("helpful", "harmless")
SAID = st.sampled_from(
    [scored(x) for x in (-1.5, -0.25, 0.0, 0.5, 2.0)]
    + [Unread("missing", "no summary"), Unread("too_long", "long"), failed("the model gives nan")]
)
ANSWER = st.tuples(st.sampled_from([True] * 5 + [False]), SAID, SAID)
"""Whether the rules have scored it, and what each model says."""
Found = dict[str, dict[Place, Score | Unread]]


def rubric(harmless: float = 1.0) -> Rubric:
    models: dict[str, dict[str, Any]] = {
        "helpful": {"scope": "summary", "weight": 1.0},
        "harmless": {"scope": "response", "missing": -1.0, "weight": harmless},
    }
    made = {n: LearntReward.model_validate({"path": "/nowhere", **of}) for n, of in models.items()}
    return Rubric({"format": Format(), **made}, "judge")


def rollout(drawn: Sequence[Sequence[tuple[bool, Any, Any]]], kept: Sequence[Place]) -> tuple[list[Group], Found]:
    """Of the drawn groups the answers that are kept."""
    groups: list[Group] = []
    found: Found = {name: {} for name in NAMES}
    for i, answers in enumerate(drawn):
        mine = [j for j in range(len(answers)) if (i, j) in kept]
        if not mine:
            continue
        completions, verdicts = [], []
        for place, j in enumerate(mine):
            judged, *said = answers[j]
            ids = Int32s([10 * i + j, 3])
            completions.append(Completion(f"p{i}", j, ids, Float32s([-0.5, -0.5]), "", FinishReason.STOP, 0, j))
            part = {"format": float(j % 2)}
            verdicts.append(
                Verdict(VerdictStatus.SCORED, part["format"], part) if judged else Verdict(VerdictStatus.FAILED)
            )
            if judged:
                found |= {n: {**found[n], (len(groups), place): one} for n, one in zip(NAMES, said, strict=True)}
        prompt = Prompt(f"p{i}", "none", "q", "", Int32s([i]), domain="helpful")
        groups.append(Group(prompt, tuple(completions), tuple(verdicts)))
    return groups, found


def learnt(groups: Sequence[Group]) -> Any:
    config = GRPO.model_validate({**SETTINGS, "model": {"path": "base"}})
    figures: Mapping[str, float] = reward_metrics(groups)
    counts = ("rollout/failed", "rollout/unscorable", "reward/unscored")
    return usable(config, groups), {name: x for name, x in figures.items() if name not in counts}


@settings(max_examples=150)
@given(st.lists(st.lists(ANSWER, min_size=2, max_size=5), min_size=1, max_size=4))
def test_an_answer_that_failed_changes_nothing_for_the_others(drawn: list[list[tuple[bool, Any, Any]]]):
    everybody = [(i, j) for i, answers in enumerate(drawn) for j in range(len(answers))]
    groups, found = rollout(drawn, everybody)
    judged = rubric().read(groups, found, 0)
    # By the definition, not by the verdicts: whatever the rules or a model broke on.
    broke = {(i, j) for i, j in everybody if not drawn[i][j][0] or failed("the model gives nan") in drawn[i][j][1:]}
    stand = [place for place in everybody if place not in broke]
    verdicts = {(i, j): v for i, group in enumerate(judged) for j, v in enumerate(group.verdicts)}
    assert {place for place, v in verdicts.items() if not v.scored} >= broke
    alone, found_alone = rollout(drawn, stand)
    if alone:
        assert learnt(judged) == learnt(rubric().read(alone, found_alone, 0))


def test_the_lowest_score_is_of_answers_that_stand():
    """By hand: the model's lowest score is an answer's on which the other model broke, and so is nobody's measure."""
    nothing = Unread("missing", "no summary")
    drawn = [[(True, scored(1.0), scored(0.5)), (True, nothing, scored(0.5)), (True, scored(-9.0), failed("nan"))]]
    groups, found = rollout(drawn, [(0, 0), (0, 1), (0, 2)])
    (group,) = rubric().read(groups, found, 0)
    assert [v.status for v in group.verdicts] == ["scored", "scored", "failed"]
    assert dict(group.verdicts[0].parts) == {"format": 0.0, "helpful": 1.0, "harmless": 0.5}
    assert dict(group.verdicts[1].parts) == {"format": 1.0, "helpful": 1.0, "harmless": 0.5}
    assert group.verdicts[1].reason == "no summary"


def test_the_lowest_score_is_of_the_whole_rollout():
    nothing = Unread("missing", "no summary")
    drawn = [[(True, scored(3.0), scored(0.5)), (True, nothing, scored(0.5))], [(True, scored(-2.0), nothing)]]
    groups, found = rollout(drawn, [(0, 0), (0, 1), (1, 0)])
    first, second = rubric().read(groups, found, 0)
    assert [v.parts["helpful"] for v in (*first.verdicts, *second.verdicts)] == [3.0, -2.0, -2.0]
    assert second.verdicts[0].parts["harmless"] == -1.0


def test_where_the_model_broke_on_all_that_it_read_the_others_stand_all_the_same():
    nothing, broke = Unread("missing", "no summary"), failed("nan")
    drawn = [[(True, nothing, scored(0.5)), (True, broke, scored(0.5)), (True, nothing, scored(0.25))]]
    groups, found = rollout(drawn, [(0, 0), (0, 1), (0, 2)])
    (group,) = rubric().read(groups, found, 0)
    assert [v.status for v in group.verdicts] == ["scored", "failed", "scored"]
    assert [v.parts.get("helpful") for v in group.verdicts] == [0.0, None, 0.0]


def test_a_broken_score_of_weight_0_is_no_measure_of_the_lowest():
    nothing, models = Unread("missing", "no summary"), {"helpful": LearntReward.model_validate(
        {"path": "/nowhere", "scope": "summary", "weight": 0.0})}  # fmt: skip
    drawn = [[(True, scored(2.0), nothing), (True, failed("nan"), nothing), (True, nothing, nothing)]]
    groups, found = rollout(drawn, [(0, 0), (0, 1), (0, 2)])
    (group,) = Rubric({"format": Format(), **models}, "judge").read(groups, {"helpful": found["helpful"]}, 0)
    assert [v.parts.get("helpful") for v in group.verdicts] == [2.0, None, 2.0]
    assert [v.unmeasured for v in group.verdicts] == [(), ("helpful",), ()]


@settings(max_examples=100)
@given(st.lists(st.lists(ANSWER, min_size=2, max_size=5), min_size=1, max_size=4))
def test_a_model_of_weight_0_is_measured_and_teaches_nothing(drawn: list[list[tuple[bool, Any, Any]]]):
    everybody = [(i, j) for i, answers in enumerate(drawn) for j in range(len(answers))]
    groups, found = rollout(drawn, everybody)
    measured = rubric(harmless=0.0).read(groups, found, 0)
    without = rubric(harmless=0.0).read(groups, {"helpful": found["helpful"]}, 0)
    assert learnt(measured)[0] == learnt(without)[0]
    verdicts = [(m, w) for one, other in zip(measured, without, strict=True)
                for m, w in zip(one.verdicts, other.verdicts, strict=True)]  # fmt: skip
    assert all((m.status, m.reward) == (w.status, w.reward) for m, w in verdicts)
    # It is there as a part of every verdict that stands, or is counted as missing from it.
    for verdict in (m for m, _ in verdicts if m.scored):
        assert ("harmless" in verdict.parts) != (verdict.unmeasured == ("harmless",))
    broke = sum(v.unmeasured == ("harmless",) for v, _ in verdicts if v.scored)
    assert reward_metrics(measured).get("rewards/harmless/unmeasured", 0.0) == broke
