"""megatron-core 0.16.1 without Transformer Engine and apex: the distributed optimizer cannot be checkpointed.

What breaks: which Adam is used is decided at import; with torch's own, `DistributedOptimizer` asserts on its state
when it saves, because torch keeps `step` per parameter and apex per group. An Adam with apex's layout must be
named in two modules, and their flags set accordingly.
Goes when: the optimizer class is an argument of `get_megatron_optimizer`.
"""

import torch

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def apply(adam: type[torch.optim.Optimizer]) -> None:
    """Make `adam`, of apex's state layout, the optimizer that megatron-core builds. Idempotent."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.Adam = distrib_optimizer.Adam = adam
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
    distrib_optimizer.USING_APEX_OPTIMIZER = True
