"""The GRPO loop in this process, on a policy and an engine that are exact and write down what they are asked.

Every setting of [objective] and its neighbours goes in as a user writes it, and what comes out, the lines of
metrics.jsonl, is what the report's equations give answer by answer (grpo_by_hand.py): a wire that is cut shows.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from grpo_run import Run, base, check_by_hand, config, plain
from recording import stop_signal
from recording_engine import Engines

from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.progress import Stopwatch
from r1mega.weights.folder import GiveFolder

__all__ = ["base", "plain"]  # fixtures


CHOICES: dict[str, dict[str, Any]] = {
    "a ratio of whole outputs": {"objective": {"ratio": "sequence"}},
    "geometric means, sample deviation": {"objective": {"ratio": "sequence_mean", "std": "sample"}},
    "token mean, truncated answers left out": {"objective": {"reduction": "token_mean", "truncated": "mask"}},
    "fixed length, truncated answers judged": {"objective": {"reduction": "fixed_length", "truncated": "judge"}},
    "no KL": {"objective": {"kl_coef": 0.0}},
    "k2, the first reference for ever": {"objective": {"kl_estimator": "k2", "reference_refresh_steps": 0}},
    "weighted k3, three mini-batches": {
        "objective": {"kl_estimator": "k3_weighted", "reference_refresh_steps": 3},
        "rollout": {"num_minibatches": 3},
        "evaluation": {"every_steps": 3},
    },
    "no deviation, no constant groups": {"objective": {"std": "none", "constant_groups": "drop"}},
    "one mini-batch a rollout": {"rollout": {"num_minibatches": 1}},
    "wide bounds": {"objective": {"clip_low": 0.2, "clip_high": 0.01}},
    "another temperature, other rewards": {"sampling": {"temperature": 1.3}, "rewards": {"format": 3.0}},
    "longer answers": {"sampling": {"max_new_tokens": 12}},
}


def test_the_lines_of_a_run_are_what_the_equations_give(plain: Run):
    check_by_hand(plain, [4.0] * 6)
    rows = plain.rows()
    # The figures that must not be taken for granted: each occurs, and is not 0 or 1 throughout.
    # Before the first step on a rollout, 1 up to the float32 in which old log-probabilities are kept.
    assert [row["ratio/mean"] == pytest.approx(1.0, abs=1e-7) for row in rows] == [True, False] * 3
    assert [row["clip_fraction"] for row in rows[::2]] == [0.0] * 3
    assert 0 < max(row["clip_fraction"] for row in rows) < 1
    # Row 5 is measured against the reference of step 4, which its rollout was sampled with.
    assert [row["kl/mean"] > 1e-8 for row in rows] == [False, True, True, True, False, True]
    assert all(row["loss"] == pytest.approx(row["policy_loss"] + 0.3 * row["kl/mean"]) for row in rows)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_the_objective_reaches_the_loss(choice: str, plain: Run, base: Path, tmp_path: Path):
    run = Run(tmp_path / "run").start(base, CHOICES[choice])
    check_by_hand(run, [4.0] * 6)
    figures = [[{k: v for k, v in row.items() if "seconds" not in k} for row in r.rows()] for r in (run, plain)]
    assert figures[0] != figures[1]  # or the choice would not be tested here


def test_answers_of_another_distribution_weigh_less_up_to_the_cap(base: Path, tmp_path: Path):
    changes = {
        "objective": {"importance": "truncated", "importance_cap": 1.03},
        "mismatch": {"max_abs": 0.2},
    }
    run = Run(tmp_path / "run", Engines(shift=0.1)).start(base, changes)
    documents = [d for call in run.policies[0].calls if call.verb == "forward_backward" for d in call.documents]
    gaps = [
        old - sampled
        for d in documents
        for old, sampled in zip(d.fields["old_logp"], d.fields["behaviour_logp"], strict=True)
    ]
    assert min(gaps) < 0 < math.log(1.03) < max(gaps)  # on both sides of the cap
    check_by_hand(run, [4.0] * 6)


SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    # min + (1 - min) x what is left of the run, in sixths, times 1/2 and 2/2 in the warm-up.
    "linear": ({"schedule": "linear", "min_lr_ratio": 0.1, "warmup_steps": 2}, [2.0, 3.4, 2.8, 2.2, 1.6, 1.0]),
    # (1 - cos(180 degrees x what is left)) / 2: of 180, 150, 120, 90, 60 and 30 degrees.
    "cosine": ({"schedule": "cosine"}, [4.0, 2 + 3**0.5, 3.0, 2.0, 1.0, 2 - 3**0.5]),
    "constant": ({"warmup_steps": 3}, [4 / 3, 8 / 3, 4.0, 4.0, 4.0, 4.0]),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_warms_up_and_decays(schedule: str, base: Path, tmp_path: Path):
    settings, lrs = SCHEDULES[schedule]
    run = Run(tmp_path / "run").start(base, {"optimizer": settings})
    assert [row["lr"] for row in run.rows()] == pytest.approx(lrs)
    assert [call.lr for call in run.policies[0].calls if call.verb == "optim_step"] == pytest.approx(lrs)
    check_by_hand(run, lrs)


def test_all_log_probabilities_are_at_the_temperature_of_sampling(plain: Run):
    calls = plain.policies[0].calls
    scored = [call for call in calls if call.verb in ("logprobs", "forward_backward")]
    assert {call.temperature for call in scored} == {0.7}
    # Twelve answers a rollout, by the policy and by the reference, before the two steps on them.
    rollout = ["logprobs", "logprobs", "forward_backward", "optim_step", "forward_backward", "optim_step"]
    verbs = [call.verb for call in calls]
    assert verbs == ["refresh_reference", *rollout, *rollout, "refresh_reference", *rollout]
    assert [(call.reference, len(call.documents)) for call in calls if call.verb == "logprobs"] == (
        [(False, 12), (True, 12)] * 3
    )


def test_mini_batches_are_drawn_at_random_anew_in_every_rollout(plain: Run):
    drawn = []
    for version, rollout in plain.engines.rollouts().items():
        answers = [a.request.prompt.token_ids + c.token_ids for a in rollout for c in a.answers]
        first = [call for call in plain.policies[0].calls if call.verb == "forward_backward"][version]
        drawn.append([answers.index(d.token_ids) for d in first.documents])
    assert len({tuple(sorted(places)) for places in drawn}) == 3
    assert all(places != sorted(places) for places in drawn)


def test_without_a_kl_term_there_is_no_reference(base: Path, tmp_path: Path):
    run = Run(tmp_path / "run").start(base, {"objective": {"kl_coef": 0.0}, "num_steps": 4})
    calls = run.policies[0].calls
    assert not [call for call in calls if call.reference or call.verb == "refresh_reference"]
    assert not any(
        "ref_logp" in d.fields for call in calls if call.verb == "forward_backward" for d in call.documents
    )


def test_the_policy_is_built_as_the_config_says(plain: Run, base: Path, tmp_path: Path):
    built = plain.policies[0].settings
    assert (built["mtp"], built["expert_bias_rate"], built["seed"]) == ("off", 0.0, 0)  # frozen
    assert (built["optimizer"], built["batch"]) == (plain.config.optimizer, plain.config.batch)
    objective = {"mtp": "detached", "mtp_loss_weight": 0.03, "expert_bias": "update", "expert_bias_rate": 0.02}
    run = Run(tmp_path / "run").start(base, {"objective": objective, "num_steps": 2, "seed": 5})
    built = run.policies[0].settings
    assert (built["mtp"], built["mtp_loss_weight"]) == ("detached", 0.03)
    assert (built["expert_bias_rate"], built["seed"]) == (0.02, 5)
    assert run.engines.options[0]["seed"] == 5
    give = run.engines.options[0]["give"]  # it takes a server that a chain has kept
    assert isinstance(give, GiveFolder) and give._verify == 20


def test_what_a_rollout_looked_like(plain: Run):
    """Of twelve answers (recording_engine.GROUPS) two are right, one is right without the format, two are cut."""
    for row in plain.rows():
        assert row["reward/total"] == pytest.approx((2 * 1.25 + 7 * 0.25 + 1.0) / 12)
        assert (row["reward/accuracy"], row["reward/format"]) == (3 / 12, 9 / 12)
        assert row["response_length/truncated"] == pytest.approx(2 / 12)
        assert (row["response_length/max"], row["groups/constant"]) == (8, pytest.approx(1 / 3))
        assert row["mismatch/max"] < 1e-6 and row["mismatch/answers_after_tie"] == 0


@pytest.mark.parametrize("stopped_at", [None, 3])
def test_a_run_bounded_by_time_ends_after_the_rollout_in_which_it_is_up(
    stopped_at: int | None, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A rollout takes 5 s, its log-probabilities 1 and each of its two steps 1, of 9: the second one's first step is
    past the end, and its last one is taken all the same. Stopped in the midst of it and resumed, it is so as well."""

    def always(seconds: float) -> type[Stopwatch]:
        return type("Always", (Stopwatch,), {"__exit__": lambda self, *_: setattr(self, "seconds", seconds)})

    monkeypatch.setattr("r1mega.stages.grpo.Stopwatch", always(1.0))
    monkeypatch.setattr("r1mega.rollout.collect.Stopwatch", always(5.0))
    changes = {"max_seconds": 9.0, "optimizer": {"lr": 4.0, "schedule": "linear", "min_lr_ratio": 0.1}}
    run = Run(tmp_path / "run")
    if stopped_at is not None:
        with pytest.raises(Interrupted):
            run.start(base, changes, after_step=lambda taken: stop_signal() if taken == stopped_at else None)
    run.start(base, changes, resume=stopped_at is not None)
    rows = run.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    left = [9 / 9, 2 / 9, 1 / 9, 0.0]  # of the time, before each step
    assert [row["lr"] for row in rows] == pytest.approx([4.0 * (0.1 + 0.9 * share) for share in left])
    assert [row["step"] for row in run.rows("eval")] == [0, 2, 4]
    assert [row["step"] for row in run.rows("eval_greedy")] == [0, 4]
    assert json.loads((tmp_path / "run/summary.json").read_text())["seconds"] == 16.0


def test_what_counts_from_the_last_step_is_refused_where_time_ends_the_run(base: Path):
    settings = config(base, {"rewards": {"accuracy": 1.0, "format": {"weight": 0.25, "last_steps": 2}}})
    (fault,) = settings.model_copy(update={"max_seconds": 9.0}).faults()
    assert fault.startswith("max_seconds: rewards.format.last_steps counts from the run's last step")
