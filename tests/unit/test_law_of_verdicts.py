"""The law of verdicts: siblings that failed or cannot be scored change nothing for the answers that are scored.

Whatever is made of verdicts is made twice, of all answers and of the scored ones alone, as if the others had never
been: it has to be the same, bit for bit. What there is to be made is discovered: every choice of the objective, and
every function that takes groups, graded answers or results. A new one has to be entered here, and obey.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import random
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from grpo_run import SETTINGS
from hypothesis import given, settings
from hypothesis import strategies as st

from r1mega import algos, diagnostics, evaluation, rewards
from r1mega.algos.advantage import samples_from_groups
from r1mega.algos.grpo import documents, split_at_random
from r1mega.algos.settings import Objective
from r1mega.buffers import Float32s, Int32s
from r1mega.diagnostics.rollout import reward_metrics, rollout_metrics
from r1mega.evaluation.compare import compare
from r1mega.evaluation.judge_bias import bias_figures, bias_lines, length_bias, position_bias
from r1mega.evaluation.metrics import Graded, summarise
from r1mega.evaluation.results import QuestionResult, SampleResult
from r1mega.evaluation.scores import doubling, score
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.preference import JudgedVote, PairVerdict
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.signal import signal_metrics
from r1mega.samples import Completion, Document, FinishReason, Group, Prompt, Sample, Verdict, VerdictStatus
from r1mega.stages.grpo import _loss, _weighted
from r1mega.stages.rank_zero import usable

REWARDS = (0.0, 0.1, 0.25, 1.0, 1.25)
STATUSES = st.sampled_from([VerdictStatus.SCORED] * 3 + [VerdictStatus.FAILED, VerdictStatus.UNSCORABLE])

ANSWERS = st.tuples(st.sampled_from(REWARDS), st.integers(1, 5), STATUSES)
"""Reward, length and what became of it."""


@st.composite
def rollouts(draw: st.DrawFn) -> list[Group]:
    """Groups of 2 to 6 answers, of which any may have failed, or not be scorable."""
    groups = []
    for number in range(draw(st.integers(1, 5))):
        drawn = draw(st.lists(ANSWERS, min_size=2, max_size=6))
        completions, verdicts = [], []
        for i, (reward, length, status) in enumerate(drawn):
            ids = Int32s(100 * number + 10 * i + k for k in range(length))
            finish = FinishReason.LENGTH if length == 5 else FinishReason.STOP
            completions.append(Completion(f"p{number}", i, ids, Float32s.repeated(-0.5, length), "", finish, 0, i))
            part = {"accuracy": float(reward >= 1)}
            verdicts.append(Verdict(status, reward, part) if status == "scored" else Verdict(status, reason="broke"))
        prompt = Prompt(f"p{number}", "math", "q", "1", Int32s([number]))
        groups.append(Group(prompt, tuple(completions), tuple(verdicts)))
    return groups


def survivors(groups: Iterable[Group]) -> list[Group]:
    """The same as if the answers without a verdict had never been."""
    found = []
    for group in groups:
        kept = [(c, v) for c, v in zip(group.completions, group.verdicts, strict=True) if v.scored]
        if kept:
            completions, verdicts = zip(*kept, strict=True)
            found.append(Group(group.prompt, completions, verdicts))
    return found


# ---- estimators, filters, normalisers ------------------------------------------------------------------------------


def choices() -> dict[str, Sequence[Any]]:
    """Every setting of the objective that is one of several names."""
    found = {}
    for name, field in Objective.model_fields.items():
        annotation = field.annotation
        while get_origin(annotation) in (Annotated, Union):  # what may be left out has its names first
            annotation = get_args(annotation)[0]
        if get_origin(annotation) is Literal:
            found[name] = get_args(annotation)
    return found


OBJECTIVES = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in choices().items()})


Learnt = tuple[list[Document], float, list[float]]
"""Of a mini-batch the documents with all that weighs in their loss, the loss and its gradient."""


def test_all_choices_are_found():
    known = {"std", "constant_groups", "reduction", "ratio", "truncated", "kl_estimator", "importance", "mtp"}
    assert known <= set(choices())


def learnt(config: GRPO, groups: Sequence[Group], minibatches: int) -> list[Learnt]:
    samples = usable(config, groups)
    made = []
    for minibatch in split_at_random(samples, minibatches, random.Random(5)):
        if not minibatch:
            made.append(([], 0.0, []))
            continue
        weighted = [with_logprobs(sample) for sample in _weighted(minibatch, config, 0)]
        batch = documents(weighted)
        fields = {n: torch.tensor([x for d in batch for x in d.fields[n]]) for n in batch[0].fields}
        doc = torch.tensor([i for i, d in enumerate(batch) for _ in range(d.num_targets)])
        logp = (fields["old_logp"] + 0.1 * torch.arange(len(doc)).sin()).requires_grad_()
        loss, _ = _loss(config.objective)(logp, fields, doc)
        loss.backward()
        assert logp.grad is not None
        made.append((batch, float(loss.detach()), logp.grad.tolist()))
    return made


def with_logprobs(sample: Sample) -> Sample:
    """Log-probabilities that follow from the answer's tokens."""
    old, reference = ([-0.1 - (t % k) / k for t in sample.completion_ids] for k in (7, 11))
    return dataclasses.replace(sample, old_logp=Float32s(old), ref_logp=Float32s(reference))


