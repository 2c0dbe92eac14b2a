"""The skeleton of a training run, under a stage that is defined here: a few lines that say what a step is.

The stage recites: fixed documents, one a step, and a loss of its own. The rest is the skeleton's: metrics,
checkpoints, exports, evaluation, signals, resuming, the final weights and the summary.
"""

import json
import math
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from recording import CONFIG, RecordingPolicy, recorded_saves, stop_signal
from safetensors.torch import load_file

from r1mega.buffers import Int32s
from r1mega.config.cluster import Cluster
from r1mega.config.section import RunSettings
from r1mega.config.training import Batch, Experts, Health, Optimizer, Save
from r1mega.errors import CheckpointError
from r1mega.families.registry import read_model
from r1mega.runtime import heartbeat
from r1mega.runtime.interrupt import Interrupted, Stopped
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document

DOCUMENTS = [Document(Int32s(ids)) for ids in ((1, 5, 6, 7), (1, 8, 8), (1, 9))]
CLUSTER = Cluster(device="cpu")
LRS = [0.3, 0.5, 0.4, 0.3, 0.2, 0.1]
"""0.6 x what is left of six steps, in sixths, times 1/2 in the first."""


class Recite(RunSettings):
    """The settings of a stage that nobody else knows."""

    stage: Literal["recite"] = "recite"
    num_steps: int = 6
    optimizer: Optimizer = Optimizer(lr=0.6, schedule="linear", warmup_steps=2)
    batch: Batch = Batch(chunk_tokens=16)
    experts: Experts = Experts()
    health: Health = Health()
    save: Save = Save(every_steps=2, hf_every=3)


def squared(logp: torch.Tensor, fields: Mapping[str, torch.Tensor], doc: torch.Tensor):
    """The mean square of what is missing to a log-probability of -1."""
    return ((logp + 1) ** 2).mean(), {"missing": (logp + 1).mean().detach()}


class Counts:
    """How often each document has come, which nothing but the checkpoint knows."""

    def __init__(self) -> None:
        self.of, self.oldest = [0, 0, 0], list[int]()

    def state(self, step: int) -> dict[str, Any]:
        return {"counts": list(self.of)}

    def files(self) -> dict[str, bytes]:
        return {"own.bin": bytes(self.of)}

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        self.of = state["counts"]
        assert bytes(self.of) == (checkpoint / "own.bin").read_bytes()

    def forget_before(self, step: int) -> None:
        self.oldest.append(step)


@dataclass
class Measured:
    """An evaluation in the middle and at the end, which a signal may break off."""

    signals: dict[int, int] = field(default_factory=dict)
    at: list[int] = field(default_factory=list)

    def due(self, step: int, *, last: bool) -> bool:
        return last or step == 3

    def run(self, step: int, *, last: bool) -> None:
        self.at.append(step)
        if step in self.signals:
            raise Stopped(self.signals.pop(step))


@dataclass
class Recital:
    """One run of the stage and its resumed parts."""

    folder: Path
    mesh: Any
    evaluation: Measured = field(default_factory=Measured)
    counts: Counts = field(default_factory=Counts)
    policies: list[Any] = field(default_factory=list)

    def start(self, config: Recite, *, resume: bool = False, **policy: Any) -> "Recital":
        run_dir = RunDir(self.folder, config, CLUSTER, resume=resume)  # type: ignore[arg-type]
        self.counts = Counts()
        try:
            with recorded_saves():
                self._recite(config, run_dir, **policy)
        finally:
            run_dir.close()
        return self

    def _recite(self, config: Recite, run_dir: RunDir, **settings: Any) -> None:
        from r1mega.stages.run import TrainingRun

        with TrainingRun(config, run_dir, self.mesh, num_steps=config.num_steps) as run:
            policy: Any = RecordingPolicy(read_model(self.folder.parent / "config.json"), self.mesh, **settings)
            self.policies.append(policy)
            run.begin(
                policy,
                first_weights=lambda: policy.theta.copy_(torch.arange(len(policy.theta)).sin()),
                tokenizer=None,
                carried=[self.counts],  # type: ignore[list-item]
                evaluation=self.evaluation,
            )
            for step in run.steps():
                with Stopwatch() as watch:
                    document, lr = DOCUMENTS[step % 3], run.learning_rate()
                    self.counts.of[step % 3] += 1
                    learned = policy.forward_backward([document], squared)
                    learned |= run.update(learned, lr)
                run.after_step(learned | {"tokens": len(document.token_ids)}, watch.seconds)
        run.finish()

    def rows(self) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]

    def saved(self) -> list[int]:
        return sorted(int(p.name.removeprefix("step_")) for p in (self.folder / "checkpoints").glob("step_*"))

    def final(self) -> torch.Tensor:
        return load_file(self.folder / "hf/model.safetensors")["model.embed_tokens.weight"][:, 0]


@pytest.fixture
def recital(mesh, tmp_path: Path) -> Recital:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return Recital(tmp_path / "run", mesh)


def by_hand() -> tuple[list[dict[str, float]], list[float]]:
    """The rows' figures and the last weights, step by step in plain floats."""
    theta, rows = [math.sin(v) for v in range(CONFIG["vocab_size"])], []
    for step, lr in enumerate(LRS):
        targets = DOCUMENTS[step % 3].token_ids[1:]
        log_sum = math.log(sum(map(math.exp, theta)))
        missing = [theta[t] - log_sum + 1 for t in targets]
        # d (theta_t - log_sum) / d theta_v = (1 where v is t) - p(v)
        slopes = [2 * m / len(targets) for m in missing]
        gradient = [-sum(slopes) * math.exp(x - log_sum) for x in theta]
        for target, slope in zip(targets, slopes, strict=True):
            gradient[target] += slope
        rows.append({
            "loss": sum(m * m for m in missing) / len(missing), "missing": sum(missing) / len(missing), "lr": lr,
            "grad_norm": math.sqrt(sum(g * g for g in gradient)), "step": step + 1, "tokens": len(targets) + 1,
        })  # fmt: skip
        theta = [x - lr * g for x, g in zip(theta, gradient, strict=True)]
    return rows, theta


