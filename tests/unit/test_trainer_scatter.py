"""Samples on their way to the ranks: shares of about as many tokens, and an encoding that keeps every bit."""

import random

from r1mega.samples import Sample
from r1mega.trainer.scatter import decode, divide, encode


def sample(rng: random.Random, *, reference: bool = True) -> Sample:
    length = rng.randint(1, 9)
    logps = [tuple(-rng.random() * 10 for _ in range(length)) for _ in range(3)]
    prompt = tuple(rng.randrange(130_000) for _ in range(rng.randint(1, 9)))
    answer = tuple(rng.randrange(130_000) for _ in range(length))
    return Sample(prompt, answer, rng.gauss(0, 1), logps[0], logps[1], logps[2] if reference else (), rng.random())


def test_encoding_keeps_every_bit(mesh):
    rng = random.Random(0)
    minibatches = [[sample(rng) for _ in range(n)] for n in (3, 0, 5)]
    assert decode(encode(minibatches)) == minibatches
    bare = [[sample(rng, reference=False)]]
    assert decode(encode(bare)) == bare
    assert decode(encode([])) == []
    assert decode(encode([[], []])) == [[], []]


def test_shares_are_complete_and_of_about_as_many_tokens(mesh):
    rng = random.Random(1)
    lengths = [rng.randint(1, 100) for _ in range(50)]
    shares = divide(lengths, 3)
    assert sorted(i for share in shares for i in share) == list(range(50))
    tokens = [sum(lengths[i] for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= min(lengths[i] for share in shares for i in share[-1:]) + 1
    assert divide(lengths, 1) == [list(range(50))]
    assert divide([5], 2) == [[0], []]
