"""Pretraining of a tiny base model (V3 report 2.2): next-token cross-entropy, MTP loss, expert-bias balancing.

From random weights (`model.config`) on text made from tasks, with a tokenizer trained on that text; or further
from a base (`model.path`) with the base's tokenizer. Deviation from the V3 report: no sequence-wise auxiliary
loss; the learning rate follows one cosine instead of the report's stages.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1mega.algos.likelihood import likelihood_loss
from r1mega.buffers import Float32s
from r1mega.config.cluster import Cluster
from r1mega.data import constraint_text
from r1mega.data.batches import Batches
from r1mega.data.epochs import Epochs
from r1mega.data.pretrain_text import TextDocument, documents, tokenize
from r1mega.data.special_tokens import with_ends
from r1mega.data.split import HELD_OUT
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.families.registry import check_tokenizer, read_language_model
from r1mega.families.spec import ModelSpec
from r1mega.layout.laws import check_lengths
from r1mega.recipe.pretrain import Pretrain
from r1mega.runtime import files
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document
from r1mega.stages.records import Carried
from r1mega.stages.run import TrainingRun
from r1mega.stages.taught import LearntDocuments
from r1mega.trainer import mesh as meshes
from r1mega.trainer.policy import Policy
from r1mega.weights.megatron_io import load_weights

TOKENIZER_DOCUMENTS = 5_000
"""Documents the tokenizer is trained on; the text is uniform, more change nothing."""

VOCAB_MULTIPLE = 32
"""The embedding is padded to this, which divides it over any tensor-parallel size in use."""


def run(config: Pretrain, cluster: Cluster, run_dir: RunDir, *, build: Callable[..., Policy] = Policy.build) -> None:
    """Train for `num_steps` or `max_seconds`, from the run's last checkpoint where there is one. On every rank.

    Args:
        build: makes the policy, as `Policy.build` does.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    mesh = meshes.start(cluster.trainer, device=cluster.device, seed=config.seed)
    spec, tokenized = mesh.from_first(lambda: _corpus(config, run_dir))
    corpus = Corpus(tokenized)
    epochs = Epochs(corpus.lengths, config.documents_per_step, seed=config.seed, keep_rest=False)
    batches = Batches(
        corpus,
        epochs,
        rank=mesh.data_rank,
        num_ranks=mesh.layout.dp,
        chunk_tokens=config.batch.chunk_tokens,
    )
    with TrainingRun(config, run_dir, mesh, num_steps=config.num_steps, max_seconds=config.max_seconds) as run:
        policy = build(
            spec,
            mesh,
            config.optimizer,
            config.batch,
            mtp="joint",
            mtp_loss_weight=config.mtp_loss_weight,
            expert_bias_rate=config.expert_bias_rate,
            seed=config.seed,
            first="loaded" if config.model.path else "drawn",
        )
        run.begin(
            policy,
            first_weights=lambda: _first_weights(policy, config.model.path),
            tokenizer=config.model.path or run_dir.tokenizer,
            carried=[TextPosition(epochs)],
            taught=LearntDocuments(epochs, corpus, config.model.path or run_dir.tokenizer, mesh),
        )
        for step in run.steps():
            with Stopwatch() as watch:
                documents, tokens = batches.share(step)
                lr = run.learning_rate()
                learned = policy.forward_backward(documents, likelihood_loss)
                updated = run.update(learned, lr)
            run.after_step(learned | updated | {"tokens": tokens}, watch.seconds)
    run.finish()


class TextPosition(Carried):
    """Where in the text a run stands."""

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs

    def state(self, step: int) -> dict[str, Any]:
        return {"place": self._epochs.place(step)}


def _corpus(config: Pretrain, run_dir: RunDir) -> tuple[ModelSpec, list[Document]]:
    """The model with the text's vocabulary, and the text; also leaves the tokenizer and the list of questions."""
    data = config.data
    seed = config.seed * 1000 + data.part
    others = round(data.num_documents * config.text.share) if config.text is not None else 0
    num_tasks = data.num_documents - others
    texts = documents(
        config.tasks, data.styles, num_tasks, seed, exclude=HELD_OUT, languages=data.step_words,
        slips=data.slips, examples=data.examples,
    )  # fmt: skip
    if config.text is not None:
        texts += constraint_text.documents(config.text, others, seed, exclude=HELD_OUT)
        random.Random(f"{seed}/order of texts").shuffle(texts)
    files.write_jsonl(
        run_dir.path / "trained_on.jsonl",
        ({"question": q} for q in sorted({q for t in texts for q in (t.question, *t.shown)})),
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
    return train_tokenizer(sample, config.data.vocab_size, run_dir.tokenizer)


def _spec(config: Pretrain, tokenizer: Any) -> ModelSpec:
    if config.model.path is not None:
        spec = read_language_model(config.model.path)
        check_tokenizer(spec, tokenizer, config.model.path)
        return with_ends(spec, tokenizer)
    assert config.model.config is not None, "the recipe demands it"
    vocab_size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return read_language_model(config.model.config).with_vocab(
        vocab_size, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
    )


def _first_weights(policy: Policy, base: Path | None) -> None:
    """Those of the base where there is one, and otherwise the random ones that the policy was built with."""
    if base is not None:
        load_weights(policy, base)


class Corpus:
    """The documents, as the loop wants them."""

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self.lengths = [len(d.token_ids) for d in documents]
        self.num_targets = [d.num_targets for d in documents]

    def document(self, i: int, weight: float) -> Document:
        """Document i, each of whose targets weighs `weight` in the loss."""
        d = self._documents[i]
        return Document(d.token_ids, d.learn_from, {"weight": Float32s.repeated(weight, d.num_targets)})
