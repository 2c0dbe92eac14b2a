"""The engine over a journal: what is replayed, what is asked anew, and whose answers count."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from journal_data import (
    PARAMS,
    CountingEngine,
    bits,
    completions,
    counted,
    entry,
    key,
    policies_of,
    reopened,
    request,
)

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import RunDirError
from r1mega.rollout.engine import Request
from r1mega.rollout.journal import Journal
from r1mega.rollout.replay import Comparison, JournalledEngine, open_journal
from r1mega.rollout.segment import tokens_digest
from r1mega.runtime.provenance import Lineage
from r1mega.samples import Completion, FinishReason, Prompt


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal") as journal:
        yield journal


def generate(
    journal: Journal,
    engine: CountingEngine,
    num: int,
    replay: Any = "journal",
    version: int = 3,
    policies: Any = policies_of,
) -> tuple[JournalledEngine, list[tuple[Completion, ...]], dict[int, Any], list[int]]:
    """Engine, answers, answers as they arrived, and the versions that the inner engine was asked at."""
    arrived = dict[int, Any]()
    journalled = JournalledEngine(engine, journal, policies=policies, replay=replay)
    answers = journalled.generate(
        [request(i) for i in range(num)], PARAMS, version=version, on_answer=arrived.setdefault
    )
    return journalled, answers, arrived, engine.versions


def test_only_what_is_missing_is_asked_for(journal: Journal) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate(journal, CountingEngine(dies_after=5), 8)
    assert journal.state() == counted(v3=5)
    first = CountingEngine()
    engine, answers, arrived, pushed = generate(reopened(journal), first, 8)
    assert len(first.asked) == 3 and (engine.replayed, engine.sampled) == (5, 3) and pushed == [3]
    assert [bits(a) for a in answers] == [bits(completions(i)) for i in range(8)]
    assert [arrived[i] for i in range(8)] == answers
    assert engine.comparison == Comparison()


def test_a_journalled_rollout_needs_no_server(journal: Journal) -> None:
    _, before, _, pushed = generate(journal, CountingEngine(), 8)
    assert pushed == [3]
    again = CountingEngine(salt=1)
    engine, after, arrived, pushed = generate(journal, again, 8)
    assert after == before and not again.asked and not pushed
    assert (engine.replayed, engine.sampled, len(arrived)) == (8, 0, 8)
    other = CountingEngine()
    generate(journal, other, 8, version=4)  # other weights are other requests
    assert len(other.asked) == 8


def test_live_compares_and_replaces(journal: Journal) -> None:
    generate(journal, CountingEngine(), 4)
    same, answers, _, pushed = generate(journal, CountingEngine(), 6, "live")
    assert same.comparison == Comparison(answers=8, identical_answers=8, tokens=32, equal_tokens=32)
    assert (same.replayed, same.sampled) == (0, 6) and pushed == [3] and len(answers) == 6
    other, answers, _, _ = generate(journal, CountingEngine(salt=1), 6, "live")
    assert (other.comparison.answers, other.comparison.tokens) == (12, 48)
    assert other.comparison.identical_answers == 0 and other.comparison.equal_tokens < 5
    with reopened(journal) as again:
        assert [entry(again, i) for i in range(6)] == answers == [completions(i, salt=1) for i in range(6)]


def test_equal_tokens_end_at_the_first_difference() -> None:
    def answer(*ids: int) -> Completion:
        return Completion("p", 0, Int32s(ids), Float32s.repeated(-1.0, len(ids)), "", FinishReason.STOP, 0, 0)

    comparison = Comparison()
    comparison.add(answer(1, 2, 3, 4), answer(1, 2, 9, 4))
    comparison.add(answer(1, 2), answer(1, 2))
    comparison.add(answer(5, 6, 7), answer(5, 6))
    assert comparison == Comparison(answers=3, identical_answers=1, tokens=9, equal_tokens=6)


def test_nothing_asked(journal: Journal) -> None:
    _, answers, _, pushed = generate(journal, CountingEngine(), 0)
    assert answers == [] and not pushed


# ---- other questions, other weights, other forms ------------------------------------------------------------

MINE = Lineage("start", "recipe", ("run",))


def ask(journal: Journal, requests: list[Request], of: Lineage = MINE, version: int = 0, salt: int = 1) -> Any:
    """The engine afterwards, and which prompts it had to sample."""
    inner = CountingEngine(salt)
    engine = JournalledEngine(inner, journal, policies=of.policies, replay="journal")
    engine.generate(requests, PARAMS, version=version)
    return engine, sorted(inner.asked)


def other_tokens(r: Request) -> Request:
    return dataclasses.replace(r, prompt=dataclasses.replace(r.prompt, token_ids=r.prompt.token_ids + Int32s([7])))


def test_other_tokens_under_the_same_ids_are_asked_anew(journal: Journal, caplog: pytest.LogCaptureFixture):
    """Another template: the same questions, ids and seeds."""
    ask(journal, [request(i) for i in range(4)])
    with caplog.at_level(logging.WARNING):
        engine, asked = ask(journal, [request(0), *(other_tokens(request(i)) for i in (1, 2, 3))])
    assert asked == ["p1", "p2", "p3"] and (engine.replayed, engine.stale) == (1, 3)
    assert "step 0: 3 journalled answers are of other prompts or weights than are asked now" in caplog.text
    again, asked = ask(journal, [request(i) for i in range(4)])  # both are kept, each under what it answers
    assert (asked, again.stale) == ([], 0)


def test_the_same_tokens_are_answered_whatever_their_id(journal: Journal):
    ask(journal, [request(1)])
    inner = CountingEngine()
    engine = JournalledEngine(inner, journal, policies=MINE.policies, replay="journal")
    renamed = dataclasses.replace(request(1), prompt=Prompt("another id", "task", "question", "truth", Int32s([1])))
    ((first, second),) = engine.generate([renamed], PARAMS, version=0)
    assert not inner.asked and (first.prompt_id, second.prompt_id) == ("another id", "another id")
    assert first.token_ids == completions(1, 0, salt=1)[0].token_ids


def test_the_digest_of_tokens_is_of_their_values_and_order():
    """Against XXH3-128 of the bytes, written out."""
    import xxhash

    packed = b"\x05" + bytes(7) + b"\x00\x01" + bytes(6)
    assert tokens_digest((5, 256)) == xxhash.xxh3_128_hexdigest(packed)
    assert len({tokens_digest(ids) for ids in ((), (0,), (1, 2), (2, 1), (12,), (1, 2, 0))}) == 6


@pytest.mark.parametrize(
    ("other", "version", "replayed"),
    [
        (Lineage("start", "recipe", ("run",)), 4, 3),
        (Lineage("start", "recipe", ("new", "run")), 4, 3),  # a copy, or a run that repeats it
        (Lineage("start", "recipe", ("new",)), 4, 0),  # the same step of another run is another policy
        (Lineage("start", "another", ("run",)), 4, 0),
        (Lineage("weights", "recipe", ("run",)), 4, 0),  # other weights in the same folder
        (Lineage("start", "another", ("new",)), 0, 3),  # before training the policy is the model itself
        (Lineage("weights", "recipe", ("run",)), 0, 0),
    ],
)
def test_answers_count_for_the_policy_that_gave_them(journal: Journal, other: Lineage, version: int, replayed: int):
    ask(journal, [request(i) for i in range(3)], version=version)
    engine, asked = ask(journal, [request(i) for i in range(3)], of=other, version=version)
    assert (engine.replayed, engine.stale, len(asked)) == (replayed, 3 - replayed, 3 - replayed)


def test_other_settings_are_other_requests_and_not_stale(journal: Journal):
    ask(journal, [request(0)])
    for changed in ({"temperature": 0.8}, {"max_new_tokens": 5}, {"top_p": 0.9}, {"stop": ("4",)}):
        inner = CountingEngine()
        engine = JournalledEngine(inner, journal, policies=MINE.policies, replay="journal")
        engine.generate([request(0)], dataclasses.replace(PARAMS, **changed), version=0)
        assert inner.asked == ["p0"] and engine.stale == 0


def test_what_follows_a_gap_is_dropped(journal: Journal, caplog: pytest.LogCaptureFixture):
    """A line of step 4 is gone: what is sampled in its place may lead elsewhere than to the later steps' weights."""
    for version in (0, 4, 8):
        ask(journal, [request(i) for i in range(3)], version=version)
    file = journal.folder / "version_4.jsonl"
    journal.close()
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    with Journal(journal.folder) as again, caplog.at_level(logging.WARNING):
        _, asked = ask(again, [request(i) for i in range(3)], version=0)
        assert not asked
        _, asked = ask(again, [request(i) for i in range(3)], version=4)
        assert len(asked) == 1
        assert "journal: 3 answers of the weights after step 4 dropped" in caplog.text
        _, asked = ask(again, [request(i) for i in range(3)], version=8)
        assert len(asked) == 3


