"""Adam with decoupled weight decay, with or without Megatron's distributed optimizer (ZeRO-1)."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer

from r1mega.config import schema
from r1mega.runtime.shims import megatron_adam_class


class Adam(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter) with apex's state layout, which Megatron's checkpoints expect.

    The step count stands in the group, each parameter's state is `exp_avg` and `exp_avg_sq` alone.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool = True,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """p <- p (1 - lr wd) - lr m^ / (sqrt(v^) + eps), for every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            group["step"] += 1
            beta1, beta2 = group["betas"]
            grads = [p.grad for p in params]
            m = [self.state[p]["exp_avg"] for p in params]
            v = [self.state[p]["exp_avg_sq"] for p in params]
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_lerp_(m, grads, 1 - beta1)
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_div_(denominator, (1 - beta2 ** group["step"]) ** 0.5)
            torch._foreach_add_(denominator, group["eps"])
            torch._foreach_addcdiv_(params, m, denominator, -group["lr"] / (1 - beta1 ** group["step"]))


def build_optimizer(chunks: Sequence[DistributedDataParallel], settings: schema.Optimizer) -> MegatronOptimizer:
    """Megatron's optimizer over this rank's trainable parameters. Norms and biases get no weight decay."""
    megatron_adam_class.apply(Adam)
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
        params_dtype=torch.float32,
        use_distributed_optimizer=chunks[0].ddp_config.use_distributed_optimizer,
        log_num_zeros_in_grad=False,
    )
    optimizer = get_megatron_optimizer(config, list(chunks))
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        part.init_state_fn(part.optimizer)  # now, so that a checkpoint before the first step has moments too
    return optimizer


def set_rates(optimizer: MegatronOptimizer, settings: schema.Optimizer, lr: float) -> None:
    """Learning rate and weight decay of every group for the next step (Megatron leaves this to its scheduler)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
