"""The head of a model of scores: one product with the hidden state at the end of a text, in fp32."""

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class ScoreHead(MegatronModule):
    """`score.weight` of transformers' sequence classification, whole on every tensor-parallel rank."""

    def __init__(self, config: Any) -> None:
        """The weight is uninitialised, and where Megatron's own are made."""
        super().__init__(config=config)
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.empty(1, config.hidden_size, dtype=config.params_dtype, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """[t] fp32: scores of hidden states [t, H]. Each is a sum of its own, whatever else is scored with it."""
        return (hidden.float() * self.weight.float()).sum(-1)
