"""Supervised fine-tuning: cold start (report 2.3.1), the 800K samples (2.3.3) and the distilled students (2.4).

    conversations -> tokens and the assistant's turns (data/chat.py) -> epochs of batches -> loss on those turns alone

Deviations from the report are in what it leaves open, each by name: the batch counts conversations, or packed chunks
(`batch_unit`); the loss is a mean over the batch's target tokens (`reduction`); MTP and the expert bias (`mtp`,
`expert_bias`; the MTP loss is a mean over tokens whatever `reduction` says). An epoch's last batch has what is left,
so that every conversation comes once in each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1mega.algos.likelihood import likelihood_loss
from r1mega.config.cluster import Cluster
from r1mega.config.inputs import missing
from r1mega.data.batches import Batches
from r1mega.data.chat import Chat
from r1mega.data.epochs import Epochs
from r1mega.data.sft_data import Wanted, prepare
from r1mega.data.special_tokens import with_ends
from r1mega.data.token_store import TokenStore
from r1mega.data.tokenised import opened
from r1mega.data.tokenizer import load_tokenizer
from r1mega.families.registry import check_tokenizer, read_stage_model, with_positions
from r1mega.families.spec import ModelSpec
from r1mega.layout.laws import check_lengths
from r1mega.recipe.sft import SFT
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.stages import tokenizers
from r1mega.stages.records import Records
from r1mega.stages.rows import DataPosition, Validation
from r1mega.stages.run import TrainingRun
from r1mega.stages.taught import LearntDocuments
from r1mega.trainer import mesh as meshes
from r1mega.trainer.policy import Policy
from r1mega.trainer.validation import mean_loss
from r1mega.weights.megatron_io import load_weights


def run(config: SFT, cluster: Cluster, run_dir: RunDir, *, build: Callable[..., Policy] = Policy.build) -> None:
    """Train for `num_epochs`, from the run's last checkpoint where there is one. On every rank.

    Args:
        build: makes the policy, as `Policy.build` does.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    mesh = meshes.start(cluster.trainer, device=cluster.device, seed=config.seed)
    spec = mesh.from_first(lambda: _prepare(config, run_dir))
    data = opened(run_dir.path / "data", "train")
    epochs = Epochs(
        data.lengths,
        config.batch_size,
        seed=config.seed,
        unit=config.batch_unit,
        chunk_tokens=config.data.max_tokens,
    )
    batches = Batches(
        data,
        epochs,
        rank=mesh.data_rank,
        num_ranks=mesh.layout.dp,
        chunk_tokens=config.batch.chunk_tokens,
        reduction=config.reduction,
    )
    steps = config.num_steps(epochs.steps_per_epoch)
    with TrainingRun(config, run_dir, mesh, num_steps=steps, max_seconds=config.max_seconds) as run:
        policy = _policy(config, mesh, spec, build)
        run.begin(
            policy,
            first_weights=lambda: load_weights(policy, _base(config)),
            tokenizer=run_dir.tokenizer,
            carried=[DataPosition(data, epochs, run_dir)],
            taught=LearntDocuments(epochs, data, run_dir.tokenizer, mesh, run_dir.path / "data" / "train"),
            evaluation=_validation(config, policy, run_dir, run.records),
        )
        for step in run.steps():
            with Stopwatch() as watch:
                documents, tokens = batches.share(step)
                lr = run.learning_rate()
                learned = policy.forward_backward(documents, likelihood_loss)
                updated = run.update(learned, lr)
            run.after_step(learned | updated | {"tokens": tokens}, watch.seconds)
    run.finish(lambda: _summary(run.summary(), run_dir, data, epochs))


def _prepare(config: SFT, run_dir: RunDir) -> ModelSpec:
    """The model; leaves the tokenised data, the tokenizer with the template it was written by, and the questions."""
    folder = _base(config)
    spec = with_positions(read_stage_model(config.model), config.max_positions)
    check_lengths(config.data.max_tokens, spec, config.batch, "data.max_tokens")
    tokenizer = load_tokenizer(folder)
    check_tokenizer(spec, tokenizer, folder)
    spec = with_ends(spec, tokenizer)
    chat = Chat(tokenizer, spec.ends, config.chat_template)
    resumed = bool(run_dir.saved_steps())
    wanted = Wanted(config.data, config.validation, config.seed, missing(config.inputs()))
    prepare(wanted, chat, run_dir.path / "data", run_dir.path / "trained_on.jsonl", resumed=resumed)
    tokenizers.write(folder, run_dir.tokenizer, chat.template)
    return spec


def _validation(config: SFT, policy: Policy, run_dir: RunDir, records: Records) -> Validation | None:
    """Mean loss of conversations that are not trained on."""
    if config.validation is None:
        return None
    texts = opened(run_dir.path / "data", "validation")

    def measure() -> dict[str, float]:
        return {"validation/loss": mean_loss(policy, texts, config.batch.chunk_tokens)}

    every, told = config.validation.every_steps, {"validation/loss": "loss {:.4f}"}
    return Validation(every, measure, policy.mesh, run_dir, records, told)


def _policy(config: SFT, mesh: meshes.Mesh, spec: ModelSpec, build: Callable[..., Policy]) -> Policy:
    return build(
        spec,
        mesh,
        config.optimizer,
        config.batch,
        mtp=config.mtp,
        mtp_loss_weight=config.mtp_loss_weight,
        expert_bias_rate=config.expert_bias_rate if config.expert_bias == "update" else 0.0,
        seed=config.seed,
        first="loaded",
    )


def _base(config: SFT) -> Path:
    assert config.model.path is not None, "the recipe demands it"
    return config.model.path


def _summary(result: dict[str, Any], run_dir: RunDir, data: TokenStore, epochs: Epochs) -> dict[str, Any]:
    """`result`, and what is SFT's own: epochs, what became of the conversations, validation."""
    counted = ("conversations", "truncated", "dropped", "held_out", "documents", "tokens", "targets")
    validated = [row["validation/loss"] for row in run_dir.metrics() if row["kind"] == "validation"]
    return {
        **result,
        "epochs": result["steps"] / epochs.steps_per_epoch,
        "data": {name: data.about.get(name, 0) for name in counted},
        "validation_loss": {"before": validated[0], "best": min(validated), "after": validated[-1]}
        if validated
        else {},
    }