def test_after_other_answers_to_a_step_the_old_ones_to_later_steps_do_not_count(journal: Journal):
    for version in (0, 4, 8):
        ask(journal, [request(i) for i in range(3)], version=version)
    live = JournalledEngine(CountingEngine(salt=9), journal, policies=MINE.policies, replay="live")
    for version in (0, 4):
        live.generate([request(i) for i in range(3)], PARAMS, version=version)
        assert live.comparison.answers == 6  # the old ones are there to compare with
    with reopened(journal) as again:
        _, asked = ask(again, [request(i) for i in range(3)], version=4)
        assert not asked
        _, asked = ask(again, [request(i) for i in range(3)], version=8)
        assert len(asked) == 3


def test_a_checkpoint_counts_no_answers_of_later_weights(journal: Journal):
    for version in (0, 4, 8):
        ask(journal, [request(1)], version=version)
    state = journal.state(through=4)
    assert state == counted(v0=1, v4=1)
    journal.drop_after(4)
    journal.check(state)


def older(folder: Path, form: int) -> Path:
    """A journal as an older version wrote it: 3 answers, of weights 0 and 3."""
    folder.mkdir()
    answer = {"ids": [1], "logp": [-0.5], "finish": "stop", "text": "4"}
    old = {"weight_version": 3, "prompt": "p1", "seed": 10, "n": 1, "temperature": 0.7, "max_new_tokens": 4}
    old |= {"policy": "p"} if form > 1 else {}
    (folder / "version_3.jsonl").write_text(2 * (json.dumps({**old, "answers": [answer]}) + "\n"))
    (folder / "version_0.jsonl").write_text(json.dumps({**old, "answers": [answer]}) + "\n")
    if form == 1:
        (folder / "model.json").write_text("{}")
    else:
        (folder / "about.json").write_text(json.dumps({"format": form, **MINE.record(), "resampled": 3}))
    return folder


