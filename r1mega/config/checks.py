"""Laws between settings, each answered in one sentence: what is wrong and what would be right.

A fault is a string; the loader raises one ConfigError with all of them.
"""

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path

from r1mega.config.cluster import Cluster
from r1mega.config.layout_checks import layout_faults
from r1mega.config.schema import GRPO, SFT, Evaluate, Model, Pipeline, Pretrain, Stage
from r1mega.errors import ConfigError


def raise_if_any(path: Path, faults: Iterable[str]) -> None:
    """Raises ConfigError naming `path` and every fault, if there is one."""
    faults = list(faults)
    if faults:
        raise ConfigError("\n  ".join([f"{path}: {len(faults)} fault(s)", *faults]))


def stage_faults(stage: Stage) -> list[str]:
    """Faults of a stage config by itself; weights and data that are not there yet are none (`config.inputs`)."""
    faults = _model_faults(stage.model)
    if isinstance(stage, GRPO | Evaluate) and stage.model.path is None:
        faults.append("model.path: the engine needs a Hugging Face folder to start from, not a bare config")
    elif isinstance(stage, GRPO | Evaluate) and stage.model.path and (stage.model.path / ".metadata").is_file():
        path = stage.model.path
        faults.append(
            f"model.path: {path} is a Megatron checkpoint, the engine needs a Hugging Face folder to start "
            "from; `r1mega convert to-hf` writes it"
        )
    if not isinstance(stage, Evaluate) and stage.save.keep_every % stage.save.every_steps:
        faults.append(
            f"save.keep_every: {stage.save.keep_every} is no multiple of save.every_steps = "
            f"{stage.save.every_steps}, so that not all of these steps are saved"
        )
    if isinstance(stage, GRPO | Evaluate):
        faults += _stop_faults(stage.sampling.stop)
    if isinstance(stage, Pretrain):
        faults += _pretrain_faults(stage)
    elif isinstance(stage, SFT):
        faults += _sft_faults(stage)
    elif isinstance(stage, GRPO):
        faults += _grpo_faults(stage)
    if isinstance(stage, Pretrain | GRPO) and stage.optimizer.warmup_steps >= stage.num_steps:
        faults.append(
            f"optimizer.warmup_steps: {stage.optimizer.warmup_steps} leaves no step at the full learning rate; "
            f"num_steps is {stage.num_steps}"
        )
    return faults


def cluster_faults(stage: Stage, cluster: Cluster) -> list[str]:
    """Faults of a stage on a machine."""
    faults = layout_faults(cluster)
    if isinstance(stage, GRPO | Evaluate) and importlib.util.find_spec("vllm") is None:
        faults.append("vLLM is not installed in this environment; run `make env`")
    return faults


def _model_faults(model: Model) -> list[str]:
    if model.config is None and model.path is None:
        return ["model: give config (an architecture, as a config.json), path (a Hugging Face folder), or both"]
    faults: list[str] = []
    if model.config is not None and not model.config.is_file():
        faults.append(f"model.config: no file {model.config}")
    if model.path is not None and model.path.exists() and not (model.path / "config.json").is_file():
        faults.append(
            f"model.path: no file {model.path / 'config.json'}: name the folder that has config.json, weights and "
            "tokenizer; one that is being downloaded is not complete yet"
        )
    return faults


def _pretrain_faults(stage: Pretrain) -> list[str]:
    faults: list[str] = []
    styles = stage.data.styles
    total = styles.think + styles.tags + styles.steps + styles.plain
    if not math.isclose(total, 1.0, abs_tol=1e-9):
        faults.append(f"data.styles: the shares sum to {total:g}, they must sum to 1")
    if stage.documents_per_step > stage.data.num_documents:
        faults.append(
            f"documents_per_step: {stage.documents_per_step} exceeds data.num_documents = {stage.data.num_documents}"
        )
    return faults


