"""First weights of a policy from a model folder of either form: Hugging Face's, or Megatron's checkpoint."""

from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException

from r1mega.errors import CheckpointError
from r1mega.families.registry import model_of
from r1mega.families.spec import Kind, ModelSpec
from r1mega.trainer.manifest import MANIFEST, read_model_fields
from r1mega.trainer.policy import Policy
from r1mega.weights import hf_io


def load_weights(policy: Policy, folder: Path) -> None:
    """Fill a policy's weights from a folder of either form, whatever its layout; the optimiser keeps its moments.

    A Megatron folder may be a converted model or a training checkpoint, of which the weights alone are taken. Every
    rank calls this.

    Raises:
        WeightMappingError: as `hf_io.load_into`.
        CheckpointError: a Megatron folder that is torn or of a model of other shapes.
    """
    if not (folder / ".metadata").is_file():
        hf_io.load_into(policy, folder)
        return
    theirs = _shapes(model_of(read_model_fields(folder), folder / MANIFEST))
    ours = _shapes(policy.spec)
    if theirs != ours:
        # Looked at here because Megatron fills up a vocabulary of another size with zeros.
        differ = sorted(n for n in theirs.keys() | ours.keys() if theirs.get(n) != ours.get(n))
        raise CheckpointError(f"{folder}: belongs to another model; {len(differ)} tensors differ, first {differ[0]}")
    stored = dist_checkpointing.load_tensors_metadata(str(folder))
    metadata = {
        "non_homogeneous_layers": any(key.startswith("decoder.layers.0.") for key in stored),
        "singleton_local_shards": False,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }
    template: dict[str, Any] = {"model": policy.network.sharded_state_dict(metadata=metadata)}
    try:
        loaded: Any = dist_checkpointing.load(template, str(folder))
    except (Exception, CheckpointException) as e:  # the second is no Exception
        raise CheckpointError(f"{folder}: torn or of other shapes ({type(e).__name__}: {e})") from e
    with torch.no_grad():
        for name, tensor in policy.network.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor):
                tensor.copy_(loaded["model"][name])
    policy.weights_changed()


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {row.megatron: row.shape for row in spec.tensors() if row.kind is not Kind.COPY}
