"""Laws between settings, each answered in one sentence: what is wrong and what would be right.

A fault is a string; the loader raises one ConfigError with all of them.
"""

import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from r1mega.config import pipeline_stages
from r1mega.config.cluster import Cluster, TrainerLayout
from r1mega.config.schema import GRPO, SFT, Evaluate, Model, Pipeline, Pretrain, Stage
from r1mega.errors import ConfigError


def raise_if_any(path: Path, faults: Iterable[str]) -> None:
    """Raises ConfigError naming `path` and every fault, if there is one."""
    faults = list(faults)
    if faults:
        raise ConfigError("\n  ".join([f"{path}: {len(faults)} fault(s)", *faults]))


NO_MAKERS: Mapping[str, str] = {}


def stage_faults(stage: Stage, *, model_exists: bool = True, made_by: Mapping[str, str] = NO_MAKERS) -> list[str]:
    """Faults of a stage config by itself.

    Args:
        model_exists: off passes over a model folder that is not there yet.
        made_by: setting -> the command that makes what it names, for messages.
    """
    faults = _model_faults(stage.model, must_exist=model_exists, made_by=made_by)
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


def layout_faults(cluster: Cluster) -> list[str]:
    """Faults of the trainer's layout by itself; `families.registry.check_layout` holds it against a model."""
    layout = cluster.trainer
    faults: list[str] = []
    if layout.cp > 1 and not layout_runs_transformer_engine(cluster):
        faults.append("cluster.trainer.cp: context parallelism needs Transformer Engine (CUDA); set it to 1")
    if cluster.gpu not in (None, "hopper", "blackwell") and layout_runs_transformer_engine(cluster):
        faults.append(
            f"cluster.gpu: {cluster.gpu!r}: Transformer Engine's layers attend over packed rows, for which cuDNN has "
            "kernels on Hopper and Blackwell alone (elsewhere memory grows with the square of a row); use those, or "
            'set trainer.transformer_engine = "off" for slow layers'
        )
    if layout.tp > 1 and not layout.sp:
        faults.append("cluster.trainer.sp: tensor parallelism trains mixtures of experts with sp = true only")
    if (layout.tp * layout.dp) % layout.ep:
        faults.append(
            f"cluster.trainer.ep: {layout.ep} does not divide the tp x dp = {layout.tp * layout.dp} ranks that "
            "experts are spread over"
        )
    elif (layout.tp * layout.dp) % (layout.ep * layout.expert_tp):
        faults.append(
            f"cluster.trainer.etp: ep {layout.ep} x etp {layout.expert_tp} does not divide the tp x dp = "
            f"{layout.tp * layout.dp} ranks that experts are spread over"
        )
    if layout.ep == 1 and layout.expert_tp != layout.tp:
        faults.append(
            f"cluster.trainer.etp: {layout.expert_tp} with tp = {layout.tp} and ep = 1: Megatron then sums no "
            "gradient of the experts over the tensor-parallel ranks; leave etp out, or set ep"
        )
    if cluster.device == "cpu" and layout.token_dispatcher == "flex":
        faults.append(
            'cluster.trainer.dispatcher: "flex" is DeepEP\'s CUDA kernels; on the CPU set "alltoall" or "allgather"'
        )
    elif layout.token_dispatcher == "flex" and layout.expert_tp * layout.ep == 1:
        faults.append(
            'cluster.trainer.dispatcher: "flex" sends tokens between ranks that divide the experts, and ep x etp '
            "is 1; leave it out"
        )
    faults += _pipeline_faults(layout)
    faults += _recompute_faults(cluster)
    return faults + _precision_faults(cluster)


def layout_runs_transformer_engine(cluster: Cluster) -> bool:
    """Whether the trainer's layers are Transformer Engine's; `trainer.layer_spec` finds out if it is installed."""
    return cluster.device == "cuda" and cluster.trainer.transformer_engine == "auto"


def _precision_faults(cluster: Cluster) -> list[str]:
    """What dtypes and FP8 recipes ask for and the device cannot do, as far as it is known without looking at it."""
    layout, precision, faults = cluster.trainer, cluster.trainer.precision, list[str]()
    if cluster.device == "cpu":
        if layout.dtype != "fp32":
            faults.append(f"cluster.trainer.dtype: {layout.dtype!r}; the CPU trains in fp32 only")
        faults += [
            f"cluster.trainer.precision.{name}: {value!r}; the CPU trains in fp32 only"
            for name, value in (("gradients", precision.gradients), ("moments", precision.moments))
            if value != "fp32"
        ]
        if layout.offload_optimizer:
            faults.append("cluster.trainer.offload_optimizer: on the CPU the state is in host memory; leave it out")
    elif layout.dtype == "fp32" and layout_runs_transformer_engine(cluster):
        faults.append(
            "cluster.trainer.dtype: 'fp32', for which Transformer Engine has no attention over packed rows; set "
            'dtype = "bf16", or transformer_engine = "off"'
        )
    elif layout.dtype == "fp32" and precision.gradients == "bf16":
        faults.append("cluster.trainer.precision.gradients: 'bf16' with dtype fp32 would round away what fp32 is for")
    if precision.fp8 == "none":
        if precision.bf16_layers_at_start or precision.bf16_layers_at_end:
            faults.append("cluster.trainer.precision.bf16_layers_at_*: of no meaning without fp8; leave them out")
        return faults
    if not layout_runs_transformer_engine(cluster):
        faults.append(
            f'cluster.trainer.precision.fp8: {precision.fp8!r} needs Transformer Engine (device = "cuda", '
            'transformer_engine = "auto"); set it to "none"'
        )
    elif layout.dtype != "bf16":
        faults.append(f"cluster.trainer.precision.fp8: {precision.fp8!r} needs dtype bf16, not {layout.dtype!r}")
    if precision.fp8 == "mxfp8" and cluster.gpu == "hopper":
        faults.append(
            "cluster.trainer.precision.fp8: 'mxfp8' needs Blackwell, cluster.gpu is 'hopper'; set 'blockwise'"
        )
    return faults