@pytest.mark.parametrize("form", [1, 2])
def test_a_journal_of_an_older_form_is_set_aside_by_choice_and_said(
    form: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    folder = older(tmp_path / "journal", form)
    with caplog.at_level(logging.WARNING), Journal(folder, set_older_aside=True) as journal:
        assert journal.state() == counted() and entry(journal, 1) is None and journal.lineage is None
        journal.check({"format": form, "entries": {"3": 2}})  # what its checkpoints counted is no loss
        journal.add(key(1), completions(1))
    assert (
        "3 answers journalled by an older version do not say all of what was asked: set aside in form_" in caplog.text
    )
    aside = ["model.json"] if form == 1 else []
    assert sorted(p.name for p in (folder / f"form_{form}").iterdir()) == [
        *aside, "version_0.jsonl", "version_3.jsonl",
    ]  # fmt: skip
    caplog.clear()
    with Journal(folder) as journal:
        assert entry(journal, 1) == completions(1)
    assert not caplog.text


@pytest.mark.parametrize("form", [1, 2])
def test_a_journal_of_an_older_form_is_refused_without_that_choice(form: int, tmp_path: Path):
    folder = older(tmp_path / "journal", form)
    before = {p: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}
    with pytest.raises(
        RunDirError, match=rf"a journal of form {form}, .*form 3: .*sample its answers anew with --set"
    ):
        Journal(folder)
    assert {p: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"} == before


def test_an_older_form_that_holds_nothing_is_no_reason_to_refuse(tmp_path: Path):
    (tmp_path / "about.json").write_text('{"format": 2}')
    with Journal(tmp_path) as journal:
        assert journal.state() == counted()


def test_a_journal_of_a_newer_form_is_refused(tmp_path: Path):
    Journal(tmp_path).close()
    (tmp_path / "about.json").write_text('{"format": 4}')
    for aside in (False, True):
        with pytest.raises(
            RunDirError, match=r"a journal of form 4, this version reads form 3: continue.*--run-dir$"
        ):
            Journal(tmp_path, set_older_aside=aside)


def test_files_that_are_no_weights_version_are_left_alone(journal: Journal):
    for name in (
        "version_backup.jsonl",
        "version_3.jsonl.bak",
        "version_03.jsonl",
        "version_\u0663.jsonl",
        "notes.txt",
    ):
        (journal.folder / name).write_text("a user's own\n")
    journal.add(key(1), completions(1))
    with reopened(journal) as again:
        assert again.state() == counted(v3=1) and again.newest_version() == 3
        again.prune(9)
        again.drop_after(-1)
    assert sorted(p.name for p in journal.folder.iterdir() if "own" in p.read_text()) == sorted(
        ["version_backup.jsonl", "version_3.jsonl.bak", "version_03.jsonl", "version_\u0663.jsonl", "notes.txt"]
    )


class Repeats:
    """A run directory, as far as a journal is taken over by it."""

    def __init__(self, path: Path, lineage: Lineage) -> None:
        self.path, self.lineage = path, lineage

    def repeat(self, other: Lineage) -> None:
        more = tuple(run for run in other.runs if run not in self.lineage.runs)
        self.lineage = dataclasses.replace(self.lineage, runs=(*self.lineage.runs, *more))


def test_a_copied_journal_is_repeated_by_a_run_that_does_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def taken_over(*of: Any) -> tuple[Any, Journal]:
        run: Any = Repeats(tmp_path, Lineage(*of))
        return run, open_journal(run, "journal")

    first, journal = taken_over("start", "recipe", ("run",))
    with journal:
        ask(journal, [request(i) for i in range(3)], of=first.lineage, version=4)
    second, journal = taken_over("start", "recipe", ("second",))
    with journal:
        assert second.lineage.runs == ("second", "run") and journal.lineage == second.lineage
        _, asked = ask(journal, [request(i) for i in range(3)], of=second.lineage, version=4)
        assert not asked and not caplog.text
    with caplog.at_level(logging.WARNING):
        third, journal = taken_over("start", "another recipe", ("third",))
    with journal:
        assert third.lineage.runs == ("third",) and journal.lineage == third.lineage
        assert "holds 3 answers of a run of another config" in caplog.text
        _, asked = ask(journal, [request(i) for i in range(3)], of=third.lineage, version=4)
        assert len(asked) == 3
