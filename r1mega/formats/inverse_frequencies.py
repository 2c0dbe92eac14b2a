"""Inverse frequencies of rotary positions that old folders, of Llama above all, keep with the weights.

Every reader computes them itself. Those in a folder say by which positions its weights were trained, so they are
compared with what its config.json gives.
"""

import torch
from torch import Tensor

from r1mega.families.spec import Grouped, ModelSpec
from r1mega.formats.rotary import frequencies
from r1mega.formats.torch_dtypes import dtype_name

TOLERANCE = 1e-5
"""Relative: powers are computed to a few last bits, which differ between libraries."""


def difference(spec: ModelSpec, stored: Tensor) -> str | None:
    """How a folder's inverse frequencies differ from the model's, and what to do; None where they are equal.

    Equal are those that were rounded to the dtype in which they are stored, or to 16 bits at some time before.

    Args:
        stored: [channels that turn / 2], of a float dtype.
    """
    attention = spec.attention
    dim = attention.head_dim if isinstance(attention, Grouped) else attention.qk_rope_dim
    wanted, _ = frequencies(spec.rope, dim)
    if not stored.is_floating_point() or stored.shape != wanted.shape:
        found = f"{dtype_name(stored.dtype)} {tuple(stored.shape)}"
        return f"{found}, expected floats {tuple(wanted.shape)}; {_REMEDY}"
    exact, near = stored.double(), wanted.double()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        info = torch.finfo(dtype)
        wide = dtype is torch.float32
        step = near * TOLERANCE if wide else near * info.eps + info.smallest_normal * info.eps
        rounded = wide or torch.equal(stored.to(dtype).double(), exact)
        if rounded and ((exact - near).abs() <= step).all():
            return None
    at = int(((exact - near) / near).abs().argmax())
    return (
        f"element {at} is {exact[at]:.6g}, but rope_theta = {spec.rope.theta:g} and its scaling in config.json give "
        f"{near[at]:.6g}; {_REMEDY}"
    )


_REMEDY = (
    "these weights were trained by other positions than config.json says, or the buffer is damaged: mend rope_theta "
    "and rope_scaling, or take this tensor out of the file if config.json is right"
)
