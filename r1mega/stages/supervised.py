"""Training on given tokens, which pretraining and SFT share: batches, their loss's weights, the loop, the summary.

documents of this step (data/epochs.py) -> this rank's chunks of them -> loss and gradient -> one optimiser step
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

from r1mega.algos.likelihood import likelihood_loss
from r1mega.algos.schedule import learning_rate
from r1mega.config.schema import SFT, Pretrain
from r1mega.data.epochs import Epochs
from r1mega.data.packing import spread
from r1mega.diagnostics.load_balance import summarise
from r1mega.runtime.interrupt import Interrupt, Interrupted
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.run_dir import RunDir, checkpoint_step
from r1mega.runtime.tracking import Tracker
from r1mega.samples import Document
from r1mega.stages.experts import ExpertLog
from r1mega.stages.saving import Saves, last_checkpoint, refuse_another_runs
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy

log = logging.getLogger(__name__)

VALIDATION_DOCUMENTS = 64
"""Documents of each data-parallel rank in one pass of a validation, which bounds its memory."""


class Texts(Protocol):
    """Tokenised documents, wherever they lie."""

    @property
    def lengths(self) -> Sequence[int]: ...

    @property
    def num_targets(self) -> Iterable[int]: ...

    def document(self, i: int, weight: float) -> Document:
        """Document i, each of whose targets weighs `weight` in the loss."""
        ...


class Batches:
    """What this rank learns from at each step."""

    def __init__(
        self,
        texts: Texts,
        epochs: Epochs,
        mesh: Mesh,
        chunk_tokens: int,
        reduction: Literal["token_mean", "sequence_mean"] = "token_mean",
    ) -> None:
        """
        Args:
            chunk_tokens: length of a chunk; ranks are given whole ones.
            reduction: token_mean: mean over the batch's targets. sequence_mean: mean over a document's targets, then
                over documents.
        """
        self.texts, self.epochs = texts, epochs
        self._mesh, self._chunk_tokens, self._reduction = mesh, chunk_tokens, reduction
        self._lengths, self._num_targets = list(texts.lengths), list(texts.num_targets)

    def share(self, step: int) -> tuple[list[Document], int]:
        """This rank's documents of the step after `step` steps, and the tokens of all ranks' documents.

        The weights of all ranks' targets sum to 1.
        """
        chosen = self.epochs.batch(step)
        lengths = [self._lengths[i] for i in chosen]
        total = sum(self._num_targets[i] for i in chosen)
        shares = spread(lengths, self._chunk_tokens, self._mesh.layout.dp)
        mine = [chosen[k] for k in shares[self._mesh.data_rank]]
        if self._reduction == "token_mean":
            weights = [1.0 / total] * len(mine)
        else:
            weights = [1.0 / (len(chosen) * self._num_targets[i]) for i in mine]
        return [self.texts.document(i, w) for i, w in zip(mine, weights, strict=True)], sum(lengths)


class Validation:
    """Mean loss of documents that are not trained on."""

    def __init__(self, policy: Policy, texts: Texts, chunk_tokens: int, every_steps: int) -> None:
        self._policy, self._texts, self._chunk_tokens = policy, texts, chunk_tokens
        self._every = every_steps

    def due(self, step: int) -> bool:
        return step % self._every == 0

    def loss(self) -> float:
        """Mean over all targets of -log p, in nats; every rank calls this and gets the same."""
        mesh, lengths = self._policy.mesh, list(self._texts.lengths)
        total, count = 0.0, 0
        step = VALIDATION_DOCUMENTS * mesh.layout.dp
        for start in range(0, len(lengths), step):
            some = range(start, min(start + step, len(lengths)))
            shares = spread([lengths[i] for i in some], self._chunk_tokens, mesh.layout.dp)
            documents = [self._texts.document(some[k], 1.0) for k in shares[mesh.data_rank]]
            logps = self._policy.logprobs(documents, temperature=1.0)
            mine = (sum(float(logp.double().sum()) for logp in logps), sum(len(logp) for logp in logps))
            for logp, num in mesh.gather_over_data(mine):
                total, count = total - logp, count + num
        return total / count


def restore(policy: Policy, run_dir: RunDir) -> dict[str, Any] | None:
    """Bring a policy to the run's last checkpoint and the run directory to its step; None where there is none."""
    checkpoint = last_checkpoint(policy.mesh, run_dir)
    if policy.mesh.first:
        run_dir.rewind(checkpoint_step(checkpoint) if checkpoint else -1)
    if checkpoint is None:
        return None
    state = policy.load(checkpoint, verified=True)
    refuse_another_runs(run_dir, checkpoint, state)
    log.info("resumed from %s", checkpoint)
    return state


