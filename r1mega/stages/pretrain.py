"""Pretraining of a tiny base model (V3 report 2.2): next-token cross-entropy, MTP loss, expert-bias balancing.

From random weights (`model.config`) on text made from tasks, with a tokenizer trained on that text; or further
from a base (`model.path`) with the base's tokenizer. Deviation from the V3 report: no sequence-wise auxiliary
loss; the learning rate follows one cosine instead of the report's stages.
"""

from collections.abc import Callable
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.config.schema import Pretrain
from r1mega.data.epochs import Epochs
from r1mega.data.pretrain_text import TextDocument, documents, tokenize
from r1mega.data.special_tokens import with_ends
from r1mega.data.split import HELD_OUT
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.families.registry import check_lengths, check_tokenizer, read_model
from r1mega.families.spec import ModelSpec
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document
from r1mega.stages.saving import Saves
from r1mega.stages.supervised import Batches, Loop, restore, summary
from r1mega.trainer import mesh
from r1mega.trainer.policy import Policy
from r1mega.weights import hf_io
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
    ours = mesh.start(cluster.trainer, device=cluster.device, seed=config.seed)
    spec, tokenized = ours.from_first(lambda: _corpus(config, run_dir))
    corpus = Corpus(tokenized)
    epochs = Epochs(corpus.lengths, config.documents_per_step, seed=config.seed, keep_rest=False)
    with Interrupt() as interrupt:
        policy, state = _policy(config, ours, run_dir, spec, build)
        tokenizer_dir = config.model.path or run_dir.path / "tokenizer"
        batches = Batches(corpus, epochs, ours, config.batch.chunk_tokens)
        with Saves(policy, run_dir, config.save, tokenizer_dir) as saves:
            loop = Loop(config, run_dir, policy, batches, state, saves, config.num_steps)
            loop.run(interrupt)
        rss = sum(ours.gather(peak_rss_gib()))
    hf_io.export(policy, run_dir.hf, tokenizer_dir, identity=run_dir.lineage.policy(loop.step))
    if ours.first:
        files.write_json(run_dir.path / "summary.json", summary("pretrain", run_dir, rss))


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
        return with_ends(spec, tokenizer)
    assert config.model.config is not None, "config.checks demands it"
    vocab_size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return read_model(config.model.config).with_vocab(
        vocab_size, bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
    )


def _policy(
    config: Pretrain, ours: mesh.Mesh, run_dir: RunDir, spec: ModelSpec, build: Callable[..., Policy]
) -> tuple[Policy, dict[str, Any]]:
    """The policy at the run's last checkpoint, or at its initial weights; and where the run stands."""
    policy = build(
        spec,
        ours,
        config.optimizer,
        config.batch,
        mtp="joint",
        mtp_loss_weight=config.mtp_loss_weight,
        expert_bias_rate=config.expert_bias_rate,
        seed=config.seed,
    )
    if (state := restore(policy, run_dir)) is not None:
        return policy, state
    if config.model.path is not None:
        load_weights(policy, config.model.path)
    return policy, {"step": 0, "seconds": 0.0}


class Corpus:
    """The documents, as the loop wants them."""

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self.lengths = [len(d.token_ids) for d in documents]
        self.num_targets = [d.num_targets for d in documents]

    def document(self, i: int, weight: float) -> Document:
        """Document i, each of whose targets weighs `weight` in the loss."""
        d = self._documents[i]
        return Document(d.token_ids, d.learn_from, {"weight": (weight,) * d.num_targets})
