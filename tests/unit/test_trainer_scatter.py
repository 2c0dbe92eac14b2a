"""Samples on their way to the ranks: shares of about as many chunks, and an encoding that keeps every bit."""

import io
import random
from collections import Counter

import numpy as np

from r1mega.buffers import Float32s, Int32s
from r1mega.samples import Sample
from r1mega.trainer.scatter import decode, encode, redivide


def sample(rng: random.Random, *, reference: bool = True) -> Sample:
    length = rng.randint(1, 9)
    logps = [Float32s(-rng.random() * 10 for _ in range(length)) for _ in range(3)]
    prompt = Int32s(rng.randrange(130_000) for _ in range(rng.randint(1, 9)))
    answer = Int32s(rng.randrange(130_000) for _ in range(length))
    return Sample(
        prompt, answer, rng.gauss(0, 1), logps[0], logps[1], logps[2] if reference else Float32s(), rng.random()
    )


def test_encoding_keeps_every_bit(mesh):
    rng = random.Random(0)
    minibatches = [[sample(rng) for _ in range(n)] for n in (3, 0, 5)]
    assert decode(encode(minibatches)) == minibatches
    bare = [[sample(rng, reference=False)]]
    assert decode(encode(bare)) == bare
    assert decode(encode([])) == []
    assert decode(encode([[], []])) == [[], []]


def test_what_an_older_version_saved_in_float64_is_read_as_it_was(mesh):
    """Its log-probabilities were float32 when they were computed, so nothing is rounded."""
    minibatches = [[sample(random.Random(1))]]
    with np.load(io.BytesIO(encode(minibatches))) as arrays:
        assert {arrays[name].dtype for name in ("behaviour_logp", "old_logp", "ref_logp")} == {np.dtype(np.float32)}
        assert {arrays[name].dtype for name in ("prompt_ids", "completion_ids")} == {np.dtype(np.int32)}
        wide = {n: a.astype(np.float64) if n.endswith("_logp") else a for n, a in arrays.items()}
    file = io.BytesIO()
    np.savez(file, **wide)
    assert decode(file.getvalue()) == minibatches


def test_another_number_of_ranks_divides_what_is_left_anew(mesh):
    rng = random.Random(2)
    minibatches = [[sample(rng) for _ in range(n)] for n in (7, 1, 4)]
    two = redivide([minibatches], 2, 18)
    assert [len(share) for share in two] == [3, 3]
    for share, n in ((redivide(two, 3, 18), 3), (redivide(two, 1, 18), 1)):
        assert len(share) == n
        # Every mini-batch has its own samples, weights and log-probabilities as they were.
        together = [[s for part in parts for s in part] for parts in zip(*share, strict=True)]
        assert list(map(Counter, together)) == list(map(Counter, minibatches))
    tokens = [sum(len(s.prompt_ids) + len(s.completion_ids) for s in share[0]) for share in two]
    assert max(tokens) < 2 * min(tokens)
