"""Documents and a loss for the trainer's tests."""

import random
from pathlib import Path

from r1mega.buffers import Float32s, Int32s
from r1mega.samples import Document

TINY = Path(__file__).parents[2] / "configs" / "tiny" / "deepseek_v3.json"


def make_documents(num: int, seed: int) -> list[Document]:
    rng = random.Random(seed)
    drafts = [
        Document(Int32s(rng.randrange(3, 384) for _ in range(rng.randint(5, 40))), rng.randint(1, 4))
        for _ in range(num)
    ]
    total = sum(d.num_targets for d in drafts)
    return [
        Document(d.token_ids, d.learn_from, {"weight": Float32s.repeated(1 / total, d.num_targets)}) for d in drafts
    ]


def nll(logp, fields, doc):
    """The next-token loss in nats."""
    return -(fields["weight"] * logp).sum(), {"targets": fields["weight"].sign().sum()}
