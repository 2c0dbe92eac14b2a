"""Pretraining of a tiny base model (V3 report 2.2): next-token cross-entropy, MTP loss, expert-bias balancing.

From random weights (`model.config`) on text made from tasks, with a tokenizer trained on that text; or further
from a base (`model.path`) with the base's tokenizer. Deviation from the V3 report: no sequence-wise auxiliary
loss; the learning rate follows one cosine instead of the report's stages.
"""

import logging
import random
from typing import Any

from r1mega.algos.likelihood import likelihood_loss
from r1mega.algos.schedule import learning_rate
from r1mega.config.schema import Cluster, Pretrain
from r1mega.data.pretrain_text import TextDocument, documents, tokenize
from r1mega.data.split import HELD_OUT
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.evaluation.experts import summarise
from r1mega.families.registry import check_lengths, check_tokenizer, read_model
from r1mega.families.spec import ModelSpec
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt, Interrupted
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir, checkpoint_step
from r1mega.runtime.tracking import Tracker
from r1mega.samples import Document
from r1mega.stages.experts import ExpertLog
from r1mega.stages.saving import Saves, last_checkpoint
from r1mega.trainer import mesh
from r1mega.trainer.policy import Policy
from r1mega.trainer.scatter import divide
from r1mega.weights import hf_io
from r1mega.weights.megatron_io import load_weights

log = logging.getLogger(__name__)

TOKENIZER_DOCUMENTS = 5_000
"""Documents the tokenizer is trained on; the text is uniform, more change nothing."""

VOCAB_MULTIPLE = 32
"""The embedding is padded to this, which divides it over any tensor-parallel size in use."""


def run(config: Pretrain, cluster: Cluster, run_dir: RunDir) -> None:
    """Train for `num_steps` or `max_seconds`, from the run's last checkpoint where there is one. On every rank.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    ours = mesh.start(cluster.trainer, device=cluster.device, seed=config.seed)
    spec, corpus = ours.from_first(lambda: _corpus(config, run_dir))
    with Interrupt() as interrupt:
        policy, state = _policy(config, ours, run_dir, spec)
        tokenizer_dir = config.model.path or run_dir.path / "tokenizer"
        with Saves(policy, run_dir, config.save, tokenizer_dir) as saves:
            trainer = Trainer(config, run_dir, policy, corpus, state, saves)
            trainer.loop(interrupt)
        rss = sum(ours.gather(peak_rss_gib()))
    hf_io.export(policy, run_dir.hf, tokenizer_dir)
    if ours.first:
        files.write_json(run_dir.path / "summary.json", _summary(run_dir, rss))


def _corpus(config: Pretrain, run_dir: RunDir) -> tuple[ModelSpec, list[Document]]:
    """The model with the text's vocabulary, and the text; also leaves the tokenizer and the list of questions."""
    data = config.data
    texts = documents(config.tasks, data.styles, data.num_documents, config.seed * 1000 + data.part, exclude=HELD_OUT)
    files.write_jsonl(
        run_dir.path / "trained_on.jsonl", ({"question": q} for q in sorted({t.question for t in texts}))
    )
    tokenizer = _tokenizer(config, texts, run_dir)
    corpus = tokenize(texts, tokenizer, data.learn)
    spec = _spec(config, tokenizer)
    check_lengths(max(len(d.token_ids) for d in corpus), spec, config.batch)
    return spec, corpus


def _tokenizer(config: Pretrain, texts: list[TextDocument], run_dir: RunDir) -> Any:
    """The base's tokenizer, or one trained on the text; the same text gives the same tokenizer."""
    if config.model.path is not None:
        return load_tokenizer(config.model.path)
    sample = [t.prompt + t.answer for t in texts[:TOKENIZER_DOCUMENTS]]
    return train_tokenizer(sample, config.data.vocab_size, run_dir.path / "tokenizer")


def _spec(config: Pretrain, tokenizer: Any) -> ModelSpec:
    if config.model.path is not None:
        spec = read_model(config.model.path)
        check_tokenizer(spec, tokenizer, config.model.path)
        return spec
    assert config.model.config is not None, "config.checks demands it"
    vocab_size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return read_model(config.model.config).with_vocab(
        vocab_size, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
    )


def _policy(config: Pretrain, ours: mesh.Mesh, run_dir: RunDir, spec: ModelSpec) -> tuple[Policy, dict[str, Any]]:
    """The policy at the run's last checkpoint, or at its initial weights; and where the run stands."""
    policy = Policy.build(
        spec,
        ours,
        config.optimizer,
        config.batch,
        mtp="joint",
        mtp_loss_weight=config.mtp_loss_weight,
        expert_bias_rate=config.expert_bias_rate,
        seed=config.seed,
    )
    checkpoint = last_checkpoint(ours, run_dir)
    if ours.first:
        run_dir.rewind(checkpoint_step(checkpoint) if checkpoint else -1)
    if checkpoint is not None:
        state = policy.load(checkpoint, verified=True)
        log.info("resumed from %s", checkpoint)
        return policy, state
    if config.model.path is not None:
        load_weights(policy, config.model.path)
    return policy, {"step": 0, "seconds": 0.0}


