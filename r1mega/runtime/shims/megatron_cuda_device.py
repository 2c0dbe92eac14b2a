"""megatron-core 0.16.1: tensors, streams and type names are CUDA's by literal, in about 100 files.

What breaks: `torch.cuda.current_device()` raises and `device="cuda"` fails where there is no GPU, although
`use_cpu_initialization` is set; the gradient clip asserts the type name 'torch.cuda.FloatTensor'.
Goes when: megatron-core takes its device from one place.
"""

import contextlib
import functools
from typing import Any

import torch
from torch.utils import _device

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)

CPU = torch.device("cpu")


class _Idle:
    """A stream or an event on a device that has neither: every method does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: _Idle()


def _on_cpu(make: Any) -> Any:
    @functools.wraps(make)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = CPU
        return make(*args, **kwargs)

    return wrapped


def apply() -> None:
    """Let CUDA names mean the CPU. Idempotent."""
    if getattr(torch.cuda, "r1mega_stub", False):
        return
    # `with torch.device(...)` knows what makes tensors by identity, and finds it out once. Had it found ours,
    # the real ones would pass by it: rotary frequencies of models made on "meta" by transformers had no value.
    _device._device_constructors()
    for name in ("tensor", "zeros", "ones"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    type_of = torch.Tensor.type

    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return type_of(self, *args, **kwargs)
        return type_of(self).replace("torch.", "torch.cuda.", 1)

    stubs: dict[str, Any] = {
        "current_device": lambda: CPU,
        "synchronize": lambda *_, **__: None,
        "Stream": _Idle,
        "Event": _Idle,
        "current_stream": _Idle,
        "default_stream": _Idle,
        "stream": lambda *_, **__: contextlib.nullcontext(),
        "r1mega_stub": True,
    }
    for name, stub in stubs.items():
        setattr(torch.cuda, name, stub)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.Tensor.type = type_name  # type: ignore[method-assign]