def _sft_faults(stage: SFT) -> list[str]:
    """Data that is not there yet is no fault: an earlier stage may write it; the stage itself looks for it."""
    faults: list[str] = []
    if stage.model.path is None:
        faults.append(
            "model.path: SFT starts from a model's weights and its tokenizer: give the folder that has them"
        )
    if stage.chat_template is not None and not stage.chat_template.is_file():
        faults.append(f"chat_template: no file {stage.chat_template}; configs/chat_templates has some")
    if not stage.data.files and not stage.data.dataset:
        faults.append("data: give files (JSONL or parquet), or dataset (a name)")
    if stage.batch.chunk_tokens < stage.data.max_tokens:
        faults.append(
            f"batch.chunk_tokens: {stage.batch.chunk_tokens} is less than data.max_tokens = {stage.data.max_tokens}, "
            "and a chunk holds whole conversations"
        )
    validation = stage.validation
    if validation is not None and bool(validation.files or validation.dataset) == bool(validation.share):
        faults.append("validation: give files or dataset (conversations of its own), or share, not both or neither")
    if stage.max_steps and stage.optimizer.warmup_steps >= stage.max_steps:
        faults.append(
            f"optimizer.warmup_steps: {stage.optimizer.warmup_steps} leaves no step at the full learning rate; "
            f"max_steps is {stage.max_steps}"
        )
    return faults


def _stop_faults(stop: tuple[str, ...]) -> list[str]:
    """Stop strings that end every answer at once, or none; what needs the tokenizer: `data.special_tokens`."""
    faults: list[str] = []
    if "" in stop:
        faults.append("sampling.stop: an empty string would end every answer at once; leave it out")
    for place, string in enumerate(stop):
        others = [o for i, o in enumerate(stop) if o and o in string and i != place and (o != string or i < place)]
        if others:
            faults.append(
                f"sampling.stop: {string!r} ends no answer, since it contains {others[0]!r}, which ends it no later; "
                "take one of them out"
            )
    return faults


def _grpo_faults(stage: GRPO) -> list[str]:
    faults: list[str] = []
    rollout, objective = stage.rollout, stage.objective
    if stage.sampling.top_p < 1:
        faults.append(
            f"sampling.top_p: {stage.sampling.top_p} renormalises the engine's log-probabilities over the tokens it "
            "keeps, so they would be of another distribution than the policy's, which GRPO compares with them token "
            "by token; leave it at 1 here (an evaluate stage takes it)"
        )
    outputs = rollout.num_prompts * objective.group_size
    if outputs % rollout.num_minibatches:
        faults.append(
            f"rollout.num_minibatches: {outputs} outputs ({rollout.num_prompts} prompts x group_size "
            f"{objective.group_size}) do not split evenly into {rollout.num_minibatches} mini-batches"
        )
    if stage.num_steps % rollout.num_minibatches:
        faults.append(
            f"num_steps: {stage.num_steps} optimiser steps are no whole number of rollouts of "
            f"{rollout.num_minibatches} steps"
        )
    if stage.evaluation.every_steps % rollout.num_minibatches:
        faults.append(
            f"evaluation.every_steps: {stage.evaluation.every_steps} falls between two rollouts; use a multiple of "
            f"rollout.num_minibatches = {rollout.num_minibatches}"
        )
    if objective.reference_refresh_steps % rollout.num_minibatches:
        faults.append(
            f"objective.reference_refresh_steps: {objective.reference_refresh_steps} falls inside a rollout; use a "
            f"multiple of rollout.num_minibatches = {rollout.num_minibatches}"
        )
    if stage.questions is not None and stage.questions.is_dir():
        faults.append(f"questions: {stage.questions} is a folder; name a JSONL file")
    if stage.questions is None and rollout.num_prompts > stage.num_questions:
        faults.append(
            f"num_questions: {stage.num_questions} is less than one rollout's {rollout.num_prompts} prompts"
        )
    if stage.rewards.accuracy == 0 and stage.rewards.format == 0:
        faults.append("rewards: every weight is 0, so there is nothing to learn")
    return faults


def pipeline_faults(pipeline: Pipeline) -> list[str]:
    """Faults of a pipeline by itself; its stages are checked when each is about to run."""
    faults: list[str] = []
    seen: set[str] = set()
    for node in pipeline.stages:
        if node.name in seen:
            faults.append(f"stages: two are named {node.name!r}")
        for field, name in (("start", node.start), ("same_seconds_as", node.same_seconds_as)):
            if name and name not in seen:
                faults.append(f"stages.{node.name}.{field}: no earlier stage is named {name!r}")
        if not node.config.is_file():
            faults.append(f"stages.{node.name}.config: no file {node.config}")
        seen.add(node.name)
    return faults