class Trainer:
    """The loop; its state is the policy, the steps taken and the seconds they took."""

    def __init__(
        self,
        config: Pretrain,
        run_dir: RunDir,
        policy: Policy,
        corpus: list[Document],
        state: dict[str, Any],
        saves: Saves,
    ) -> None:
        self.config, self.policy, self.corpus, self.saves = config, policy, corpus, saves
        self.mesh = policy.mesh
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self._epoch, self._order = -1, list[int]()
        self.tracker = Tracker(run_dir.path, config.wandb, config) if self.mesh.first else None
        self.experts = ExpertLog(run_dir, config.experts, self.tracker) if self.tracker else None

    @property
    def progress(self) -> float:
        """Share of the stage that is done: of its steps, or of its time where that ends it sooner."""
        steps = self.step / self.config.num_steps
        return max(steps, self.seconds / self.config.max_seconds) if self.config.max_seconds else steps

    def loop(self, interrupt: Interrupt) -> None:
        """An optimiser step per batch until the steps or the seconds are used up."""
        config = self.config
        by_time = config.max_seconds > 0
        with Bar(
            "pretrain",
            config.max_seconds if by_time else config.num_steps,
            unit="second" if by_time else "step",
            done=self.seconds if by_time else self.step,
            silent=not self.mesh.first,
        ) as bar:
            while self.progress < 1.0:
                with Stopwatch() as watch:
                    metrics = self.update(self.batch())
                # The clock and the signals are the first rank's, so that all ranks end at the same step.
                seconds, stop = self.mesh.from_first(lambda w=watch: (w.seconds, interrupt.received))
                self.seconds += seconds
                if self.tracker is not None and self.experts is not None:
                    metrics |= self.experts.metrics(self.step, self.policy.expert_load)
                    self.tracker.log("train", self.step, metrics | {"seconds/update": seconds})
                bar.advance(seconds if by_time else 1, note=f"loss {metrics['loss']:.3f}")
                self.saves.check()
                if self.progress >= 1.0 or stop or self.step % config.save.every_steps == 0:
                    self.save()
                self.saves.export_if_due(self.step)
                if stop:
                    self.saves.wait()
                    raise Interrupted(stop, f"saved at step {self.step}; continue with --resume")
        if self.tracker is not None:
            self.tracker.close()

    def batch(self) -> list[Document]:
        """The documents of this step: each epoch in its own order, from seed and step alone; no rest is carried."""
        per_step = self.config.documents_per_step
        per_epoch = len(self.corpus) // per_step
        epoch, place = divmod(self.step, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.corpus)))
            random.Random(f"{self.config.seed}/{epoch}").shuffle(self._order)
        chosen = [self.corpus[i] for i in self._order[place * per_step : (place + 1) * per_step]]
        weight = 1.0 / sum(d.num_targets for d in chosen)
        return [Document(d.token_ids, d.learn_from, {"weight": (weight,) * d.num_targets}) for d in chosen]

    def share(self, batch: list[Document]) -> list[Document]:
        """This rank's documents of a batch, which every rank knows: about as many tokens as any other's."""
        shares = divide([len(d.token_ids) for d in batch], self.mesh.layout.dp)
        return [batch[i] for i in shares[self.mesh.data_rank]]

    def update(self, batch: list[Document]) -> dict[str, float]:
        lr = learning_rate(self.config.optimizer, self.step, self.progress)
        learned = self.policy.forward_backward(self.share(batch), likelihood_loss)
        grad_norm = self.policy.optim_step(lr)
        self.step += 1
        return learned | {"grad_norm": grad_norm, "lr": lr, "tokens": sum(len(d.token_ids) for d in batch)}

    def save(self) -> None:
        if self.tracker is not None:
            self.tracker.sync()
        state = {"step": self.step, "seconds": self.seconds}
        self.saves.checkpoint(self.step, state)


def _summary(run_dir: RunDir, rss: float) -> dict[str, Any]:
    """summary.json, from the metrics on disk, so that a resumed run counts all of its parts."""
    train = [row for row in run_dir.metrics() if row["kind"] == "train"]
    seconds = sum(row["seconds/update"] for row in train)
    recent = train[-max(1, len(train) // 20) :]
    return {
        "stage": "pretrain",
        "seconds": seconds,
        "steps": train[-1]["step"],
        "tokens": sum(row["tokens"] for row in train),
        "tokens_per_second": {"train": sum(row["tokens"] for row in train) / seconds},
        "loss": sum(row["loss"] for row in recent) / len(recent),
        "peak_rss_gib": {"trainer": rss},
        "experts": summarise(train),
    }
