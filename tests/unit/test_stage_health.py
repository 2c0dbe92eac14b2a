"""Steps whose numbers are wrong, in a run of SFT: by counting, killed, and resumed.

The policy is `recording`'s, whose steps are a matter of counting tokens. What is wrong is planted in its gradient,
whenever one conversation is among those that it learns from: so it comes again with the data, at whatever step, also
in a run that resumes. The stage, the skeleton and the decision are the real ones.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import recording
import torch
from recording import CONFIG, RecordingPolicy

from r1mega.config.cluster import Cluster
from r1mega.errors import DivergenceError, RolledBackError
from r1mega.recipe.sft import SFT
from r1mega.runtime import events
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document

CLUSTER = Cluster(device="cpu")
TURNS = [(f"{'a' * (i % 5)} {i} + 1", f"{i + 1}{' well' * (i % 4)}") for i in range(12)]
BAD = "7 + 1"
"""The question of the conversation that makes numbers wrong."""


@pytest.fixture(scope="module")
def base(mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"{asked}<|assistant|>{answer}" for asked, answer in TURNS]
    return recording.write_base(tmp_path_factory.mktemp("base") / "model", mesh, texts)


class Run:
    """One run of SFT, six steps in two epochs, and its resumed parts."""

    def __init__(self, base: Path, folder: Path, **changes: Any) -> None:
        from r1mega.data.tokenizer import load_tokenizer

        rows = folder.with_suffix(".jsonl")
        rows.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in TURNS))
        self.settings = {
            "stage": "sft", "model": {"path": str(base)}, "num_epochs": 2, "batch_size": 4, "optimizer": {"lr": 1.0},
            "data": {"files": [str(rows)], "max_tokens": 96}, "batch": {"chunk_tokens": 128},
            "save": {"every_steps": 2}, "wandb": {"mode": "disabled"}, **changes,
        }  # fmt: skip
        self.folder, self.policies = folder, list[RecordingPolicy]()
        self._tokenizer = load_tokenizer(base)

    def start(self, *, resume: bool = False, factor: float = math.nan, health: Any = None, **policy: Any) -> "Run":
        """factor: on one number of the gradient wherever the bad conversation is learnt from."""
        from r1mega.stages import sft

        stage: Any = sft
        config = SFT.model_validate(self.settings | ({"health": health} if health else {}))
        assert config.faults() == []

        def damage(documents: Sequence[Document], gradient: torch.Tensor) -> None:
            if any(BAD in text for text in map(self.text, documents)):
                gradient[5] = factor * (gradient[5] if math.isfinite(factor) else 1.0)

        def build(*arguments: Any, **settings: Any) -> RecordingPolicy:
            self.policies.append(RecordingPolicy(*arguments, **settings, damage=damage, **policy))
            return self.policies[-1]

        run_dir = RunDir(self.folder, config, CLUSTER, resume=resume)
        try:
            with recording.recorded_saves():
                stage.run(config, CLUSTER, run_dir, build=build)
        finally:
            run_dir.close()
        return self

    def launched(self, **options: Any) -> "Run":
        """Started again as long as it asks for that, as launchers do."""
        for restart in range(9):
            try:
                return self.start(resume=restart > 0, **options)
            except RolledBackError as error:
                assert error.exit_code == 75
        raise AssertionError("it has gone back nine times")

    def text(self, document: Document) -> str:
        return self._tokenizer.decode(list(document.token_ids))

    def learnt(self) -> list[tuple[Document, ...]]:
        """What each pass of all parts learnt from, in order."""
        return [call.documents for p in self.policies for call in p.calls if call.verb == "forward_backward"]

    def rows(self, kind: str = "train") -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if "seconds" not in k} for row in found if row["kind"] == kind]

    def events(self) -> list[tuple[str, int | None]]:
        return [(event.kind, event.step) for event in events.read(self.folder)]

    def final(self) -> torch.Tensor:
        return self.policies[-1].theta


def weights(steps: Sequence[tuple[Document, ...] | None], lr: float = 1.0) -> list[float]:
    """After these batches by counting; None: a step that changes nothing. The gradient of the mean of -log p(t) over
    targets is p(v) less v's share of them."""
    theta = [math.sin(v) for v in range(CONFIG["vocab_size"])]
    for documents in steps:
        if documents is not None:
            total = sum(map(math.exp, theta))
            targets = [i for d in documents for a, b in d.target_spans for i in d.token_ids[a:b]]
            shares = Counter(targets)
            theta = [x - lr * (math.exp(x) / total - shares[v] / len(targets)) for v, x in enumerate(theta)]
    return theta


def bad_steps(run: Run) -> list[int]:
    return [i for i, batch in enumerate(run.learnt()) if any(BAD in run.text(d) for d in batch)]


