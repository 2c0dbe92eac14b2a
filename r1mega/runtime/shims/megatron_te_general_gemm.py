"""megatron-core 0.16.1 without Transformer Engine: the router's matrix product reads a name that is not defined.

What breaks: `RouterGatingLinearFunction` tests `te_general_gemm is not None`, but the name is bound only when
Transformer Engine imports: NameError in the first forward of any mixture-of-experts layer.
Goes when: `moe_utils` binds the name to None in its `except ImportError`.
"""

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def apply() -> None:
    """Bind the name to None where it is missing. Idempotent."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
