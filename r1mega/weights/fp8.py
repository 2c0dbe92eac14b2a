"""Matrices as FP8 codes with a scale for 128 x 128 values, computed on the trainer's device on their way to engines.

Which matrices, under which names, is what a published FP8 folder has (`formats.fp8_blocks`): what an engine that was
started with that folder's `quantization_config` expects. Router, its bias, norms, embedding and head travel as they
are. Half the bytes of bf16, and the engine rounds nothing.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from r1mega.formats import fp8, fp8_blocks
from r1mega.weights.source import PolicySource


class Fp8Weights:
    """A policy's source as codes and scales; as `PolicySource` in all else."""

    def __init__(self, source: PolicySource) -> None:
        self._source, self.ranks = source, source.ranks
        self._matrices = {n for row in source.rows for n in row.hf if fp8_blocks.quantised(row, n)}

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(name, dtype, shape) of every tensor, in the order of iteration: a matrix's codes, then its scales."""
        found: list[tuple[str, torch.dtype, tuple[int, ...]]] = []
        for name, dtype, shape in self._source.metadata():
            if name not in self._matrices:
                found.append((name, dtype, shape))
                continue
            scales = (name + fp8_blocks.SUFFIX, fp8.SCALES, fp8_blocks.scale_shape(shape))
            found += [(name, fp8.CODES, shape), scales]
        return found

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._source:
            if name not in self._matrices:
                yield name, tensor
                continue
            # On ranks that send nothing it is empty.
            parts: list[Any] = list(fp8.quantise(tensor)) if tensor.ndim == 2 else [tensor, tensor]
            del tensor
            yield name, parts.pop(0)
            yield name + fp8_blocks.SUFFIX, parts.pop()
