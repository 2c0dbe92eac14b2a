"""megatron-core 0.16.1 without Transformer Engine: latent attention believes that it is there.

What breaks: the import that should fail succeeds with mock classes, HAVE_TE stays True, and
`isinstance(linear_proj, TELinear)` raises TypeError when an attention layer is built.
Goes when: `multi_latent_attention` takes HAVE_TE from the extension module.
"""

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def apply() -> None:
    """Say that Transformer Engine is absent where it is a mock. Idempotent."""
    from megatron.core.extensions import transformer_engine
    from megatron.core.transformer import multi_latent_attention

    if not transformer_engine.HAVE_TE:
        multi_latent_attention.HAVE_TE = False
        multi_latent_attention.TELinear = None
