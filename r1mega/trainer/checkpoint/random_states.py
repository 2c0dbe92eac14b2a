"""The random states of a rank's process: torch's, numpy's, Python's and Megatron's."""

import hashlib
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import tensor_parallel

from r1mega.errors import CheckpointError


def random_states() -> bytes:
    """The states as they are now, as `restore` takes them."""
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    states = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "megatron": {k: v.cpu().numpy() for k, v in tracker.get_states().items()},
        "cuda": torch.cuda.get_rng_state().numpy() if torch.cuda.is_available() else None,
    }
    return pickle.dumps(states)


def restore(file: Path, *, same_layout: bool) -> None:
    """Set the states that a file holds; at another layout, whose ranks are others, states derived from them.

    Raises:
        CheckpointError: the file is torn or missing.
    """
    try:
        data = file.read_bytes()
        states = pickle.loads(data)
    except (OSError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as e:
        raise CheckpointError(f"{file}: torn or missing ({type(e).__name__})") from e
    if same_layout:
        _set(states)
        return
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big") >> 1  # 31 bits: numpy takes no more than 32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def _set(states: dict[str, Any]) -> None:
    torch.set_rng_state(torch.from_numpy(states["torch"]))
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if states.get("cuda") is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(states["cuda"]))
    tracker: Any = tensor_parallel.get_cuda_rng_tracker()
    tracker.set_states({k: torch.from_numpy(v) for k, v in states["megatron"].items()})
