"""Laws of a trainer's layout by itself, on its device; `laws` holds it against a model."""

from r1mega.config import pp_layout
from r1mega.config.cluster import Cluster, TrainerLayout


def layout_faults(cluster: Cluster) -> list[str]:
    """Faults of the trainer's layout by itself."""
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
    if (layout.least_dp or 1) > layout.dp:
        faults.append(
            f"cluster.trainer.least_dp: {layout.least_dp} is more than dp = {layout.dp}, which it is the lower end of"
        )
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
    """Whether layers are Transformer Engine's; `trainer.network.layer_spec` finds out if that is installed."""
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
        if layout.deterministic:
            faults.append("cluster.trainer.deterministic: on the CPU every step is; leave it out")
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
            found = pp_layout.faults(pp_layout.expand(layout.pipeline), layout.pp, layout.vpp)
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
