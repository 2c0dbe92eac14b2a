"""Checkpoints of a policy: everything that a resumed run needs to continue bit for bit.

A folder holds Megatron's distributed checkpoint (weights, reference, optimiser), each rank's random states and other
files of its own, and `policy.json`, which is written last. It is loaded at the layout that saved it.
"""

import gc
import json
import os
import pickle
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint import CheckpointException

from r1mega.errors import CheckpointError
from r1mega.runtime.files import sync_folder
from r1mega.trainer.manifest import FORMAT, MANIFEST

if TYPE_CHECKING:
    from r1mega.trainer.policy import Policy

REFERENCE = "reference."


def save(policy: "Policy", folder: Path, extra: dict[str, Any], own: Mapping[str, bytes]) -> None:
    """Write the checkpoint beside `folder` and rename it there; an older one of that name is replaced.

    Every rank calls this; `extra` is the first rank's, `own` are files of each rank's.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    first = policy.mesh.rank == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    policy.mesh.barrier()
    gc.freeze()  # Megatron collects garbage while it saves; over all that a trainer has imported that takes a second
    try:
        strategy = TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1)
        dist_checkpointing.save(_sharded(policy), str(temporary), strategy)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # or a full disk stays full
        raise
    finally:
        gc.unfreeze()
    with (temporary / f"random_{policy.mesh.rank}.pkl").open("wb") as file:
        pickle.dump(_random_states(), file)
    for name, data in own.items():
        (temporary / name).write_bytes(data)
    policy.mesh.barrier()
    if first:
        manifest = {
            "format": FORMAT,
            "reference": policy.reference is not None,
            "ranks": policy.mesh.world_size,
            "model": dict(policy.spec.hf),
            "extra": extra,
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        # Never half of the old one under its name: it is moved aside, and replaced in the next moment.
        aside = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        temporary.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    policy.mesh.barrier()


def load(policy: "Policy", folder: Path) -> dict[str, Any]:
    """Fill a freshly built policy from a checkpoint; returns its `extra`. Every rank calls this.

    Raises:
        CheckpointError: missing, torn, written by another version, or of a model of other shapes.
    """
    manifest = _manifest(folder)
    if manifest.get("weights_only"):
        raise CheckpointError(f"{folder}: holds weights and no run to resume; start a stage from it with model.path")
    if manifest["model"] != json.loads(json.dumps(dict(policy.spec.hf))):
        changed = sorted(k for k in policy.spec.hf if policy.spec.hf[k] != manifest["model"].get(k))
        raise CheckpointError(f"{folder}: belongs to another model; these fields differ: {', '.join(changed)}")
    random_file = folder / f"random_{policy.mesh.rank}.pkl"
    if not random_file.is_file():
        raise CheckpointError(f"{folder}: {random_file.name} is missing; it was saved by {manifest['ranks']} ranks")
    try:
        random = pickle.loads(random_file.read_bytes())
    except (EOFError, ValueError, AttributeError, pickle.UnpicklingError) as e:
        raise CheckpointError(f"{random_file}: torn ({type(e).__name__})") from e
    if manifest["reference"]:
        policy.refresh_reference()  # makes room; overwritten below
    template = _sharded(policy, loading=True, reference=manifest["reference"])
    try:
        loaded: Any = dist_checkpointing.load(template, str(folder))
    except (Exception, CheckpointException) as e:  # the second is no Exception
        raise CheckpointError(f"{folder}: torn or of another layout ({type(e).__name__}: {e})") from e
    with torch.no_grad():
        for name, tensor in policy.network.state_dict(keep_vars=True).items():
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(loaded["model"][name])
    policy.optimizer.load_state_dict(loaded["optimizer"])
    policy.reference = None
    if manifest["reference"]:
        policy.reference = {
            name.removeprefix(REFERENCE): t for name, t in loaded["reference"].items() if isinstance(t, torch.Tensor)
        }
    _set_random_states(random)
    return manifest["extra"]


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint ({MANIFEST} is missing)")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckpointError(f"{file}: torn ({e})") from e
    keys = {"format", "reference", "ranks", "model", "extra"}
    if not isinstance(manifest, dict) or not keys <= manifest.keys():
        raise CheckpointError(f"{file}: torn (expected an object with {', '.join(sorted(keys))})")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{file}: format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def _sharded(policy: "Policy", *, loading: bool = False, reference: bool | None = None) -> dict[str, Any]:
    """What Megatron saves, or the template it loads into: names, shards and tensors."""
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
    }
    model = policy.network.sharded_state_dict(metadata=metadata)
    state: dict[str, Any] = {"model": model}
    if policy.reference is not None if reference is None else reference:
        assert policy.reference is not None
        state["reference"] = policy.network.sharded_state_dict(prefix=REFERENCE, metadata=metadata)
        for name, shard in state["reference"].items():
            if hasattr(shard, "data") and name.removeprefix(REFERENCE) in policy.reference:
                shard.data = policy.reference[name.removeprefix(REFERENCE)]
    state["optimizer"] = policy.optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)
    return state


def _random_states() -> dict[str, Any]:
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    return {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "megatron": {k: v.numpy() for k, v in tracker.get_states().items()},
    }


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    tracker.set_states({k: torch.from_numpy(v) for k, v in states["megatron"].items()})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
