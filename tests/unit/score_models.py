"""Models of scores for tests: pairs of texts, and Bradley-Terry's loss on them."""

import random

import torch

from r1mega.buffers import Int32s
from r1mega.samples import Document


def make_pairs(num: int, seed: int, longest: int = 28, vocab: int = 384) -> list[Document]:
    """Pairs of random texts of 1 to `longest` tokens, chosen first; `weight` is 1 / number of pairs."""
    rng = random.Random(seed)

    def text() -> Int32s:
        return Int32s(rng.randrange(3, vocab) for _ in range(rng.randint(1, longest)))

    return [Document.of_texts([text(), text()], {"weight": [1 / num, 1 / num]}) for _ in range(num)]


def bradley_terry(scores, fields, doc):
    """-ln sigmoid(chosen - rejected), the mean over pairs."""
    assert torch.equal(doc[::2], doc[1::2])
    chosen, rejected = scores.view(-1, 2).T
    return -(fields["weight"][::2] * torch.nn.functional.logsigmoid(chosen - rejected)).sum(), {}


def texts_of(documents: list[Document]) -> list[list[int]]:
    return [d.token_ids[start:stop].tolist() for d in documents for start, stop in d.texts]