@settings(max_examples=120)
@given(rollouts(), OBJECTIVES, st.integers(1, 3))
def test_what_is_learnt_is_that_of_the_survivors(groups: list[Group], objective: dict[str, Any], minibatches: int):
    table = {**SETTINGS["objective"], **objective, "importance_cap": 1.1, "clip_high": 0.05}
    config = GRPO.model_validate({**SETTINGS, "model": {"path": "base"}, "objective": table})
    assert learnt(config, groups, minibatches) == learnt(config, survivors(groups), minibatches)


# ---- figures -------------------------------------------------------------------------------------------------------

OF_SAMPLING = {"rollout/answers", "rollout/tokens"}
"""What was sampled, whatever became of it: `response_length/` is of sampling too."""
OF_THE_OTHERS = {"rollout/failed", "rollout/unscorable", "reward/unscored"}
"""How many the others were."""


def of_rollout(groups: Sequence[Group]) -> dict[str, float]:
    found = rollout_metrics(groups)
    return {n: x for n, x in found.items() if n not in OF_SAMPLING | OF_THE_OTHERS and "response_length" not in n}


def of_signal(groups: Sequence[Group]) -> dict[str, float]:
    rubric = Rubric({"accuracy": Accuracy()}, "zero")
    return {
        f"{name} {divided}": value
        for divided in (False, True)
        for name, value in signal_metrics(groups, rubric, 0.3, divided=divided).items()
    }


def of_samples(groups: Sequence[Group]) -> list[Sample]:
    return samples_from_groups(groups, std="population", constant_groups="keep")


def of_rewards(groups: Sequence[Group]) -> dict[str, float]:
    return {name: x for name, x in reward_metrics(groups).items() if name not in OF_THE_OTHERS}


FIGURES: dict[Callable[..., Any], Callable[[Sequence[Group]], Any]] = {
    rollout_metrics: of_rollout, reward_metrics: of_rewards, signal_metrics: of_signal,
    samples_from_groups: of_samples,
}  # fmt: skip
"""What is made of groups -> how it is made here."""


@settings(max_examples=50)
@pytest.mark.parametrize("figure", FIGURES.values(), ids=lambda figure: figure.__name__)
@given(groups=rollouts())
def test_a_figure_of_a_rollout_is_that_of_the_survivors(figure: Callable[..., Any], groups: list[Group]):
    if left := survivors(groups):
        assert figure(groups) == figure(left)


@settings(max_examples=50)
@given(rollouts())
def test_what_was_sampled_does_not_depend_on_verdicts(groups: list[Group]):
    scored = [
        dataclasses.replace(g, verdicts=tuple(Verdict(VerdictStatus.SCORED, 1.0) for _ in g.verdicts)) for g in groups
    ]
    found, all_scored = rollout_metrics(groups), rollout_metrics(scored)
    sampled = [name for name in found if name in OF_SAMPLING or name.startswith("response_length/")]
    assert len(sampled) == 5 and all(found[name] == all_scored[name] for name in sampled)


# ---- evaluation ----------------------------------------------------------------------------------------------------


@st.composite
def evaluations(draw: st.DrawFn) -> list[QuestionResult]:
    sample = st.builds(
        SampleResult, STATUSES, st.sampled_from([0.0, 1.0]), answer=st.sampled_from(["1", "2", None]),
        vote=st.sampled_from(["1", "2", None]), tokens=st.integers(1, 9),
    )  # fmt: skip
    return [
        QuestionResult(f"q{i}", f"digest {i}", tuple(draw(st.lists(sample, min_size=1, max_size=6))))
        for i in range(draw(st.integers(2, 9)))
    ]