def test_a_stage_of_ones_own_is_logged_saved_exported_evaluated_and_summed_up(recital: Recital):
    recital.start(Recite())
    expected, theta = by_hand()
    for row, want in zip(recital.rows(), expected, strict=True):
        assert row["kind"] == "train" and {k: row[k] for k in want} == pytest.approx(want, rel=1e-5)
    assert recital.final().tolist() == pytest.approx(theta, rel=1e-5, abs=1e-6)
    assert recital.saved() == [4, 6]  # save.keep_last
    assert recital.counts.oldest == [2, 2, 4]  # and what no kept checkpoint needs is forgotten
    assert sorted(p.name for p in (recital.folder / "hf_steps").iterdir()) == ["step_3", "step_6"]
    for folder, step in (("hf", 6), ("hf_steps/step_3", 3)):
        assert f", step {step}, start " in (recital.folder / folder / "README.md").read_text()
    assert recital.evaluation.at == [3, 6]
    summary = json.loads((recital.folder / "summary.json").read_text())
    assert (summary["stage"], summary["steps"], summary["tokens"]) == ("recite", 6, 18)
    assert summary["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-5)


def test_a_rank_says_how_long_its_stage_is(recital: Recital):
    recital.start(Recite())
    assert heartbeat.current.num_steps == 6


def test_metrics_are_synced_before_a_checkpoint_that_knows_their_step(recital: Recital, monkeypatch):
    import recording

    from r1mega.stages.records import FirstRanksRecords

    def heard(of: type, name: str) -> None:
        inner = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *args, **named: (order.append(name), inner(*args, **named))[1])

    order: list[str] = []
    heard(FirstRanksRecords, "sync")
    heard(recording.RecordingCheckpointer, "save")
    recital.start(Recite())
    assert order == ["sync", "save"] * 3


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(steps: int, recital: Recital, tmp_path: Path):
    """After a step that is saved anyhow (4), and after others."""
    with pytest.raises(Interrupted, match=f"saved at step {steps}; continue with --resume") as stopped:
        recital.start(Recite(), after_step=lambda taken: stop_signal() if taken == steps else None)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert len(recital.rows()) == steps == max(recital.saved())
    assert not (recital.folder / "hf").exists()
    recital.start(Recite(), resume=True)
    whole = Recital(tmp_path / "whole", recital.mesh).start(Recite())
    assert recital.rows() == whole.rows()
    assert torch.equal(recital.final(), whole.final())
    assert recital.counts.of == whole.counts.of == [2, 2, 2]


def test_what_breaks_an_evaluation_off_is_evaluated_when_the_run_goes_on(recital: Recital):
    recital.evaluation.signals = {3: signal.SIGUSR1}
    with pytest.raises(Interrupted) as stopped:
        recital.start(Recite())
    assert stopped.value.exit_code == 128 + signal.SIGUSR1
    assert recital.saved() == [2, 3]  # a step that no setting asks to save
    recital.start(Recite(), resume=True)
    assert recital.evaluation.at == [3, 3, 6]
    assert [row["step"] for row in recital.rows()] == [1, 2, 3, 4, 5, 6]


def test_a_fault_of_the_step_leaves_what_was_saved_before_it(recital: Recital):
    def fault(taken: int) -> None:
        if taken == 5:
            raise ZeroDivisionError

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError):
        recital.start(Recite(), after_step=fault)
    assert recital.saved() == [2, 4] and signal.getsignal(signal.SIGTERM) == before
    recital.start(Recite(), resume=True)
    assert [row["step"] for row in recital.rows()] == [1, 2, 3, 4, 5, 6]


def test_a_run_without_a_checkpoint_starts_over(recital: Recital):
    """An evaluation of the first weights may be of others: they can be exchanged while nothing is learnt yet."""

    def fault(taken: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recital.start(Recite(num_steps=3), after_step=fault)
    with (recital.folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "eval", "step": 0}\n{"kind": "train", "step": 1}\n')
    recital.start(Recite(num_steps=3), resume=True)
    assert [(row["kind"], row["step"]) for row in recital.rows()] == [("train", step) for step in (1, 2, 3)]


def test_a_checkpoint_of_another_run_is_refused(recital: Recital, tmp_path: Path):
    recital.start(Recite(num_steps=3))
    other = Recital(tmp_path / "other", recital.mesh).start(Recite(num_steps=3))
    shutil.rmtree(recital.folder / "checkpoints/step_3")
    (other.folder / "checkpoints/step_3").rename(recital.folder / "checkpoints/step_3")
    with pytest.raises(CheckpointError, match=r"step_3: saved by run .*, and .* holds run"):
        recital.start(Recite(num_steps=3), resume=True)


@pytest.mark.parametrize(
    ("step", "seconds", "done"), [(2, 10.0, 0.25), (2, 30.0, 0.75), (8, 10.0, 1.0), (4, 40.0, 1.0)]
)
def test_a_stage_with_a_clock_ends_by_what_comes_first(step: int, seconds: float, done: float, mesh):
    from r1mega.stages.run import TrainingRun

    run = TrainingRun(Recite(), None, mesh, num_steps=8, max_seconds=40.0)  # type: ignore[arg-type]
    run.step, run.seconds = step, seconds
    assert run.progress == done
    assert run.learning_rate() == pytest.approx(0.6 * (1 - done))
