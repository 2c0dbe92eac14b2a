"""What an RL run asks its engine: how many answers, how warm, with which seeds, and what again when it resumes."""

import dataclasses
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpo_run import CLUSTER, SUMS, Run, base, config, plain
from recording import stop_signal
from recording_engine import Asked, Engines

from r1mega.config.cluster import Cluster
from r1mega.errors import MismatchError, RolloutError, RunDirError
from r1mega.rollout.engine import SamplingParams
from r1mega.runtime.interrupt import Interrupted
from r1mega.weights.verify import Result

__all__ = ["base", "plain"]  # fixtures

MANY = {"questions": [{**SUMS, "num": 9}]}
"""Each rollout then asks other questions."""


def seeds(asked: list[Asked]) -> list[int]:
    """Of every answer: request's + i."""
    return [a.request.seed + i for a in asked for i in range(a.request.n)]


def figures(run: Run) -> list[dict[str, Any]]:
    """All lines but for times and for what was replayed."""
    rows = [row for kind in ("train", "eval", "eval_greedy") for row in run.rows(kind)]
    return [{k: v for k, v in row.items() if "seconds" not in k and "replay" not in k} for row in rows]


def keyed(asked: list[Asked]) -> list[tuple[Any, ...]]:
    return sorted(
        (a.version, a.request.prompt.id, a.request.seed, a.request.n, *dataclasses.astuple(a.params)) for a in asked
    )


def test_every_setting_of_sampling_reaches_the_engine(base: Path, tmp_path: Path):
    """In rollouts and in evaluations; greedily as well, all but the temperature."""
    settings = {"temperature": 0.6, "max_new_tokens": 9, "stop": ["</answer>", "\n\n"]}
    run = Run(tmp_path / "run").start(base, {"sampling": settings, "num_steps": 2})
    warm = SamplingParams(temperature=0.6, max_new_tokens=9, stop=("</answer>", "\n\n"))
    assert {a.params for asked in run.engines.rollouts().values() for a in asked} == {warm}
    cold = SamplingParams(temperature=0.0, max_new_tokens=9, stop=("</answer>", "\n\n"))
    assert {a.params for asked in run.engines.evaluations().values() for a in asked} == {warm, cold}


def test_every_answer_to_learn_from_is_drawn_with_a_seed_of_its_own(plain: Run, base: Path, tmp_path: Path):
    rollouts = plain.engines.rollouts()
    assert sorted(rollouts) == [0, 2, 4]
    for asked in rollouts.values():
        # Three questions and no more, so that every rollout asks the same ones.
        assert len({a.request.prompt.id for a in asked}) == 3
        assert {(a.params.temperature, a.params.max_new_tokens, a.request.n) for a in asked} == {(0.7, 8, 4)}
    used = seeds([a for asked in rollouts.values() for a in asked])
    assert len(set(used)) == len(used) == 36
    assert len({answer.token_ids for asked in rollouts.values() for a in asked for answer in a.answers}) == 36
    other = Run(tmp_path / "run").start(base, {"seed": 1, "num_steps": 2})
    assert not set(used) & set(seeds(other.engines.asked))
    # Held-out questions are the same ones, drawn with seeds of the other run's own.
    asked, theirs = plain.engines.evaluations()[0], other.engines.evaluations()[0]
    assert {a.request.prompt.id for a in asked} == {a.request.prompt.id for a in theirs}
    assert not set(seeds(asked)) & set(seeds(theirs))


def test_evaluations_ask_held_out_questions_with_the_same_seeds_every_time(plain: Run):
    evaluations = plain.engines.evaluations()
    assert sorted(evaluations) == [0, 2, 4, 6]
    trained_on = {a.request.prompt.question for asked in plain.engines.rollouts().values() for a in asked}
    sampled = {}
    for version, asked in evaluations.items():
        at = {t: [a for a in asked if a.params.temperature == t] for t in (0.7, 0.0)}
        sampled[version] = [(a.request.prompt.id, a.request.seed, a.request.n) for a in at[0.7]]
        assert sampled[version] == sampled[0] and {n for _, _, n in sampled[version]} == {3}
        assert len(set(seeds(at[0.7]))) == 6  # two questions, each with a range of its own
        # Greedily the first and the last weights alone, once a question.
        assert [a.request.n for a in at[0.0]] == ([1, 1] if version in (0, 6) else [])
        assert not trained_on & {a.request.prompt.question for a in asked}
        assert {a.params.max_new_tokens for a in asked} == {8}


