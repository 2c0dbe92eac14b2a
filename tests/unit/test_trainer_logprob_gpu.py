"""The way of a GPU to log-probabilities, on the CPU: the plain way's numbers whatever the tiles, products of bf16 as
they are, and no question to the device."""

import pytest
import torch
import torch.distributed as dist
from rounding import EPS, assert_as_close
from test_trainer_logprob import BYTES_FP64, grads, logit_size, make, plain, relative
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(params=[(3, 2), (7, 11), (100, 100), (5, 1)], ids=str)
def tile(request, monkeypatch):
    from r1mega.trainer import logprob_gpu

    rows, columns = request.param
    monkeypatch.setattr(logprob_gpu, "TILE_BYTES", rows * columns * BYTES_FP64 // 2)
    monkeypatch.setattr(logprob_gpu, "TILE_IDS", columns)
    found = logprob_gpu.tiles(7, 11)
    assert (len(found) == 1) == (rows * columns >= 77)
    pairs = [(i, j) for r, c in found for i in range(r.start, r.stop) for j in range(c.start, c.stop)]
    assert sorted(pairs) == [(i, j) for i in range(7) for j in range(11)]


def large(hidden, weight, targets, temperature):
    from r1mega.trainer.logprob_gpu import LargeTiles

    return LargeTiles.apply(hidden, weight, targets, temperature, dist.group.WORLD, True)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_log_softmax_in_fp64(mesh, tile, temperature):
    hidden, weight, targets, scale = make(7, 5, 11)
    logp, entropy = large(hidden, weight, targets, temperature)
    want, want_entropy = plain(hidden, weight, targets, temperature)
    torch.testing.assert_close(logp, want.float(), atol=0, rtol=EPS)
    torch.testing.assert_close(entropy, want_entropy.float(), atol=0, rtol=EPS)
    bound = (5 + 11) * 2**-52 * logit_size(hidden, weight, temperature)
    for got, exact in zip(grads(logp, scale, hidden, weight), grads(want, scale, hidden, weight), strict=True):
        assert got.dtype is torch.float64
        assert relative(got, exact) < bound


def test_fp32_is_as_close_to_fp64_as_the_plain_way(mesh):
    hidden, weight, targets, scale = make(300, 64, 20_000, torch.float32)
    exact_logp, exact_entropy = plain(hidden, weight, targets, 0.9)
    exact = [exact_logp.detach(), exact_entropy.detach(), *grads(exact_logp, scale, hidden, weight)]
    logp, entropy = large(hidden, weight, targets, 0.9)
    rough, rough_entropy = plain(hidden, weight, targets, 0.9, torch.float32)
    theirs = [rough.detach(), rough_entropy.detach(), *grads(rough, scale, hidden, weight)]
    for got, other, want in zip([logp, entropy, *grads(logp, scale, hidden, weight)], theirs, exact, strict=True):
        assert_as_close(got, other, want)


def test_bf16_is_multiplied_as_it_is_and_summed_in_fp32(mesh, tile, monkeypatch):
    """Values as exact as the CPU's; gradients have been rounded to bf16 once before their products, and after."""
    from r1mega.trainer import logprob_gpu

    given, product = [], logprob_gpu.product
    monkeypatch.setattr(
        logprob_gpu, "product", lambda a, b: given.append((a.dtype, b.dtype, out := product(a, b))) or out
    )
    hidden, weight, targets, scale = make(7, 5, 11, torch.bfloat16)
    logp, entropy = large(hidden, weight, targets, 0.7)
    want, want_entropy = plain(hidden, weight, targets, 0.7)
    bound = (5 + 11) * EPS * logit_size(hidden, weight, 0.7)
    assert (logp - want).abs().max() < bound
    assert (entropy - want_entropy).abs().max() < bound * logit_size(hidden, weight, 0.7)
    found, exact = grads(logp, scale, hidden, weight), grads(want, scale, hidden, weight)
    sizes = scale.abs().max() / 0.7 * torch.stack([weight.detach().abs().max(), hidden.detach().abs().max()]).double()
    for got, want_one, size, terms in zip(found, exact, sizes, (2, 7), strict=True):  # p sums to 1; 7 targets
        assert got.dtype is torch.bfloat16
        torch.testing.assert_close(got.double(), want_one.double(), atol=float(size) * terms * 2**-9, rtol=2**-8)
    assert {(a, b, out.dtype) for a, b, out in given} == {(torch.bfloat16, torch.bfloat16, torch.float32)}


def test_certain_and_hopeless_targets_and_far_logits(mesh):
    weight = torch.tensor([[-2000.0], [0.0], [2000.0]]).requires_grad_()
    hidden = torch.tensor([[1.0], [-1.0], [1.0], [0.0]]).requires_grad_()
    targets = torch.tensor([2, 0, 0, 1])
    logp, entropy = large(hidden, weight, targets, 1.0)
    third = torch.tensor(3.0).log()
    torch.testing.assert_close(logp, torch.tensor([0.0, 0.0, -4000.0, -third]))
    torch.testing.assert_close(entropy, torch.tensor([0.0, 0.0, 0.0, third]))
    want, _ = plain(hidden, weight, targets, 1.0)
    for got, exact in zip(*(grads(x, torch.ones(4), hidden, weight) for x in (logp, want)), strict=True):
        torch.testing.assert_close(got, exact)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_is_served_in_its_way_and_never_asked(mesh, monkeypatch, device):
    """With padding of the vocabulary, targets of another rank's slice and none; what gives a number to the host, or
    has a size that depends on values, would wait for the device."""
    from r1mega.trainer import logprob_gpu
    from r1mega.trainer.logprob import target_logprobs

    seen: set[str] = set()

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    hidden, weight, targets, scale = make(7, 5, 11, torch.float32)
    padded = torch.cat([weight.detach(), torch.full((4, 5), 9.0)]).requires_grad_()
    options = {"temperature": 0.7, "group": dist.group.WORLD, "entropy": True, "vocab_size": 11}
    want = target_logprobs(hidden, padded, targets, **options)
    want_grads = grads(want[0], scale, hidden, padded)
    if device == "cuda":
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    with Calls():
        logp, entropy = target_logprobs(hidden, padded, targets, **options)
        got = grads(logp, scale, hidden, padded)
    waits = {"nonzero", "_local_scalar_dense", "masked_select", "index", "index_put_"} & seen
    assert (not waits) == (device == "cuda"), waits
    for ours, theirs in zip((logp, entropy, *got), (*want, *want_grads), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)
    assert not got[1][11:].any()
    none = make(0, 5, 11, torch.float32)
    empty, _ = logprob_gpu.LargeTiles.apply(*none[:3], 1.0, dist.group.WORLD, True)
    empty.sum().backward()
    assert none[0].grad.shape == (0, 5)
    assert torch.equal(none[1].grad, torch.zeros(11, 5))


def test_targets_of_other_ranks_slices_have_no_part_here(mesh):
    """As of a rank whose slice is the middle of three: peaks, sums and gradients of its ids alone."""
    from r1mega.trainer import logprob

    hidden, weight, _, scale = make(7, 5, 11, torch.float64)
    local = torch.tensor([-3, 0, 10, 11, 15, 4, -1])
    found = []
    for way in (logprob.LargeTiles, logprob._TargetLogprobs):
        logp, _ = way.apply(hidden, weight, local, 0.7, dist.group.WORLD, True)
        inside = (local >= 0) & (local < 11)
        found.append((logp[inside], *grads(logp[inside], scale[inside], hidden, weight)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)
