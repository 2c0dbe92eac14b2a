"""Supervised fine-tuning: cold start (report 2.3.1), the 800K samples (2.3.3) and the distilled students (2.4).

    conversations -> tokens and the assistant's turns (data/chat.py) -> epochs of batches -> loss on those turns alone

Deviations from the report are in what it leaves open, each by name: the batch counts conversations, or packed chunks
(`batch_unit`); the loss is a mean over the batch's target tokens (`reduction`); MTP and the expert bias (`mtp`,
`expert_bias`; the MTP loss is a mean over tokens whatever `reduction` says). An epoch's last batch has what is left,
so that every conversation comes once in each.
"""

from collections.abc import Callable
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.config.schema import SFT
from r1mega.data.chat import Chat
from r1mega.data.epochs import Epochs
from r1mega.data.sft_data import opened, prepare
from r1mega.data.special_tokens import with_ends
from r1mega.data.token_store import TokenStore
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import ConfigError, DataError
from r1mega.families.registry import check_lengths, check_tokenizer, read_stage_model, with_positions
from r1mega.families.spec import ModelSpec
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir
from r1mega.stages import tokenizers
from r1mega.stages.saving import Saves
from r1mega.stages.supervised import Batches, Loop, Validation, restore, summary
from r1mega.trainer import mesh
from r1mega.trainer.policy import Policy
from r1mega.weights import hf_io
from r1mega.weights.megatron_io import load_weights


def run(config: SFT, cluster: Cluster, run_dir: RunDir, *, build: Callable[..., Policy] = Policy.build) -> None:
    """Train for `num_epochs`, from the run's last checkpoint where there is one. On every rank.

    Args:
        build: makes the policy, as `Policy.build` does.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved.
    """
    ours = mesh.start(cluster.trainer, device=cluster.device, seed=config.seed)
    spec = ours.from_first(lambda: _prepare(config, run_dir))
    data = opened(run_dir.path / "data", "train")
    epochs = Epochs(
        data.lengths,
        config.batch_size,
        seed=config.seed,
        unit=config.batch_unit,
        chunk_tokens=config.data.max_tokens,
    )
    num_steps = _num_steps(config, epochs)
    chunk_tokens = config.batch.chunk_tokens
    with Interrupt() as interrupt:
        policy, state = _policy(config, ours, run_dir, spec, data, build)
        batches = Batches(data, epochs, ours, chunk_tokens, config.reduction)
        validation = None
        if config.validation is not None:
            held_out = opened(run_dir.path / "data", "validation")
            validation = Validation(policy, held_out, chunk_tokens, config.validation.every_steps)
        with Saves(policy, run_dir, config.save, run_dir.tokenizer) as saves:
            loop = Loop(config, run_dir, policy, batches, state, saves, num_steps, validation)
            loop.run(interrupt)
        rss = sum(ours.gather(peak_rss_gib()))
    hf_io.export(policy, run_dir.hf, run_dir.tokenizer, identity=run_dir.lineage.policy(loop.step))
    if ours.first:
        files.write_json(run_dir.path / "summary.json", _summary(run_dir, rss, data, epochs))


def _prepare(config: SFT, run_dir: RunDir) -> ModelSpec:
    """The model; leaves the tokenised data, the tokenizer with the template it was written by, and the questions."""
    folder = config.model.path
    assert folder is not None, "config.checks demands it"
    spec = with_positions(read_stage_model(config.model), config.max_positions)
    check_lengths(config.data.max_tokens, spec, config.batch, "data.max_tokens")
    tokenizer = load_tokenizer(folder)
    check_tokenizer(spec, tokenizer, folder)
    spec = with_ends(spec, tokenizer)
    chat = Chat(tokenizer, spec.ends, config.chat_template)
    resumed = bool(run_dir.saved_steps())
    prepare(config, chat, run_dir.path / "data", run_dir.path / "trained_on.jsonl", resumed=resumed)
    tokenizers.write(folder, run_dir.tokenizer, chat.template)
    return spec


def _num_steps(config: SFT, epochs: Epochs) -> int:
    """Optimiser steps of the stage. Raises ConfigError where warm-up takes them all."""
    num_steps = config.num_epochs * epochs.steps_per_epoch
    num_steps = min(num_steps, config.max_steps) if config.max_steps else num_steps
    if config.optimizer.warmup_steps >= num_steps:
        raise ConfigError(
            f"optimizer.warmup_steps: {config.optimizer.warmup_steps} leaves no step at the full learning rate; the "
            f"stage has {num_steps}: {config.num_epochs} epochs of {epochs.steps_per_epoch}, or max_steps"
        )
    return num_steps


def _policy(
    config: SFT, ours: mesh.Mesh, run_dir: RunDir, spec: ModelSpec, data: TokenStore, build: Callable[..., Policy]
) -> tuple[Policy, dict[str, Any]]:
    """The policy at the run's last checkpoint, or at its initial weights; and where the run stands.

    Raises:
        DataError: the checkpoint's place is one in other data.
    """
    policy = build(
        spec,
        ours,
        config.optimizer,
        config.batch,
        mtp=config.mtp,
        mtp_loss_weight=config.mtp_loss_weight,
        expert_bias_rate=config.expert_bias_rate if config.expert_bias == "update" else 0.0,
        seed=config.seed,
    )
    digest = data.about["digest"]
    if (state := restore(policy, run_dir)) is not None:
        if state["data"] != digest:
            raise DataError(
                f"{run_dir.path}: --resume with other conversations, template or tokenizer than the run's own (their "
                f"tokens have digest {digest}, the checkpoint's {state['data']}): put them back, or start a new run"
            )
        return policy, state
    assert config.model.path is not None, "config.checks demands it"
    load_weights(policy, config.model.path)
    return policy, {"step": 0, "seconds": 0.0, "data": digest}


def _summary(run_dir: RunDir, rss: float, data: TokenStore, epochs: Epochs) -> dict[str, Any]:
    result = summary("sft", run_dir, rss)
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