def test_evaluations_fall_due(plain: Run, base: Path, tmp_path: Path):
    assert [row["step"] for row in plain.rows("eval")] == [0, 2, 4, 6]
    assert [row["step"] for row in plain.rows("eval_greedy")] == [0, 6]
    # Right, wrong and bare to the first question, wrong three times to the second.
    for row in plain.rows("eval"):
        assert (row["eval/strict"], row["eval/lenient"]) == (pytest.approx(1 / 6), pytest.approx(2 / 6))
    assert [row["eval/strict"] for row in plain.rows("eval_greedy")] == [0.5, 0.5]
    seldom = {"questions": [{**SUMS, "num": 4}], "samples_per_question": 2, "every_steps": 4, "seed": 3}
    run = Run(tmp_path / "run").start(base, {"evaluation": seldom})
    assert [row["step"] for row in run.rows("eval")] == [0, 4, 6]  # every four steps, and the last weights
    assert {row["result"]["num_answers"] for row in run.rows("eval")} == {8}
    asked = {a.request.prompt.id for a in run.engines.evaluations()[0]}
    assert asked != {a.request.prompt.id for a in plain.engines.evaluations()[0]}  # evaluation.seed


def test_the_server_has_room_for_the_longest_prompt_and_answer(plain: Run, base: Path):
    (made,) = plain.engines.options
    longest = max(len(a.request.prompt.token_ids) for a in plain.engines.asked)
    assert (made["model_dir"], made["max_model_len"], made["seed"]) == (base, longest + 8, 0)


@pytest.mark.parametrize(
    ("replay", "newest", "starts"),
    [("journal", -1, True), ("journal", 1, True), ("journal", 2, False), ("journal", 3, False), ("live", 3, True)],
)
def test_the_server_starts_at_once_unless_the_journal_goes_on(replay: str, newest: int, starts: bool, base: Path):
    """A run that resumes at step 2; `newest`: the newest weights of which the journal has answers."""
    from r1mega.stages.rank_zero import RankZero

    started: list[Any] = []
    server: Any = SimpleNamespace(start=lambda: started.append(1))
    questions: Any = SimpleNamespace(longest=5)
    journal: Any = SimpleNamespace(newest_version=lambda: newest)
    recipe = config(base, {"rollout": {"replay": replay}})
    run_dir, nothing = SimpleNamespace(logs=base), SimpleNamespace(at_once=None)
    part = RankZero(questions, journal, nothing)  # type: ignore[arg-type]
    found = part.served(lambda *_, **__: server, recipe, CLUSTER, run_dir, nothing, step=2)  # type: ignore[arg-type]
    assert found is server and bool(started) == starts


def test_servers_have_the_places_that_the_cluster_file_gives_them(base: Path):
    """On two GPUs behind the trainer's two, as servers of pushed weights."""
    from r1mega.stages.rank_zero import RankZero

    tables = {"gpus_per_node": 8, "trainer": {"dp": 2}, "rollout": {"servers": 2, "dtype": "bf16"}}
    machine, asked = Cluster.model_validate({"device": "cuda", **tables}), dict[str, Any]()
    journal: Any = SimpleNamespace(newest_version=lambda: 9)
    questions: Any = SimpleNamespace(longest=5)
    nothing, run_dir = (SimpleNamespace(at_once=None), SimpleNamespace(logs=base))
    part = RankZero(questions, journal, nothing)  # type: ignore[arg-type]

    def serve(*_: Any, **given: Any) -> Any:
        asked.update(given)
        return SimpleNamespace(start=lambda: None)

    part.served(serve, config(base, {}), machine, run_dir, nothing, step=2)  # type: ignore[arg-type]
    assert [(place.gpus, place.pushed) for place in asked["places"]] == [((2,), True), ((3,), True)]


