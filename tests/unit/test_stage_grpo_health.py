"""Steps of RL whose numbers are wrong, on the loop of `grpo_run`: one question's answers spoil the gradient.

Whatever the run is started again with, the question does the same, so that what was decided must be remembered.
"""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_run import SUMS, Run, base

from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import DivergenceError, RolledBackError
from r1mega.runtime import events
from r1mega.samples import Document

__all__ = ["base"]  # a fixture

MANY = {"questions": [{**SUMS, "num": 9}], "num_steps": 10, "rollout": {"keep_journal": False}}
"""Five rollouts of three of nine questions, two steps each."""


class Spoilt(Run):
    """A run in which the answers to one question make a gradient that is no number."""

    bad: tuple[int, ...] = ()
    """The question's tokens."""
    thetas: list[torch.Tensor]
    """After each step of all parts."""

    def begin(
        self, base: Path, action: str, *, resume: bool = False, die_after: int = -1, saved: int = 2
    ) -> "Spoilt":
        """die_after: steps of this part, after which it ends with an error of nobody's."""
        self.thetas = getattr(self, "thetas", [])

        def damage(documents: Sequence[Document], gradient: torch.Tensor) -> None:
            if self.bad and any(tuple(d.token_ids[: len(self.bad)]) == self.bad for d in documents):
                gradient[3] = math.nan

        def after_step(taken: int) -> None:
            self.thetas.append(self.policies[-1].theta.clone())
            if taken == die_after:
                raise ZeroDivisionError

        changes = {**MANY, "health": {"non_finite": action}, "save": {"every_steps": saved}}
        self.start(base, changes, resume=resume, damage=damage, after_step=after_step)
        return self

    def launched(self, base: Path, action: str, *, die_in: tuple[int, int] = (-1, -1)) -> "Spoilt":
        """Started again as long as it asks for that; die_in: a start, and after how many of its steps it dies."""
        for part in range(9):
            try:
                return self.begin(base, action, resume=part > 0, die_after=die_in[1] if part == die_in[0] else -1)
            except (RolledBackError, ZeroDivisionError):
                pass
        raise AssertionError("it has been started nine times")

    def figures(self) -> list[dict[str, Any]]:
        left_out = ("seconds/", "push/", "rollout/replayed")
        return [{k: v for k, v in row.items() if not k.startswith(left_out)} for row in self.rows()]

    def incidents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "incidents.jsonl").read_text().splitlines()]

    def asked(self) -> list[tuple[int, list[str]]]:
        """The questions of each rollout in the order in which they were asked, with the weights' version."""
        found: list[tuple[int, list[str]]] = []
        for asked in self.engines.asked:
            if len(asked.answers) == 4:  # objective.group_size
                if not found or found[-1][0] != asked.version or len(found[-1][1]) == 3:
                    found.append((asked.version, []))
                found[-1][1].append(asked.request.prompt.id)
        return found


@pytest.fixture(scope="module")
def bad(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tuple[int, ...]]:
    """A question of the second rollout: its id and its tokens."""
    run = Spoilt(tmp_path_factory.mktemp("plain") / "run").begin(base, "stop")
    prompt = run.engines.rollouts()[2][0].request.prompt
    return prompt.id, tuple(prompt.token_ids)


def spoilt(folder: Path, bad: tuple[str, tuple[int, ...]]) -> Spoilt:
    run = Spoilt(folder)
    run.bad = bad[1]
    return run


