"""Laws of the engine's layout: by itself, on its device, beside the trainer, and held against a model.

Sources of what vLLM 0.32 asks for (below vllm/): config/model.py (heads over ranks), model_executor/layers/fused_moe
(experts over ranks), layers/quantization/utils/fp8_utils.py (blocks over ranks), engine/arg_utils.py (data parallel
for mixtures of experts, several hosts), config/scheduler.py (tokens of a step), config/kernel.py (MOE_BACKENDS).
"""

from collections.abc import Iterator, Sequence

from r1mega.config.cluster import GLOO_BUCKET_MIB, Cluster, RolloutLayout, WeightsLayout
from r1mega.families.spec import Grouped, ModelSpec
from r1mega.layout.engine_memory import FP8_BLOCK

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOE_BACKENDS = (
    "auto", "triton", "batched_triton", "deep_gemm", "cutlass", "flashinfer_trtllm", "flashinfer_cutlass",
    "flashinfer_cutedsl", "marlin",
)  # fmt: skip
"""Kernels of experts that NVIDIA's GPUs have for weights in bf16 or in FP8 blocks, by vLLM's names."""
OF_GPUS = ("max_num_batched_tokens", "cuda_graphs", "moe_backend", "gpus", "python", "compile_cache")
"""Settings of `rollout` that mean nothing on a CPU."""


def engine_layout_faults(cluster: Cluster) -> list[str]:
    """Faults of the engine's layout by itself and beside the trainer's."""
    layout = cluster.rollout
    faults = _placement_faults(cluster)
    if layout.launch and layout.attendants:
        faults.append("cluster.rollout.launch: attendants start servers (rollout.attendants); leave one of them out")
    if layout.port and (last := layout.port + layout.servers - 1) > 65535:
        faults.append(
            f"cluster.rollout.port: {layout.servers} servers listen at {layout.port} to {last}, and ports end at "
            "65535; take a lower one, or leave it out for free ones"
        )
    if cluster.device == "cpu":
        return faults + _faults_on_cpu(cluster)
    if layout.threads != RolloutLayout().threads:
        faults.append("cluster.rollout.threads: of kernels on the CPU, and servers compute on GPUs; leave it out")
    if layout.moe_backend not in MOE_BACKENDS:
        faults.append(
            f"cluster.rollout.moe_backend: {layout.moe_backend!r} is none of vLLM's kernels for these GPUs: "
            f"{', '.join(MOE_BACKENDS)}"
        )
    if layout.max_num_batched_tokens is not None and layout.max_num_batched_tokens < layout.max_num_seqs:
        faults.append(
            f"cluster.rollout.max_num_batched_tokens: {layout.max_num_batched_tokens} tokens of a step are fewer "
            f"than the {layout.max_num_seqs} answers that are computed at once, which take one each (max_num_seqs)"
        )
    if cluster.weights.fp8 and layout.dtype != "bf16":
        faults.append(f"cluster.weights.fp8: needs rollout.dtype bf16 for what is not FP8, not {layout.dtype!r}")
    if cluster.weights.fp8 and cluster.gpu == "ampere":
        faults.append("cluster.weights.fp8: Ampere has no FP8; leave it out")
    return faults + _transport_faults(cluster) + _gpu_faults(cluster)


