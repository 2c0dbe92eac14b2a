"""megatron-core 0.16.1: a norm that is to be computed again believes that FP8 is on.

What breaks: `CheckpointWithoutOutput.__init__` stores `fp8 is not None`, where its default and its callers say False:
NameError on Transformer Engine's FP8 state in the first forward pass, where Transformer Engine is absent.
Not about CPUs. Goes when: it stores the truth of what it is given.
"""

from typing import Any

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def apply() -> None:
    """Take False for no FP8. Idempotent."""
    from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

    original: Any = CheckpointWithoutOutput.__init__
    if getattr(original, "r1mega", False):
        return

    def init(self: Any, fp8: Any = None) -> None:
        original(self, fp8 or None)

    init.r1mega = True  # type: ignore[attr-defined]
    CheckpointWithoutOutput.__init__ = init