def _pipeline_faults(layout: TrainerLayout) -> list[str]:
    faults: list[str] = []
    if layout.vpp > 1 and layout.pp == 1:
        faults.append(
            f"cluster.trainer.vpp: {layout.vpp} with pp = 1: chunks are interleaved between pipeline ranks; set pp "
            "above 1, or leave vpp out"
        )
    elif layout.pipeline:
        try:
            found = pipeline_stages.faults(pipeline_stages.expand(layout.pipeline), layout.pp, layout.vpp)
        except ValueError as error:
            found = [str(error)]
        faults += [f"cluster.trainer.pipeline: {layout.pipeline!r}: {fault}" for fault in found]
    return faults


def _recompute_faults(cluster: Cluster) -> list[str]:
    recompute = cluster.trainer.recompute
    faults: list[str] = []
    if recompute.granularity == "selective" and not recompute.modules:
        faults.append(
            'cluster.trainer.recompute.modules: say what "selective" computes again, as in ["core_attn", "mlp"]'
        )
    if recompute.granularity != "selective" and recompute.modules:
        faults.append(
            f"cluster.trainer.recompute.modules: {recompute.granularity!r} does not look at them; set granularity = "
            '"selective", or leave them out'
        )
    if "moe_act" in recompute.modules and not layout_runs_transformer_engine(cluster):
        faults.append(
            "cluster.trainer.recompute.modules: 'moe_act' is of Transformer Engine's experts (CUDA); leave it out"
        )
    return faults


def _model_faults(model: Model, *, must_exist: bool, made_by: Mapping[str, str]) -> list[str]:
    if model.config is None and model.path is None:
        return ["model: give config (an architecture, as a config.json), path (a Hugging Face folder), or both"]
    faults: list[str] = []
    if model.config is not None and not model.config.is_file():
        faults.append(f"model.config: no file {model.config}")
    if model.path is not None and must_exist and not (model.path / "config.json").is_file():
        may_come = model.config is not None and not model.path.exists()
        remedy = f"; made by `{made_by['model.path']}`" if "model.path" in made_by else ""
        faults += [] if may_come else [f"model.path: no file {model.path / 'config.json'}{remedy}"]
    return faults


def missing_weights(model: Model, made_by: Mapping[str, str] = NO_MAKERS) -> str | None:
    """What is to be done about a `model.path` that `model.config` describes and that is not there yet."""
    if model.config is None or model.path is None or model.path.exists():
        return None
    if "model.path" in made_by:
        return f"model.path: {model.path} is not there yet; made by `{made_by['model.path']}`"
    name = model.config.parent.name
    return (
        f"model.path: {model.path} is not there yet: download the weights (`hf download OWNER/{name} --local-dir "
        f"{model.path}`), run the stage that writes it, or point model.path at a folder that has them"
    )


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


def missing_data(stage: Stage, made_by: Mapping[str, str] = NO_MAKERS) -> str | None:
    """What is to be done about files and folders of conversations that are not there yet."""
    if not isinstance(stage, SFT):
        return None
    named = [("data", stage.data), *([("validation", stage.validation)] if stage.validation else [])]
    missing = [f"{section}.files: {file}" for section, of in named for file in of.files if not file.is_file()]
    missing += [
        f"{section}.dataset: {of.dataset}"
        for section, of in named
        if of.dataset.startswith("/") and not Path(of.dataset).exists()
    ]
    if not missing:
        return None
    if "data.files" in made_by and all(line.startswith("data.files") for line in missing):
        return f"{'; '.join(missing)}: not there yet; made by `{made_by['data.files']}`"
    return f"{'; '.join(missing)}: not there yet; run the stage that writes it, or name other files with --set"


def missing_ability(stage: Stage, cluster: Cluster) -> str | None:
    """What a config asks for that is not built yet, though the rest of it can be checked."""
    if cluster.device == "cuda" and isinstance(stage, GRPO | Evaluate):
        return (
            f"cluster.device = cuda: rollout servers are started on CPUs alone as yet, so a {stage.stage} stage does "
            "not run on GPUs; supervised stages and the trainer do"
        )
    return None


def _grpo_faults(stage: GRPO) -> list[str]:
    faults: list[str] = []
    rollout, objective = stage.rollout, stage.objective
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
    if stage.questions is not None and not stage.questions.is_file():
        faults.append(f"questions: no file {stage.questions}")
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