def engine_model_faults(cluster: Cluster, spec: ModelSpec) -> list[str]:
    """Why the engine's ranks cannot hold a model: every size that they do not divide."""
    if spec.head == "score":
        named = spec.hf["architectures"][0]
        return [
            f"model: a reward model ({named}), which gives scores and predicts no tokens, so that the engine could "
            "sample none; give the folder of a language model"
        ]
    layout, attention, moe, faults = cluster.rollout, spec.attention, spec.moe, list[str]()
    ranks, backend = layout.tp * layout.dp, layout.moe_backend
    if isinstance(attention, Grouped) and attention.num_kv_heads % layout.tp and layout.tp % attention.num_kv_heads:
        faults.append(
            f"cluster.rollout.tp: {layout.tp} ranks of the engine neither divide nor multiply the model's "
            f"{attention.num_kv_heads} key-value heads (num_key_value_heads)"
        )
    divided = [
        ("tp", layout.tp, "attention heads (num_attention_heads)", spec.num_heads),
        ("tp", layout.tp, "channels of a dense layer (intermediate_size)", spec.ffn_size),
    ]
    if moe is not None:
        what = "channels of the shared experts (moe_intermediate_size x n_shared_experts)"
        divided.append(("tp", layout.tp, what, moe.shared_ffn_size))
        if layout.expert_parallel and ranks == 1:
            faults.append(
                "cluster.rollout.expert_parallel: true spreads experts over the ranks of a server, and it has one "
                "(tp x dp = 1); take more, or leave it out"
            )
        if layout.expert_parallel:
            divided.append(
                ("tp x dp", ranks, "experts (n_routed_experts), over which they are spread", moe.num_experts)
            )
        else:
            divided.append(("tp x dp", ranks, "channels of an expert (moe_intermediate_size)", moe.ffn_size))
    faults += [
        f"cluster.rollout.{axis}: {number} ranks of the engine do not divide the model's {size} {what}"
        for axis, number, what, size in divided
        if size % number
    ]
    if moe is None:
        faults += [
            f"cluster.rollout.{name}: {value}: of mixtures of experts, and the model is dense; {remedy}"
            for name, value, is_so, remedy in (
                ("dp", layout.dp, layout.dp > 1, "take more servers (rollout.servers)"),
                ("expert_parallel", "true", layout.expert_parallel, "leave it out"),
                ("moe_backend", repr(backend), backend != RolloutLayout().moe_backend, "leave it out"),
            )
            if is_so
        ]
    return faults + (_block_faults(layout, spec) if cluster.weights.fp8 and not faults else [])


def transport_notes(cluster: Cluster) -> list[str]:
    """A line for what is set of how weights travel and does not hold."""
    weights = cluster.weights
    if cluster.transport != "gloo" or "bucket_mib" not in weights.model_fields_set:
        return []
    if weights.bucket_mib <= GLOO_BUCKET_MIB:
        return []
    return [f"cluster.weights.bucket_mib: {weights.bucket_mib}; over gloo messages are of {GLOO_BUCKET_MIB} at most"]


def _placement_faults(cluster: Cluster) -> list[str]:
    placement, device = cluster.placement, cluster.device
    if placement is None or (placement == "cpu") == (device == "cpu"):
        return []
    right = "leave it out" if device == "cpu" else 'set "disaggregated" or "colocated"'
    return [f"cluster.placement: {placement!r} on device {device!r}; {right}"]


def _faults_on_cpu(cluster: Cluster) -> list[str]:
    """What means nothing on a CPU, and would be passed over."""
    layout, weights = cluster.rollout, cluster.weights
    usual, none = RolloutLayout(), WeightsLayout()
    faults = [
        f"cluster.rollout.{name}: of GPUs, and servers compute on the CPU here; leave it out"
        for name in OF_GPUS
        if getattr(layout, name) != getattr(usual, name)
    ]
    if weights.transport not in (None, "gloo"):
        faults.append(f"cluster.weights.transport: {weights.transport!r} is of GPUs; on the CPU leave it out")
    if weights.fp8 != none.fp8:
        faults.append("cluster.weights.fp8: of GPUs; on the CPU leave it out")
    return faults


def _transport_faults(cluster: Cluster) -> list[str]:
    layout, transport, together = cluster.rollout, cluster.transport, cluster.placed == "colocated"
    faults: list[str] = []
    if transport == "ipc" and not together:
        faults.append(
            "cluster.weights.transport: 'ipc' hands weights over within a GPU, which trainer and engine must share; "
            'set placement = "colocated", or transport = "nccl"'
        )
    if transport == "nccl" and together:
        faults.append(
            "cluster.weights.transport: 'nccl' takes one rank of a GPU, and colocated there are two, of trainer and "
            'engine; leave it out, which means "ipc"'
        )
    if transport == "ipc" and (where := _elsewhere(layout)) is not None:
        faults.append(
            "cluster.weights.transport: 'ipc' sends handles of GPU memory as pickles, which a server takes from "
            f"whoever reaches its port: on loopback alone, and {where}; leave both out"
        )
    return faults


def _elsewhere(layout: RolloutLayout) -> str | None:
    """By which setting servers are on another host; None: on this one."""
    if layout.launch:
        return "rollout.launch starts servers elsewhere"
    if layout.attendants:
        return "rollout.attendants are on nodes of their own"
    return None if layout.host in LOOPBACK else f"rollout.host is {layout.host!r}"