class Loop:
    """An optimiser step per batch; its state is the policy, the steps taken and the seconds they took."""

    def __init__(
        self,
        config: Pretrain | SFT,
        run_dir: RunDir,
        policy: Policy,
        batches: Batches,
        state: dict[str, Any],
        saves: Saves,
        num_steps: int,
        validation: Validation | None = None,
    ) -> None:
        """
        Args:
            state: {"step", "seconds"}, and what else a checkpoint is to carry along.
            num_steps: that the schedule of the learning rate counts to.
        """
        self.config, self.policy, self.batches, self.saves = config, policy, batches, saves
        self.mesh, self.run_dir, self.num_steps = policy.mesh, run_dir, num_steps
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self._carried = state
        self._validation = validation
        self.tracker = Tracker(run_dir.path, config.wandb, config) if self.mesh.first else None
        self._experts = ExpertLog(run_dir, config.experts, self.tracker) if self.tracker else None
        if self._experts is not None:
            self._experts.restore(state)

    @property
    def progress(self) -> float:
        """Share of the stage that is done: of its steps, or of its time where that ends it sooner."""
        steps = self.step / self.num_steps
        return max(steps, self.seconds / self.config.max_seconds) if self.config.max_seconds else steps

    def run(self, interrupt: Interrupt) -> None:
        """Until the steps or the seconds are used up.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
        """
        config = self.config
        by_time = config.max_seconds > 0
        with Bar(
            config.stage,
            config.max_seconds if by_time else self.num_steps,
            unit="second" if by_time else "step",
            done=self.seconds if by_time else self.step,
            silent=not self.mesh.first,
        ) as bar:
            self.saves.make_up(self.step)
            self._validate_if_due()
            while self.progress < 1.0:
                with Stopwatch() as watch:
                    metrics = self.update()
                # The clock and the signals are the first rank's, so that all ranks end at the same step.
                seconds, stop = self.mesh.from_first(lambda w=watch: (w.seconds, interrupt.received))
                self.seconds += seconds
                if self.tracker is not None and self._experts is not None:
                    metrics |= self._experts.metrics(self.step, self.policy.expert_load)
                    self.tracker.log("train", self.step, metrics | {"seconds/update": seconds})
                bar.advance(seconds if by_time else 1, note=f"loss {metrics['loss']:.3f}")
                self.saves.check()
                if self.progress >= 1.0 or stop or self.step % config.save.every_steps == 0:
                    self.save()
                self.saves.export_if_due(self.step)
                if stop:
                    self.saves.wait()
                    raise Interrupted(stop, f"saved at step {self.step}; continue with --resume")
                self._validate_if_due()
        if self.tracker is not None:
            self.tracker.close()

    def update(self) -> dict[str, float]:
        """One optimiser step; its metrics."""
        lr = learning_rate(self.config.optimizer, self.step, self.progress)
        documents, tokens = self.batches.share(self.step)
        learned = self.policy.forward_backward(documents, likelihood_loss)
        grad_norm = self.policy.optim_step(lr)
        self.step += 1
        return learned | {"grad_norm": grad_norm, "lr": lr, "tokens": tokens}

    def save(self) -> None:
        if self.tracker is not None:
            self.tracker.sync()
        state = {**self._carried, "place": self.batches.epochs.place(self.step)}
        state |= {"step": self.step, "seconds": self.seconds}
        state |= self._experts.state() if self._experts is not None else {}
        self.saves.checkpoint(self.step, state)

    def _validate_if_due(self) -> None:
        """After the step's checkpoint, so that a signal need not wait; a resumed run makes up for it."""
        validation = self._validation
        if validation is None or not (validation.due(self.step) or self.progress >= 1.0):
            return
        if self.mesh.from_first(self._validated):
            return
        with Stopwatch() as watch:
            loss = validation.loss()
        if self.tracker is not None:
            self.tracker.log("validation", self.step, {"validation/loss": loss, "seconds/validation": watch.seconds})
            log.info("step %d: validation loss %.4f", self.step, loss)

    def _validated(self) -> bool:
        file = self.run_dir.path / "metrics.jsonl"
        rows = self.run_dir.metrics() if file.exists() else []
        return any(row["kind"] == "validation" and row["step"] == self.step for row in rows)


def summary(stage: str, run_dir: RunDir, rss: float) -> dict[str, Any]:
    """summary.json, from the metrics on disk, so that a resumed run counts all of its parts."""
    train = [row for row in run_dir.metrics() if row["kind"] == "train"]
    seconds = sum(row["seconds/update"] for row in train)
    recent = train[-max(1, len(train) // 20) :]
    return {
        "stage": stage,
        "seconds": seconds,
        "steps": train[-1]["step"],
        "tokens": sum(row["tokens"] for row in train),
        "tokens_per_second": {"train": sum(row["tokens"] for row in train) / seconds},
        "loss": sum(row["loss"] for row in recent) / len(recent),
        "peak_rss_gib": {"trainer": rss},
        "experts": summarise(train),
    }
