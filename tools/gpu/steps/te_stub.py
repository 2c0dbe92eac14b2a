"""Transformer Engine's Python as it is, with stand-ins for its two libraries of kernels, on a machine without a GPU.

Every constructor, every choice of a kernel and every argument up to the first one is Transformer Engine's own code; a
call of a kernel raises `Kernel`, which names it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
import unittest.mock
from typing import Any

import te_kernels


class Kernel(RuntimeError):
    """A kernel was called: as far as a machine without a GPU gets."""

    def __init__(self, name: str) -> None:
        super().__init__(f"needs the CUDA kernel {name}")
        self.name = name


class _Named:
    """Anything that the library has: an enumeration's member, a class, a function."""

    def __init__(self, name: str) -> None:
        self._name, self._parts = name, dict[str, Any]()

    def __getattr__(self, part: str) -> "_Named":
        if part.startswith("__"):
            raise AttributeError(part)
        return self._parts.setdefault(part, _Named(f"{self._name}.{part}"))

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise Kernel(self._name)

    def __repr__(self) -> str:
        return self._name

    def __int__(self) -> int:
        return 0


ANSWERS: dict[str, Any] = {
    "get_cudnn_version": lambda: 91900,
    "get_num_cublas_streams": lambda: 4,
    "get_cublasLt_version": lambda: 130100,
    "is_non_tn_fp8_gemm_supported": lambda: False,
}
"""What is asked of the library before any kernel: of a Hopper GPU, with cuDNN 9.19 and cuBLAS 13.1."""


class _Library(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # A class or an enumeration is asked for its members; `Kernel` comes of calling a function.
        made = ANSWERS.get(name) or _Named(name)
        setattr(self, name, made)
        return made


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Packages that are imported with Transformer Engine, for exports and for kernels in Triton, and whatever is
    imported from them: nothing of it is called before the first kernel."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if any(f"{fullname}.".startswith(f"{name}.") for name in self._names):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        return unittest.mock.MagicMock(__path__=[])

    def exec_module(self, module: Any) -> None: ...


def _on_cpu(make: Any) -> Any:
    """What makes a tensor, on the CPU where a GPU is asked for; the rest of them are trainer's shims to mend."""

    def made(*arguments: Any, **others: Any) -> Any:
        if str(others.get("device", "cpu")).startswith("cuda"):
            others["device"] = "cpu"
        return make(*arguments, **others)

    return made


def install(*, kernels: bool = False) -> str:
    """Put the stand-ins in place and import the package; returns its version.

    Args:
        kernels: with those of `te_kernels`, so that a training step in bf16 or fp32 goes through.

    Raises:
        ImportError: its Python is not there: the carry was not laid out.
    """
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its own word for: do not look for libraries of CUDA
    import torch
    import transformer_engine.common as common  # pyright: ignore[reportMissingImports]

    library = _Library("transformer_engine_torch")
    chosen = library.NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen  # cuDNN's for any length
    library.get_fused_attn_backend = lambda *_: chosen  # type: ignore[attr-defined]
    own = te_kernels.KERNELS if kernels else {}
    for name, kernel in own.items():
        setattr(library, name, kernel)
    library.__all__ = [*ANSWERS, *own]  # type: ignore[attr-defined]
    common.load_framework_extension = lambda _: sys.modules.setdefault("transformer_engine_torch", library)
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if importlib.util.find_spec("triton") is None:
        # Not triton itself: torch would take it for one that works.
        absent += ["transformer_engine.pytorch.triton", "transformer_engine.common.triton"]
    sys.meta_path.insert(0, _Absent(*absent))
    hopper = types.SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, name="stand-in", total_memory=141 << 30
    )
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda *_: hopper
    torch.cuda.get_device_name = lambda *_: hopper.name
    torch.cuda.device_count = lambda: 1
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.version.cuda = torch.version.cuda or "13.0"  # by which it tells whether blocks are scaled
    torch.backends.cudnn.version = lambda: 91900  # type: ignore[assignment]
    import transformer_engine  # pyright: ignore[reportMissingImports]
    import transformer_engine.pytorch  # pyright: ignore[reportMissingImports]

    if kernels:
        for name in ("empty", "full", "arange"):
            setattr(torch, name, _on_cpu(getattr(torch, name)))
        from transformer_engine.pytorch import permutation  # pyright: ignore[reportMissingImports]

        te_kernels.put_into(permutation)
    return transformer_engine.__version__