def scored_alone(results: Iterable[QuestionResult]) -> list[QuestionResult]:
    return [dataclasses.replace(r, samples=r.scored) for r in results if r.scored]


def graded(results: Iterable[QuestionResult]) -> list[Graded]:
    return [
        Graded(r.id, s.value == 1, s.tokens > 3, s.tokens > 2, s.tokens > 8, "think", s.tokens, s.answer, s.status)
        for r in results
        for s in r.samples
    ]


def without(record: dict[str, Any], *counts: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in counts}


def of_summary(results: list[QuestionResult]) -> Any:
    return without(summarise(graded(results)).to_json(), "unscorable", "failed")


def of_scores(results: list[QuestionResult]) -> Any:
    ks = doubling(results)
    return without(score(results, ks=ks, votes=ks).to_json(), "unscorable", "failed", "without_score")


def of_comparison(results: list[QuestionResult]) -> Any:
    other = [dataclasses.replace(r, samples=r.samples[::2]) for r in results]
    if sum(bool(r.scored) for r in other) < 2:
        return None
    return without(compare(results, other).to_json(), "left_out")


EVALUATIONS: dict[Callable[..., Any], Callable[[list[QuestionResult]], Any]] = {
    summarise: of_summary, score: of_scores, doubling: doubling, compare: of_comparison,
}  # fmt: skip


@settings(max_examples=40)
@pytest.mark.parametrize("figure", EVALUATIONS.values(), ids=lambda figure: figure.__name__)
@given(results=evaluations())
def test_an_evaluations_figure_is_that_of_the_survivors(figure: Callable[..., Any], results: list[QuestionResult]):
    if figure is of_comparison:  # which takes every second answer: the same ones of both
        ordered = [sorted(result.samples, key=lambda sample: not sample.scored) for result in results]
        results = [dataclasses.replace(r, samples=tuple(o)) for r, o in zip(results, ordered, strict=True)]
    if alone := scored_alone(results):
        assert figure(results) == figure(alone)


# ---- pairs, of which a judge prefers one answer --------------------------------------------------------------------


@st.composite
def compared(draw: st.DrawFn) -> list[PairVerdict]:
    """Verdicts of pairs; of one without a verdict some votes may have been read."""
    vote = st.builds(JudgedVote, st.integers(0, 1), st.sampled_from([3.0, 1.0, 0.0, -1.0, -3.0]))
    found = []
    for status in draw(st.lists(STATUSES, max_size=9)):
        votes = tuple(draw(st.lists(vote, min_size=1, max_size=4)))
        lengths = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
        found.append(PairVerdict(status, sum(v.gap for v in votes) / len(votes), votes, lengths))
    return found


OF_PAIRS: dict[Callable[..., Any], Callable[[list[PairVerdict]], Any]] = {
    position_bias: position_bias, length_bias: length_bias, bias_figures: bias_figures, bias_lines: bias_lines,
}  # fmt: skip


@settings(max_examples=40)
@pytest.mark.parametrize("figure", OF_PAIRS.values(), ids=lambda figure: figure.__name__)
@given(verdicts=compared())
def test_a_figure_of_pairs_is_that_of_the_survivors(figure: Callable[..., Any], verdicts: list[PairVerdict]):
    assert figure(verdicts) == figure([verdict for verdict in verdicts if verdict.scored])


# ---- nothing is left out -------------------------------------------------------------------------------------------

NO_FIGURES = {
    "transcripts": "lists every answer", "results_of": "lists every answer", "with_votes": "lists every answer",
    "write": "writes every answer", "digests_of": "of what was asked", "in_column": "lists the results of a part",
}  # fmt: skip
"""Functions of verdicts that make no figure of them, and why."""


def functions_of_verdicts() -> set[Callable[..., Any]]:
    """Public functions of the rooms that compute, which take several groups, graded answers, results or pairs."""
    found = set()
    for room in (algos, diagnostics, evaluation, rewards):
        for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            for name, function in vars(importlib.import_module(module.name)).items():
                if inspect.isfunction(function) and function.__module__ == module.name and not name.startswith("_"):
                    hints = typing.get_type_hints(function)
                    hints.pop("return", None)
                    taken = [arg for hint in hints.values() if get_origin(hint) for arg in get_args(hint)]
                    if any(kind in taken for kind in (Group, Graded, QuestionResult, PairVerdict)):
                        found.add(function)
    return found


def test_every_function_of_verdicts_is_held_to_the_law():
    found = {f for f in functions_of_verdicts() if f.__name__ not in NO_FIGURES}
    assert found == {*FIGURES, *EVALUATIONS, *OF_PAIRS}