@pytest.fixture(scope="module")
def skipped(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(base, tmp_path_factory.mktemp("skip") / "run").start(health={"non_finite": "skip"})


def test_a_run_stops_before_the_update_and_says_what_it_learnt_from(base: Path, tmp_path: Path, skipped: Run):
    run = Run(base, tmp_path / "run")
    first = bad_steps(skipped)[0]
    with pytest.raises(DivergenceError) as stopped:
        run.start()
    assert not isinstance(stopped.value, RolledBackError)
    file = run.folder / f"incidents/step_{first + 1}.jsonl"
    said = str(stopped.value)
    assert f"step {first + 1}: loss " in said and "gradient norm nan" in said and str(file) in said
    texts = [json.loads(line) for line in file.read_text().splitlines()]
    assert [BAD in row["text"] for row in texts].count(True) == 1 and len(texts) == 4
    for row, document in zip(texts, run.learnt()[-1], strict=False):
        assert str(row["document"]) in said and row["tokens"] > 4
        assert document.token_ids in [d.token_ids for d in run.learnt()[-1]]
    lines = [int(row["row"].rpartition(" ")[2]) - 1 for row in texts]  # "FILE, line N"
    assert all(TURNS[i][0] in row["text"] for i, row in zip(lines, texts, strict=True))
    assert len(run.rows()) == first and [row["action"] for row in run.rows("incident")] == ["stop"]
    assert run.final().tolist() == pytest.approx(weights(run.learnt()[:first]), rel=1e-5, abs=1e-6)
    # The user goes on with another choice, from the last checkpoint.
    run.start(resume=True, health={"non_finite": "skip"})
    assert torch.equal(run.final(), skipped.final())


def test_a_skipped_step_changes_nothing_and_counts(skipped: Run):
    bad = bad_steps(skipped)
    assert len(bad) == 2 and bad[0] < 3 <= bad[1]  # once in each epoch
    expected = [None if i in bad else batch for i, batch in enumerate(skipped.learnt())]
    assert skipped.final().tolist() == pytest.approx(weights(expected), rel=1e-5, abs=1e-6)
    rows = skipped.rows()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [i for i, row in enumerate(rows) if row.get("skipped")] == bad
    assert [row["grad_norm"] is None for row in rows] == [i in bad for i in range(6)]  # JSON has no NaN
    told = [(row["step"], row["what"], row["action"]) for row in skipped.rows("incident")]
    assert told == [(i + 1, "non_finite", "skip") for i in bad]
    assert skipped.events() == [("skipped-step", i + 1) for i in bad]
    summary = json.loads((skipped.folder / "summary.json").read_text())
    assert summary["incidents"] == {"steps skipped": 2} and summary["steps"] == 6


@pytest.mark.parametrize(("action", "part", "steps"), [("skip", 1, 3), ("drop_data", 1, 1), ("roll_back", 2, 1)])
def test_a_killed_run_decides_the_same_again(action: str, part: int, steps: int, base: Path, tmp_path: Path):
    """part: which start dies, and after how many of its own steps; the second one of a roll-back is the one that has
    gone back."""

    class Killed(Exception):
        pass

    def kill(taken: int) -> None:
        if len(run.policies) == part and taken == steps:
            raise Killed

    whole = Run(base, tmp_path / "whole").launched(health={"non_finite": action})
    run, died = Run(base, tmp_path / "run"), 0
    for restart in range(9):
        try:
            run.start(resume=restart > 0, health={"non_finite": action}, after_step=kill)
            break
        except Killed:
            died += 1
        except RolledBackError:
            pass
    assert died == 1
    assert run.rows() == whole.rows() and torch.equal(run.final(), whole.final())
    for file in ("incidents.jsonl", "hf/model.safetensors"):
        assert (run.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_dropped_data_does_not_come_again_and_the_rest_is_as_it_was(base: Path, tmp_path: Path, skipped: Run):
    run = Run(base, tmp_path / "run").start(health={"non_finite": "drop_data"})
    bad = bad_steps(skipped)[0]
    assert bad_steps(run) == [bad] and run.events() == [("dropped-data", bad + 1)]
    (row,) = (json.loads(line) for line in (run.folder / "incidents.jsonl").read_text().splitlines())
    dropped = [d.token_ids for d in run.learnt()[bad]]
    assert len(row["data"]) == 4
    later = [d.token_ids for batch in run.learnt()[bad + 1 :] for d in batch]
    assert not {tuple(ids) for ids in dropped} & {tuple(ids) for ids in later}
    for i, (batch, before) in enumerate(zip(run.learnt(), skipped.learnt(), strict=True)):
        assert len(batch) == 4
        kept = [d.token_ids for d in before if d.token_ids not in dropped or i <= bad]
        assert set(map(tuple, kept)) <= {tuple(d.token_ids) for d in batch}  # each other place as it was
    # The weights are those of a run that never had the batch.
    expected = [*run.learnt()[:bad], *run.learnt()[bad + 1 :]]
    assert run.final().tolist() == pytest.approx(weights(expected), rel=1e-5, abs=1e-6)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["incidents"] == {"steps whose data was dropped": 1, "documents or questions dropped": 4}


def test_a_run_goes_back_and_passes_over_what_came_since(base: Path, tmp_path: Path):
    """Against a run of more epochs without a fault, whose batches tell what comes when."""
    run = Run(base, tmp_path / "run").launched(health={"non_finite": "roll_back"})
    plain = Run(base, tmp_path / "plain", num_epochs=4).start(factor=1.0)
    batches, bad = plain.learnt(), bad_steps(plain)
    taken: list[int] = []  # the batch that each step has learnt from in the end
    place, went_back = 0, list[tuple[int, int, int]]()
    while len(taken) < 6:
        if place not in bad:
            taken, place = [*taken, place], place + 1
            continue
        to = len(taken) // 2 * 2  # the last checkpoint
        went_back.append((len(taken) + 1, to, len(taken) + 1 - to))
        taken, place = taken[:to], place + 1
    assert went_back and any(to for _, to, _ in went_back)
    found = [json.loads(line) for line in (run.folder / "incidents.jsonl").read_text().splitlines()]
    assert [(row["step"], row["to"], row["passed"]) for row in found] == went_back
    assert run.final().tolist() == pytest.approx(weights([batches[i] for i in taken]), rel=1e-5, abs=1e-6)
    assert [row["step"] for row in run.rows()] == [1, 2, 3, 4, 5, 6]
    assert [kind for kind, _ in run.events()] == ["rolled-back"] * len(went_back)


@pytest.mark.parametrize("action", ["skip", "drop_data", "roll_back"])
def test_past_the_limit_the_run_stops(action: str, base: Path, tmp_path: Path):
    run = Run(base, tmp_path / "run")
    damaged: Callable[..., Any] = run.launched if action == "roll_back" else run.start
    said = r"after 1 steps that were not taken as they came \(health.limit\)"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DivergenceError, match=said):
        patch.setattr(Run, "text", lambda self, document: BAD)  # every conversation is the bad one
        damaged(health={"non_finite": action, "limit": 1})


SPIKES = {"window": 8, "loss_z": 0.0, "grad_norm_z": 20.0}


def test_a_spike_is_told_and_changes_nothing_or_is_dropped(base: Path, tmp_path: Path):
    """A gradient a thousand times as large, after eight steps that were none."""
    runs = {}
    for name, health in {
        "off": {"spike": "off"}, "log": SPIKES, "drop": {**SPIKES, "spike": "drop_data"},
        "killed": {**SPIKES, "spike": "drop_data"},
    }.items():  # fmt: skip
        first = Run(base, tmp_path / name, num_epochs=5)

        def text(document: Document, run: Run = first) -> str:
            """The conversation is bad from the fourth epoch on."""
            done = len(run.rows())
            return run._tokenizer.decode(list(document.token_ids)) if done >= 9 else ""

        first.text = text  # type: ignore[method-assign]
        if name == "killed":  # the window that the spike is judged by is in the checkpoint of step 8
            with pytest.raises(ZeroDivisionError):
                first.start(health=health, factor=1e4, after_step=lambda taken: taken == 9 and 1 / 0)
        runs[name] = first.start(health=health, factor=1e4, resume=name == "killed")
    off, log, drop, killed = runs["off"], runs["log"], runs["drop"], runs["killed"]
    assert killed.rows() == drop.rows() and killed.rows("incident") == drop.rows("incident")
    assert torch.equal(killed.final(), drop.final())
    assert log.rows() == off.rows() and torch.equal(log.final(), off.final())
    seen = [(row["step"], row["action"]) for row in log.rows("incident")]
    assert seen and {action for _, action in seen} == {"log"} and not off.rows("incident")
    assert not (log.folder / "incidents.jsonl").exists() and log.events()[0] == ("spike", seen[0][0])
    (dropped,) = drop.rows("incident")
    assert (dropped["step"], dropped["what"], dropped["action"]) == (seen[0][0], "spike", "drop_data")
    assert "grad_norm" in dropped["text"] and "deviations above the median" in dropped["text"]
    at = dropped["step"] - 1
    assert drop.final().tolist() == pytest.approx(
        weights([*drop.learnt()[:at], *drop.learnt()[at + 1 :]]), rel=1e-5, abs=1e-6
    )
    assert "skipped" in drop.rows()[at] and not any("skipped" in row for row in drop.rows()[at + 1 :])
