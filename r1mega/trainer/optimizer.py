"""Adam with decoupled weight decay, with or without Megatron's distributed optimizer (ZeRO-1).

Whose Adam it is, is decided here: Transformer Engine's or apex's kernel on a GPU that has one, otherwise this
package's. All have one state layout, apex's: the step count stands in the group, each parameter's state is `exp_avg`
and `exp_avg_sq` alone. So a checkpoint of one continues with another.
"""

import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer

from r1mega.config import training
from r1mega.config.cluster import TrainerLayout
from r1mega.runtime.shims import megatron_adam_class
from r1mega.trainer.precision import DTYPES, optimizer_fields

log = logging.getLogger(__name__)

KERNELS = {"transformer_engine": "transformer_engine.pytorch.optimizers", "apex": "apex.optimizers"}
"""Modules that have a FusedAdam, the better one first. The registry's package named apex is something else."""


class Adam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter) in PyTorch's own operations. Moments may be bf16; the arithmetic is fp32."""

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool = True,
        exp_avg_dtype: torch.dtype = torch.float32,
        exp_avg_sq_dtype: torch.dtype = torch.float32,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        self.moments = {"exp_avg": exp_avg_dtype, "exp_avg_sq": exp_avg_sq_dtype}
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        super().__init__(params, defaults)

    def initialize_state(self, param: torch.Tensor, _: bool = False) -> None:
        """Moments of a parameter, all zero: [as the parameter], of the dtypes that were asked for."""
        self.state[param] = {name: torch.zeros_like(param, dtype=dtype) for name, dtype in self.moments.items()}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """p <- p (1 - lr wd) - lr m^ / (sqrt(v^) + eps), for every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            group["step"] += 1
            for part in in_parts(params):
                self._update(group, part)

    def _update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """The step of some of a group's parameters; fp32 copies of their moments, if any, and one more of their size
        are what it takes of memory."""
        beta1, beta2 = group["betas"]
        grads: list[Any] = [p.grad for p in params]
        kept_m = [self.state[p]["exp_avg"] for p in params]
        kept_v = [self.state[p]["exp_avg_sq"] for p in params]
        m, v = [x.float() for x in kept_m], [x.float() for x in kept_v]  # themselves, where they are fp32
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, (1 - beta2 ** group["step"]) ** 0.5)
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_addcdiv_(params, m, denominator, -group["lr"] / (1 - beta1 ** group["step"]))
        for kept, new in zip([*kept_m, *kept_v], [*m, *v], strict=True):
            if kept is not new:
                kept.copy_(new)


PART_BYTES = 1 << 30
"""Of fp32, that a step takes of parameters at a time: what it makes beside them is as large."""


def in_parts(params: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """The parameters in order, in lists of `PART_BYTES` of fp32 at most, or a single larger one."""
    part: list[torch.Tensor] = []
    size = 0
    for param in params:
        if part and size + 4 * param.numel() > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(param)
        size += 4 * param.numel()
    if part:
        yield part


def choose_adam(device: str, moments: str) -> tuple[str, type[torch.optim.Optimizer]]:
    """Whose Adam updates the weights; the log tells.

    Args:
        device: type of the device, "cpu" or "cuda".
        moments: dtype of Adam's moments, "fp32" or "bf16"; apex's kernel knows fp32 alone.

    Returns:
        (one of "transformer_engine", "apex", "torch"; the class, whose moments are of that dtype).
    """
    name, found = "torch", Adam
    for kernels, module in KERNELS.items() if device != "cpu" else ():
        if kernels == "apex" and moments != "fp32":
            continue
        try:
            name, found = kernels, importlib.import_module(module).FusedAdam
            break
        except (ImportError, AttributeError):
            continue
    if device != "cpu":
        log.info("optimiser: %s's Adam, moments in %s", name, moments)
    if moments == "fp32":
        return name, found
    dtypes = {"exp_avg_dtype": DTYPES[moments], "exp_avg_sq_dtype": DTYPES[moments]}

    return name, with_moments(found, dtypes)


def with_moments(adam: type[torch.optim.Optimizer], dtypes: dict[str, torch.dtype]) -> type[torch.optim.Optimizer]:
    """An Adam whose moments are of these dtypes, and whose step holds few of them in fp32 at a time.

    Megatron sets the dtype only in an optimizer whose states are no plain tensors, and Transformer Engine's kernel is
    given fp32 copies of a whole group's moments, as much memory at the step as bf16 saves between steps.
    """

    class WithMoments(adam):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **others: Any) -> None:
            super().__init__(*arguments, **others, **dtypes)

        def step(self, *arguments: Any, **others: Any) -> None:
            groups = self.param_groups
            try:
                for group in groups:
                    made = group.get("step", 0)
                    for part in in_parts(group["params"]):
                        self.param_groups = [{**group, "params": part, "step": made}]
                        super().step(*arguments, **others)
                        # A part without gradients makes no step.
                        group["step"] = max(group.get("step", 0), self.param_groups[0]["step"])
            finally:
                self.param_groups = groups

    return WithMoments


def build_optimizer(
    chunks: Sequence[DistributedDataParallel],
    settings: training.Optimizer,
    *,
    layout: TrainerLayout = TrainerLayout(),  # noqa: B008 (frozen)
    device: str = "cpu",
) -> MegatronOptimizer:
    """Megatron's optimizer over this rank's trainable parameters. Norms and biases get no weight decay."""
    _, adam = choose_adam(device, layout.precision.moments)
    megatron_adam_class.apply(adam)
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        # At 0 Megatron would not even measure the norm; infinity measures and never clips.
        clip_grad=settings.clip_grad or float("inf"),
        **optimizer_fields(layout),
        use_distributed_optimizer=chunks[0].ddp_config.use_distributed_optimizer,
        log_num_zeros_in_grad=False,
    )
    optimizer = get_megatron_optimizer(config, list(chunks), use_gloo_process_groups=False)
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        _make_moments(part.optimizer)  # now, so that a checkpoint before the first step has moments too
    return optimizer


def _make_moments(adam: Any) -> None:
    """All moments zero, in their own dtype (Megatron would make them of the parameters'), and no step made."""
    for group in adam.param_groups:
        group.setdefault("step", 0)
        for param in group["params"]:
            if hasattr(adam, "initialize_state"):
                adam.initialize_state(param, False)
            else:  # apex
                adam.state[param] = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}


def set_rates(optimizer: MegatronOptimizer, settings: training.Optimizer, lr: float) -> None:
    """Learning rate and weight decay of every group for the next step (Megatron leaves this to its scheduler)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