def _gpu_faults(cluster: Cluster) -> list[str]:
    """Whose GPUs are whose."""
    layout, trainer = cluster.rollout, cluster.trainer
    wanted = layout.servers * layout.tp * layout.dp
    sum_of_it = f"servers x tp x dp = {layout.servers} x {layout.tp} x {layout.dp} = {wanted}"
    of_node, faults = cluster.gpus_per_node, list[str]()
    if cluster.placed == "colocated":
        if wanted != trainer.ranks:
            faults.append(
                f"cluster.placement: 'colocated' gives each GPU a trainer's rank and a server's: {trainer.ranks} "
                f"rank(s) of the trainer, and rollout's {sum_of_it}; make them as many"
            )
        if of_node is not None and trainer.ranks > of_node:
            faults.append(
                f"cluster.placement: 'colocated' is of one node, and {trainer.ranks} ranks take more than its "
                f'{of_node} GPUs (cluster.gpus_per_node); set "disaggregated"'
            )
    own = range(min(trainer.ranks, of_node or trainer.ranks))
    if not layout.gpus:
        ranks = layout.tp * layout.dp
        if of_node is not None and ranks > of_node and ranks % of_node:
            faults.append(
                f"cluster.rollout.tp x dp: {ranks} ranks of a server fill no whole number of nodes of {of_node} GPUs "
                "(cluster.gpus_per_node), over which vLLM spreads them evenly"
            )
        return faults
    return faults + [f"cluster.rollout.gpus: {fault}" for fault in _faults_of_list(cluster, wanted, sum_of_it, own)]


def _faults_of_list(cluster: Cluster, wanted: int, sum_of_it: str, own: range) -> Iterator[str]:
    gpus, of_node = cluster.rollout.gpus, cluster.gpus_per_node
    if len(set(gpus)) != len(gpus):
        yield f"{_told(gpus)}: one is there twice"
    if len(gpus) != wanted:
        yield f"{len(gpus)} of them, and {sum_of_it}"
    if of_node is not None and (beyond := [gpu for gpu in gpus if gpu >= of_node]):
        yield f"{_told(beyond)}: a node's GPUs are 0 to {of_node - 1} (cluster.gpus_per_node)"
    if any(gpu < 0 for gpu in gpus):
        yield f"{_told(gpus)}: GPUs are counted from 0"
    shared = sorted(set(gpus) & set(own))
    if cluster.placed == "colocated":
        if set(gpus) != set(own):
            yield f"{_told(gpus)}: colocated, they are the trainer's, {_told(own)}; leave them out"
    elif shared:
        yield f'{_told(shared)}: the trainer\'s ranks have these; take others, or set placement = "colocated"'
    if (where := _elsewhere(cluster.rollout)) is not None:
        yield f"{where}, where they take what is given to them; leave gpus out"


def _told(gpus: Sequence[int]) -> str:
    return ", ".join(map(str, gpus))


def _block_faults(layout: RolloutLayout, spec: ModelSpec) -> list[str]:
    """Sizes of a rank's matrices in which FP8 blocks do not come out even."""
    attention, moe = spec.attention, spec.moe
    sizes = [("channels of a dense layer (intermediate_size)", spec.ffn_size / layout.tp)]
    if isinstance(attention, Grouped):
        heads = spec.num_heads // layout.tp, -(-attention.num_kv_heads // layout.tp)
        sizes += [
            (f"channels of its {what} heads", number * attention.head_dim)
            for what, number in zip(("query", "key-value"), heads, strict=True)
        ]
    else:
        heads = spec.num_heads // layout.tp
        sizes += [
            ("channels of queries", heads * (attention.qk_nope_dim + attention.qk_rope_dim)),
            ("channels of keys and values", heads * (attention.qk_nope_dim + attention.v_dim)),
            ("channels of attention's output", heads * attention.v_dim),
        ]
    if moe is not None:
        parts = 1 if layout.expert_parallel else layout.tp * layout.dp
        sizes += [
            ("channels of an expert (moe_intermediate_size)", moe.ffn_size / parts),
            ("channels of the shared experts", moe.shared_ffn_size / layout.tp),
        ]
    return [
        f"cluster.weights.fp8: a rank's {size:g} {what} are no multiple of {FP8_BLOCK}, the side of a block that has "
        "a scale; take fewer ranks (rollout.tp), or leave fp8 out"
        for what, size in sizes
        if size % FP8_BLOCK
    ]