def test_the_seconds_of_a_push_are_no_rollouts(base: Path, tmp_path: Path):
    """A rollout of no time to speak of, with a push of a thousand seconds that it has asked for, or an evaluation."""
    engines = Engines(push_seconds=1e3, proof=Result((), 2.0, 90, 1))
    seldom = {"num_steps": 4, "evaluation": {"every_steps": 4}}
    rows = {row["step"]: row for row in Run(tmp_path / "run", engines).start(base, seldom).rows()}
    assert (rows[1]["seconds/push"], rows[3]["seconds/push"]) == (0.0, 1e3)  # the first weights are evaluated before
    assert rows[1]["seconds/rollout"] > 0.0 > rows[3]["seconds/rollout"] > -1e3
    assert not {"seconds/push", "seconds/rollout"} & rows[2].keys()  # the lines add up to what was spent
    # Whose proof is told with the rollout after it.
    proven = {"push/verify_s": 2.0, "push/verified": 90, "push/verified_loaded": 1}
    assert proven.items() <= rows[1].items() and proven.items() <= rows[3].items()
    assert [options["verify"] for options in engines.pushing] == [CLUSTER.weights.verify] == [20]
    assert [(options["backend"], options["bucket_mib"]) for options in engines.pushing] == [("gloo", 1024)]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing stops."""
    return Run(tmp_path_factory.mktemp("whole") / "run").start(base, MANY)


@pytest.mark.parametrize("answered", [1, 5, 9, 11, 14, 16])
def test_a_run_stopped_while_it_samples_asks_for_the_rest(answered: int, whole: Run, base: Path, tmp_path: Path):
    """In the first evaluation, a rollout, a later evaluation, and between two answers of the second rollout."""
    run = Run(tmp_path / "run", Engines(stop_after=answered))
    with pytest.raises(Interrupted) as stopped:
        run.start(base, MANY)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert len(run.engines.asked) == answered
    run.start(base, MANY, resume=True)
    assert keyed(run.engines.asked) == keyed(whole.engines.asked)  # each request once, in one part or the other
    assert figures(run) == figures(whole)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_stopped_between_mini_batches_learns_from_the_rest(steps: int, whole: Run, base: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted):
        run.start(base, MANY, after_step=lambda taken: stop_signal() if taken == steps else None)
    assert [row["step"] for row in run.rows()] == list(range(1, steps + 1))
    run.start(base, MANY, resume=True)
    assert keyed(run.engines.asked) == keyed(whole.engines.asked)
    assert figures(run) == figures(whole)


def test_live_replay_asks_again_and_compares(base: Path, whole: Run, tmp_path: Path):
    run = Run(tmp_path / "run", Engines(stop_after=11))
    with pytest.raises(Interrupted):
        run.start(base, MANY)
    run.start(base, {**MANY, "rollout": {"replay": "live"}}, resume=True)
    assert len(run.engines.asked) == len(whole.engines.asked) + 2  # the two that were answered
    assert figures(run) == figures(whole)
    again = [len(c.token_ids) for a in run.engines.rollouts()[2][:2] for c in a.answers]
    rows = {row["step"]: row for row in run.rows()}
    assert rows[3]["replay/tokens"] == rows[3]["replay/equal_tokens"] == sum(again)
    assert "replay/tokens" not in rows[1]


def test_a_journal_of_an_older_version_is_refused_unless_everything_is_asked_anew(base: Path, tmp_path: Path):
    journal = tmp_path / "run/journal"
    journal.mkdir(parents=True)
    (journal / "about.json").write_text('{"format": 2}')
    (journal / "version_0.jsonl").write_text("{}\n")
    with pytest.raises(RunDirError, match=r'a journal of form 2.*rollout\.replay="live"'):
        Run(tmp_path / "run").start(base, {"num_steps": 2})
    run = Run(tmp_path / "run").start(base, {"num_steps": 2, "rollout": {"replay": "live"}})
    assert len(run.rows()) == 2 and (journal / "form_2/version_0.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(("keep", "left"), [(True, [0, 2, 4, 6]), (False, [4, 6])])
def test_answers_that_no_checkpoint_needs_are_removed_unless_kept(keep: bool, left: list[int], base, tmp_path: Path):
    run = Run(tmp_path / "run").start(base, {"rollout": {"keep_journal": keep}, "save": {"keep_last": 2}})
    names = [file.stem for file in (run.folder / "journal").glob("version_*.jsonl")]
    assert sorted(int(name.removeprefix("version_")) for name in names) == left


def test_an_engine_that_is_off_stops_the_run_unless_a_tie_stands_before_it(base: Path, tmp_path: Path):
    off = Engines(shift=1e-2)
    with pytest.raises(MismatchError, match=r"disagree on the log-probability of a sampled token by up to 0\.0"):
        Run(tmp_path / "run", off).start(base, {})
    with pytest.raises(MismatchError, match="in 12 of 12 answers"):
        Run(tmp_path / "tied", off).start(base, {}, margin=0.0)  # ties do not come that often
    wide = Run(tmp_path / "wide", off).start(base, {"num_steps": 2, "mismatch": {"max_abs": 2e-2}})
    assert 5e-3 < wide.rows()[0]["mismatch/max"] < 1e-2
    one = Engines(shift=1e-2, only=5)
    settings = {"num_steps": 2, "mismatch": {"tie_margin": 1e-4}}
    with pytest.raises(
        MismatchError, match=r"in 1 of 12 answers.*smallest lead 0\.001, mismatch\.tie_margin = 0\.0001"
    ):
        Run(tmp_path / "untied", one).start(base, settings, margin=1e-3)
    tied = Run(tmp_path / "one", Engines(shift=1e-2, only=5)).start(base, settings, margin=1e-5)
    assert [row["mismatch/answers_after_tie"] for row in tied.rows()] == [1, 1]
    assert tied.rows()[0]["mismatch/max_untied"] < 1e-6


def test_rollouts_that_leave_nothing_to_learn_from_end_the_run(base: Path, tmp_path: Path):
    changes = {**MANY, "objective": {"constant_groups": "drop"}}
    run = Run(tmp_path / "run", Engines(groups=[("wrong",) * 4]))
    with pytest.raises(RolloutError, match="step 0: 10 rollouts in a row left fewer usable answers than the 2"):
        run.start(base, changes)
    assert len({a.request.prompt.id for a in run.engines.rollouts()[0]}) == 9  # others were tried


def test_figures_are_of_all_answers_that_a_step_asked_for(base: Path, tmp_path: Path):
    """Three questions that no answer differs in are dropped; three others come in their place, one of them useful."""
    wrong = ("wrong",) * 4
    engines = Engines(groups=[wrong] * 5 + [("right", "wrong", "wrong", "cut")] + [wrong] * 5)  # two are held out
    changes = {**MANY, "objective": {"constant_groups": "drop"}, "num_steps": 2}
    (row, _) = Run(tmp_path / "run", engines).start(base, changes).rows()
    assert (row["rollout/answers"], row["rollout/learnt_from"], row["reward/scored"]) == (24, 4, 24)
    assert (row["reward/accuracy"], row["reward/format"]) == (pytest.approx(1 / 24), pytest.approx(23 / 24))
    assert (row["groups/constant"], row["response_length/truncated"]) == (pytest.approx(5 / 6), pytest.approx(1 / 24))
    samples = (tmp_path / "run/samples/step_0.jsonl").read_text().splitlines()
    assert len(samples) == 24


def test_the_seed_decides_in_which_order_a_files_questions_are_asked(base: Path, tmp_path: Path):
    rows = [{"task": "chain_sum", "question": f"{i} + {i} =", "truth": str(2 * i)} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    orders = []
    for seed in (0, 5):
        table = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "verifier_column": "task"}
        changes = {"questions": [table], "seed": seed, "num_steps": 2}
        run = Run(tmp_path / f"{seed}").start(base, changes)
        orders.append([a.request.prompt.question for a in run.engines.rollouts()[0]])
    assert len(orders[0]) == len(orders[1]) == 3 and orders[0] != orders[1]


SOURCES = [
    {**SUMS, "num": 6, "weight": 2},
    {
        **SUMS,
        "params": {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1},
        "num": 4,
        "domain": "logic",
    },
]


def test_a_runs_rollouts_follow_the_weights_of_their_sources_and_go_on_when_stopped(base: Path, tmp_path: Path):
    whole = Run(tmp_path / "whole").start(base, {"questions": SOURCES})
    asked = [[a.request.prompt for a in rollout] for rollout in whole.engines.rollouts().values()]
    assert [[p.source for p in prompts].count("chain_sum") for prompts in asked] == [2, 2, 2]  # of 3
    assert {p.domain for prompts in asked for p in prompts if p.source == "chain_sum_2"} == {"logic"}
    for row in whole.rows():
        assert row["share/source/chain_sum"] == row["share/domain/math"] == pytest.approx(2 / 3)
        both = 2 * row["reward/source/chain_sum"] + row["reward/source/chain_sum_2"]
        assert both / 3 == pytest.approx(row["reward/total"])
    run = Run(tmp_path / "run", Engines(stop_after=9))
    with pytest.raises(Interrupted):
        run.start(base, {"questions": SOURCES})
    run.start(base, {"questions": SOURCES}, resume=True)
    assert keyed(run.engines.asked) == keyed(whole.engines.asked) and figures(run) == figures(whole)
