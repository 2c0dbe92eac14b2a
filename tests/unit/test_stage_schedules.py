"""An RL run whose settings change in its course: what each rollout and evaluation asks, what is learnt from it, and
that a run stopped on either side of a change goes on as one that was not, however its server is laid out."""

from pathlib import Path
from typing import Any

import pytest
from grpo_run import SUMS, Run, base, check_by_hand
from recording import stop_signal
from recording_engine import Engines
from test_stage_sampling import figures, keyed

from r1mega.errors import RunDirError
from r1mega.runtime.interrupt import Interrupted

__all__ = ["base"]  # a fixture

LONG = {**SUMS, "params": {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}}
CHANGES: dict[str, Any] = {
    "questions": [
        {**SUMS, "num": 6, "weight": 2},
        {**LONG, "num": 1, "domain": "logic", "weight": [{"value": 0}, {"last_steps": 2, "value": 1}]},
    ],
    "sampling": {
        "temperature": [{"value": 0.7}, {"from_step": 2, "value": 1.3}],
        "max_new_tokens": [{"value": 8}, {"from_step": 4, "value": 12}],
    },
    "objective": {"reduction": "fixed_length"},
    "rewards": {
        "accuracy": [{"value": 1.0}, {"from_step": 4, "value": 2.0}],
        "format": {"weight": 0.25, "last_steps": 4},
    },
}
"""Of 6 steps, two a rollout, an evaluation after each rollout."""


def changes(**more: Any) -> dict[str, Any]:
    return {**CHANGES, "rollout": more, "rewards": {**CHANGES["rewards"]}}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing stops."""
    return Run(tmp_path_factory.mktemp("whole") / "run").start(base, changes())


def test_the_lines_of_a_run_are_what_the_equations_give_at_each_rollouts_own_settings(whole: Run):
    """Temperature, the denominator of fixed_length and what rewards are worth, by grpo_by_hand's own reading."""
    check_by_hand(whole, [4.0] * 6)
    assert [("reward/format" in row, row["response_length/max"]) for row in whole.rows()] == (
        [(False, 8)] * 2 + [(True, 8)] * 2 + [(True, 12)] * 2
    )


def test_rollouts_and_evaluations_are_drawn_as_at_their_step(whole: Run):
    def drawn(asked: dict[int, Any]) -> dict[int, set[tuple[float, int]]]:
        return {v: {(a.params.temperature, a.params.max_new_tokens) for a in some} for v, some in asked.items()}

    assert drawn(whole.engines.rollouts()) == {0: {(0.7, 8)}, 2: {(1.3, 8)}, 4: {(1.3, 12)}}
    assert drawn(whole.engines.evaluations()) == {
        0: {(0.7, 8), (0.0, 8)}, 2: {(1.3, 8)}, 4: {(1.3, 12)}, 6: {(1.3, 12), (0.0, 12)},
    }  # fmt: skip


def test_all_log_probabilities_of_a_rollout_are_at_its_own_temperature(whole: Run, base: Path, tmp_path: Path):
    def used(run: Run) -> list[float]:
        return [call.temperature for call in run.policies[0].calls if call.verb in ("logprobs", "forward_backward")]

    assert used(whole) == [0.7] * 4 + [1.3] * 8  # old, reference and two steps, a rollout
    # On its way from 0.7 to 1.1 over four steps: what a mini-batch of step 3 was drawn at is that of step 2.
    way = {"temperature": [{"value": 0.7}, {"from_step": 2, "over_steps": 4, "value": 1.1}]}
    run = Run(tmp_path / "run").start(base, {"sampling": way})
    assert used(run) == pytest.approx([0.7] * 8 + [0.9] * 4)
    assert {a.params.temperature for a in run.engines.evaluations()[6] if a.params.temperature} == {1.1}


def test_a_source_is_asked_in_the_steps_that_its_weight_says(whole: Run):
    asked = {v: sorted(a.request.prompt.source for a in some) for v, some in whole.engines.rollouts().items()}
    assert asked == {v: ["chain_sum"] * 3 for v in (0, 2)} | {4: ["chain_sum", "chain_sum", "chain_sum_2"]}


def test_every_change_is_a_row_of_its_own(whole: Run):
    rows = [{k: v for k, v in row.items() if k not in ("kind", "time")} for row in whole.rows("schedule")]
    assert rows == [
        {"step": 2, "sampling.temperature": 1.3, "rewards.format": "asked"},
        {"step": 4, "sampling.max_new_tokens": 12, "questions.1.weight": 1.0, "rewards.accuracy.weight": 2.0},
    ]


@pytest.mark.parametrize("layout", ["largest", "restart"])
def test_the_server_is_laid_out_for_the_longest_answers_or_started_anew_for_them(
    layout: str, whole: Run, base: Path, tmp_path: Path
):
    run = Run(tmp_path / "run").start(base, changes(server_length=layout))
    longest = max(len(a.request.prompt.token_ids) for a in run.engines.asked)
    (made,) = run.engines.options
    if layout == "largest":
        assert (made["max_model_len"], run.engines.lengthened, run.rows("lengthened")) == (longest + 12, [], [])
    else:
        assert (made["max_model_len"], run.engines.lengthened) == (longest + 8, [(longest + 8, longest + 12)])
        (row,) = run.rows("lengthened")
        assert (row["step"], row["before"], row["max_model_len"]) == (4, longest + 8, longest + 12)
    assert keyed(run.engines.asked) == keyed(whole.engines.asked)
    assert figures(run) == figures(whole)


@pytest.mark.parametrize("layout", ["largest", "restart"])
@pytest.mark.parametrize(
    "where",
    [{"steps": 1}, {"steps": 2}, {"steps": 3}, {"steps": 4}, {"steps": 5}, {"answered": 13}, {"answered": 16}],
)
def test_a_run_stopped_on_either_side_of_a_change_is_the_one_that_was_not(
    where: dict[str, int], layout: str, whole: Run, base: Path, tmp_path: Path
):
    """Between mini-batches, at the borders of rollouts, and while evaluation and rollout behind one are sampled."""
    run = Run(tmp_path / "run", Engines(stop_after=where.get("answered")))
    with pytest.raises(Interrupted):
        run.start(
            base,
            changes(server_length=layout),
            after_step=lambda taken: stop_signal() if taken == where.get("steps") else None,
        )
    run.engines.stop_after = None
    run.start(base, changes(server_length=layout), resume=True)
    assert keyed(run.engines.asked) == keyed(whole.engines.asked)  # each request once, in one part or the other
    assert figures(run) == figures(whole)
    assert [row["step"] for row in run.rows("schedule")] == [2, 4]
    # Once, and not where the second part begins at the change, which is laid out for it from the start.
    assert len(run.engines.lengthened) == (layout == "restart" and where != {"steps": 4})


def test_a_run_of_another_length_does_not_go_on_where_something_counts_from_its_end(base: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted):
        run.start(base, changes(), after_step=lambda taken: stop_signal() if taken == 2 else None)
    counting = r"num_steps: 6 -> 8 \(questions.1.weight.1.last_steps, rewards.format.last_steps: counts from the run"
    with pytest.raises(RunDirError, match=counting):
        run.start(base, {**changes(), "num_steps": 8}, resume=True)
    run = Run(tmp_path / "other")
    first = {"sampling": CHANGES["sampling"], "num_steps": 2}
    run.start(base, first)
    run.start(base, {**first, "num_steps": 4}, resume=True)  # from_step counts from the beginning
    assert len(run.rows()) == 4