def test_the_run_stops_with_the_questions_and_where_the_answers_are(base: Path, tmp_path: Path, bad: Any):
    run = spoilt(tmp_path / "run", bad)
    with pytest.raises(DivergenceError) as stopped:
        run.begin(base, "stop")
    step = len(run.rows()) + 1
    assert step in (3, 4) and f"step {step}: loss " in str(stopped.value) and bad[0] in str(stopped.value)
    rows = [json.loads(line) for line in (run.folder / f"incidents/step_{step}.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and bad[0] in {row["question"] for row in rows}  # three questions x four, in two steps
    learnt = [call.documents for call in run.policies[0].calls if call.verb == "forward_backward"][-1]
    decode = load_tokenizer(base).decode
    answers = [decode([i for a, b in d.target_spans for i in d.token_ids[a:b]]) for d in learnt]
    assert [row["answer"] for row in rows] == answers and all(row["asked"] for row in rows)


def test_a_skipped_step_leaves_the_weights_that_the_next_rollout_is_sampled_with(base: Path, tmp_path: Path, bad):
    run = spoilt(tmp_path / "run", bad).begin(base, "skip")
    skipped = [row["step"] for row in run.rows() if row.get("skipped")]
    assert skipped and len(run.rows()) == 10
    for step in range(2, 11):
        assert torch.equal(run.thetas[step - 1], run.thetas[step - 2]) == (step in skipped)
    assert [(e.kind, e.step) for e in events.read(run.folder)] == [("skipped-step", step) for step in skipped]
    assert json.loads((run.folder / "summary.json").read_text())["incidents"] == {"steps skipped": len(skipped)}


def test_questions_that_were_dropped_are_not_asked_again(base: Path, tmp_path: Path, bad: Any):
    whole = spoilt(tmp_path / "whole", bad).begin(base, "drop_data")
    first, *more = whole.incidents()
    assert first["step"] in (3, 4) and bad[0] in first["data"]
    dropped = {name for row in (first, *more) for name in row["data"]}
    assert 1 <= len(dropped) <= 3
    later = {id for version, ids in whole.asked() if version >= 4 for id in ids}
    assert not dropped & later and all(len(set(ids)) == 3 for _, ids in whole.asked())
    # Killed in the rollout after it, and in the middle of its own.
    for steps in (5, first["step"]):
        run = spoilt(tmp_path / f"killed_{steps}", bad).launched(base, "drop_data", die_in=(0, steps))
        assert run.figures() == whole.figures() and run.incidents() == whole.incidents()


def test_a_run_goes_back_to_where_a_rollout_began_and_asks_others(base: Path, tmp_path: Path, bad: Any):
    run = spoilt(tmp_path / "run", bad).launched(base, "roll_back")
    plain = [ids for _, ids in Spoilt(tmp_path / "plain").begin(base, "stop").asked()]
    first = run.incidents()[0]
    assert (first["to"], first["passed"]) == (2, first["step"] - 2)
    asked = dict[int, list[str]]()
    for version, ids in run.asked():
        asked[version] = ids  # the last time
    assert run.asked()[:2] == [(0, plain[0]), (2, plain[1])]
    assert asked[2] == plain[2]  # what the second rollout had asked is passed over
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, 11)) and not any(row.get("skipped") for row in rows)
    kinds = [event.kind for event in events.read(run.folder)]
    assert kinds == ["rolled-back"] * len(run.incidents())
    # Killed where it has gone back, before there is another checkpoint.
    again = spoilt(tmp_path / "again", bad).launched(base, "roll_back", die_in=(1, 1))
    assert again.figures() == run.figures() and again.incidents() == run.incidents()


def test_answers_of_weights_that_the_run_has_left_are_not_taken_for_the_new_ones(base: Path, tmp_path: Path, bad):
    """Without a checkpoint the run goes back to its beginning, over two rollouts."""
    run = spoilt(tmp_path / "run", bad)
    with pytest.raises(RolledBackError, match="goes back to step 0 and passes over the data of"):
        run.begin(base, "roll_back", saved=4)
    assert [file.name for file in (run.folder / "journal").glob("version_*.jsonl")] == ["version_0.jsonl"]
    with contextlib.suppress(RolledBackError):  # the question comes again in the next epoch
        run.begin(base, "roll_back", saved=4, resume=True)
    (plain_0, plain_2, *_), asked = (r.asked() for r in (Spoilt(tmp_path / "p").begin(base, "stop"), run))
    assert asked[:2] == [plain_0, plain_2] and asked[2][0] == 0  # at the first weights again, others
    assert not {*asked[2][1]} & {*plain_0[1], *plain_2[1]}
