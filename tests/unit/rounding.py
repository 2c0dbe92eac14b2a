"""Bounds on rounding that hold on any processor, whatever the order of its sums.

Two right ways of computing in fp32 are apart by what the machine's kernels make of them, so a bound is one of three:
EPS times the number of terms times their size; the error of the plain way, measured beside (`assert_as_close`); and
for a whole network what the last bit of its weights does to the result (`with_last_bits`), measured beside as well.
"""

import torch

EPS = torch.finfo(torch.float32).eps
LOSS = 16 * EPS
"""Relative, of a loss: a sum of some hundred terms of one sign, whose roundings are as good as random."""
LAST_BITS = 4
"""A network's sums are off by a few last bits; one last bit of every weight moves results as far as about three."""


def with_last_bits(policy):
    """The same policy, every weight of which is moved by its last bit, up or down: in place."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for param in policy.network.parameters():
            sign = torch.randint(0, 2, param.shape, generator=generator) * 2 - 1
            param.mul_(1 + EPS * sign)
    return policy


def furthest(ours, theirs) -> float:
    """The largest difference of an element, over two collections of tensors in the same order."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True) if a.numel())


def last_bits(ours, moved) -> float:
    """A bound on two right results' largest difference; `moved` is the same of a policy `with_last_bits`."""
    bound = LAST_BITS * furthest(ours, moved)
    assert bound <= 1e-4 * max(float(a.abs().max()) for a in ours if a.numel()), "no bound: a router chose otherwise"
    return bound


def assert_as_close(got, plain, exact) -> None:
    """`got` is no worse than `plain` is, another right way in the same dtype; `exact` is what both are meant to be.

    In the mean, since which element is the worst one is luck; and no element is out of all proportion.
    """
    unit = torch.finfo(plain.dtype).eps
    exact = exact.double()
    ours, theirs = (got.double() - exact).abs(), (plain.double() - exact).abs()
    assert ours.square().mean().sqrt() <= 2 * theirs.square().mean().sqrt() + unit * exact.square().mean().sqrt()
    assert ours.max() <= 8 * theirs.max() + 8 * unit * exact.abs().max()
