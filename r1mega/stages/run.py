"""The skeleton of a training run: what every training stage does around its steps. A stage says what a step is.

    with TrainingRun(config, run_dir, mesh, num_steps=...) as run:  # signals; metrics; at which step it goes on
        policy = build(...)
        run.begin(policy, first_weights=..., tokenizer=...)         # the checkpoint's weights, or the first ones
        for step in run.steps():                                    # until steps or seconds are used up
            learned = policy.forward_backward(...)
            learned |= run.update(learned, lr)                      # the optimiser's step, if its numbers are right
            run.after_step(learned, seconds)                        # log, save, export, stop, evaluate
    run.finish()                                                    # the final weights and summary.json

Every rank runs the same lines; what rank 0 alone writes is behind `Records`, which on other ranks writes nothing.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypeVar

from r1mega.algos.schedule import learning_rate
from r1mega.diagnostics.load_balance import summarise
from r1mega.runtime import files, heartbeat, incidents
from r1mega.runtime.interrupt import Interrupt, Interrupted, Stopped
from r1mega.runtime.progress import Bar
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir, checkpoint_step
from r1mega.stages.health import StepHealth, Taught
from r1mega.stages.records import Carried, TrainingSettings, records_of
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy
from r1mega.weights import hf_io
from r1mega.weights.saves import Saves, last_checkpoint

log = logging.getLogger(__name__)

T = TypeVar("T")


class Measurement(Protocol):
    """What a stage measures of its weights between steps."""

    def due(self, step: int, *, last: bool) -> bool: ...

    def run(self, step: int, *, last: bool) -> None:
        """Measure and log. Every rank calls this. Raises Stopped on every rank where a signal broke it off."""
        ...


class TrainingRun:
    """One run of a training stage, from its start or from its newest whole checkpoint."""

    def __init__(
        self,
        config: TrainingSettings,
        run_dir: RunDir,
        mesh: Mesh,
        *,
        num_steps: int,
        max_seconds: float | None = None,
        whole: int = 1,
        shown: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            num_steps: optimiser steps of the stage, which the learning rate's schedule counts to.
            max_seconds: of steps, after which the stage ends all the same; the schedule then follows them. 0: no
                bound; None: a stage that has no clock, whose checkpoints carry none.
            whole: the clock ends the stage after a multiple of so many steps.
            shown: what stands behind the bar: metric -> its format, those alone that a step has.
        """
        self._config, self._run_dir, self._mesh = config, run_dir, mesh
        self._num_steps, self._max_seconds, self._whole = num_steps, max_seconds, whole
        self._shown = shown or {"loss": "loss {:.3f}"}
        self.step = 0
        """Optimiser steps taken."""
        self.seconds = 0.0
        """They took, this run's earlier parts included where the stage has a clock."""
        self.interrupt = Interrupt()
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        """Find the checkpoint to go on from, and drop what was written after it. Every rank calls this.

        Raises:
            CheckpointError: there are checkpoints, and all of them are damaged.
        """
        with ExitStack() as stack:
            stack.enter_context(self.interrupt)
            self._checkpoint = last_checkpoint(self._mesh, self._run_dir)
            self.step = checkpoint_step(self._checkpoint) if self._checkpoint else 0
            # Before metrics.jsonl is opened, which this writes anew.
            self._mesh.from_first(lambda: self._run_dir.rewind(self.step if self._checkpoint else -1))
            self.records = stack.enter_context(records_of(self._mesh, self._config, self._run_dir))
            self._health = StepHealth(
                self._config.health, self._mesh, self._run_dir, self.records,
                whole=self._whole, waits=lambda: self._finish_saving(),
            )  # fmt: skip
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises Interrupted in place of a `Stopped`, which reaches this on every rank, when everything is saved."""
        if isinstance(error, Stopped):
            with self._stack:
                self._leave(error.signum)
        self._stack.__exit__(kind, error, trace)

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter what the stage needs until its end; it ends after what is being written, unless an error comes."""
        return self._stack.enter_context(context)

    def begin(
        self,
        policy: Policy,
        *,
        first_weights: Callable[[], None],
        tokenizer: Path | None,
        carried: Sequence[Carried] = (),
        taught: Taught | None = None,
        evaluation: Measurement | None = None,
    ) -> None:
        """Bring the policy to where the run goes on.

        Args:
            first_weights: gives a policy that was just built the weights that the stage starts from.
            tokenizer: the folder whose files go along with exports.
            carried: what else is saved and restored.
            taught: what the steps learn from, so that a step whose numbers are wrong can be told by it.
            evaluation: runs where it is due, after the step's checkpoint.

        Raises:
            CheckpointError: the checkpoint is of another run or another model.
        """
        self.policy, self._tokenizer, self._carried, self._evaluation = policy, tokenizer, carried, evaluation
        heartbeat.phase("load", self.step)
        self._saves = self.enter(Saves(policy, self._run_dir, self._config.save, tokenizer))
        self._health.begin(taught)
        if self._checkpoint is None:
            first_weights()
            return
        state = self._saves.resume(self._checkpoint)
        if self._max_seconds is not None:
            self.seconds = float(state.get("seconds", 0.0))  # none where the stage had no clock yet
        for part in (self.records, self._health, *carried):
            part.restore(state, self._checkpoint)
        log.info("resumed from %s", self._checkpoint)

    # ---- steps ------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Share of the stage that is done: of its steps, or of its time where that ends it sooner."""
        steps = self.step / self._num_steps
        return max(steps, self.seconds / self._max_seconds) if self._max_seconds else steps

    @property
    def is_over(self) -> bool:
        """Whether no step is to be taken any more."""
        return self.step >= self._num_steps or (self.progress >= 1.0 and self.step % self._whole == 0)

    def learning_rate(self) -> float:
        """Of the step to be taken now."""
        return learning_rate(self._config.optimizer, self.step, self.progress)

    def steps(self) -> Iterator[int]:
        """How many steps are taken, before each that is to be taken and that `after_step` then ends."""
        seconds = self._max_seconds
        total, unit, done = (seconds, "second", self.seconds) if seconds else (self._num_steps, "step", self.step)
        self._bar = self.enter(Bar(self._config.stage, total, unit=unit, done=done, silent=not self._mesh.first))
        heartbeat.length(self._num_steps)
        self._saves.make_up(self.step)
        self._evaluate_if_due()  # at the start, or the one that was broken off
        while not self.is_over:
            taken = self.step
            heartbeat.phase("update", taken)  # a stage that does more says so itself
            yield taken
            assert self.step == taken + 1, "a step ends with after_step"
        self._finish_saving()
        self._peak_rss_gib = sum(self._mesh.gather(peak_rss_gib()))

    def update(self, learned: Mapping[str, float], lr: float) -> dict[str, float]:
        """Take the optimiser's step with the gradient that the policy has accumulated, unless its numbers are wrong
        and [health] has it otherwise. For metrics, arguments and errors see `StepHealth.take`."""
        return self._health.take(self.policy, self.step, learned, lr)

    def after_step(self, metrics: Mapping[str, Any], seconds: float) -> None:
        """Log an optimiser step that was just taken, then save, export, stop and evaluate as is due.

        Args:
            metrics: the step's, for its line of metrics.jsonl.
            seconds: the step took on this rank, beside those that `metrics` names.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGUSR1 came; a checkpoint has been saved.
            CheckpointError, OSError: an earlier checkpoint or export could not be written.
        """
        self.step += 1
        # The clock and the signals are the first rank's, so that all ranks end at the same step.
        metrics = {**metrics, "seconds/update": seconds}
        all_seconds = sum(value for name, value in metrics.items() if name.startswith("seconds/"))
        taken, stop = self._mesh.from_first(lambda: (all_seconds, self.interrupt.received))
        self.seconds += taken
        load = None if "skipped" in metrics else self.policy.expert_load
        self.records.step(self.step, metrics | heartbeat.figures(), load)
        assert self._bar is not None
        self._bar.advance(taken if self._max_seconds else 1, note=self._note(metrics))
        self._check_saves()
        if self.is_over or stop or self.step % self._config.save.every_steps == 0:
            self._save()
        self._saves.export_if_due(self.step)
        if stop:
            self._leave(stop)
        self._evaluate_if_due()  # after the checkpoint, so that neither a signal nor a kill costs the step

    def say(self, what: str, text: str) -> None:
        """Tell people what is waited for (`Bar.say`)."""
        if self._bar is not None:
            self._bar.say(what, text)

    def show(self, what: str, metrics: Mapping[str, Any]) -> None:
        """Tell people the figures behind the bar before the step that they belong to is done."""
        self.say(what, self._note(metrics))

    def _note(self, metrics: Mapping[str, Any]) -> str:
        return ", ".join(form.format(metrics[name]) for name, form in self._shown.items() if name in metrics)

    def _evaluate_if_due(self) -> None:
        evaluation = self._evaluation
        if evaluation is not None and evaluation.due(self.step, last=self.is_over):
            heartbeat.phase("evaluate", self.step)
            evaluation.run(self.step, last=self.is_over)

    # ---- checkpoints and the end ------------------------------------------------------------------------

    def _save(self) -> None:
        """A checkpoint of everything that a resumed run needs."""
        heartbeat.phase("save", self.step)
        self.records.sync()
        state: dict[str, Any] = {"step": self.step}
        state |= {"seconds": self.seconds} if self._max_seconds is not None else {}
        own: dict[str, bytes] = {}
        for part in (*self._carried, self._health, self.records):
            state |= part.state(self.step)
            own |= part.files()
        self._saves.checkpoint(self.step, state, own)

    def _check_saves(self) -> None:
        """Between two steps: what came of the last save. Raises as `Saves.check`."""
        self._saves.check()
        if self._saves.settled():
            oldest = min(self._run_dir.saved_steps())
            for part in self._carried:
                part.forget_before(oldest)

    def _finish_saving(self) -> None:
        self._saves.wait()
        self._check_saves()

    def _leave(self, signum: int) -> NoReturn:
        """Save what no checkpoint has yet, and raise Interrupted. Every rank calls this."""
        self._finish_saving()
        # Where the step has a checkpoint, it is of this very state.
        if not self._mesh.from_first(self._run_dir.checkpoint(self.step).exists):
            self._save()
            self._finish_saving()
        raise Interrupted(signum, f"saved at step {self.step}; continue with --resume") from None

    def summary(self) -> dict[str, Any]:
        """What any stage's summary.json has, from the metrics on disk, so that a resumed run counts all its parts."""
        train = [row for row in self._run_dir.metrics() if row["kind"] == "train"]
        seconds = sum(row["seconds/update"] for row in train)
        recent = [row["loss"] for row in train[-max(1, len(train) // 20) :] if row["loss"] is not None]
        wrong = incidents.counts(self._run_dir.path)
        return {
            "stage": self._config.stage,
            "seconds": seconds,
            "steps": train[-1]["step"],
            "tokens": sum(row["tokens"] for row in train),
            "tokens_per_second": {"train": sum(row["tokens"] for row in train) / seconds},
            "loss": sum(recent) / len(recent) if recent else None,
            "peak_rss_gib": {"trainer": self._peak_rss_gib},
            "experts": summarise(train),
            **({"incidents": wrong} if wrong else {}),
        }

    def finish(self, summary: Callable[[], dict[str, Any]] | None = None) -> None:
        """The final weights as a Hugging Face folder, and summary.json. Every rank calls this, after the run's end.

        Args:
            summary: makes what summary.json holds, on rank 0; otherwise it is `summary`'s.
        """
        heartbeat.phase("export", self.step)
        identity = self._run_dir.lineage.policy(self.step)
        hf_io.export(self.policy, self._run_dir.hf, self._tokenizer, identity=identity)
        file = self._run_dir.path / "summary.json"
        self._mesh.from_first(lambda: files.write_json(file, (summary or self.summary)()))
