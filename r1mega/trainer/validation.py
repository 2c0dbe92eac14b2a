"""How well a policy predicts documents that are not trained on."""

from collections.abc import Sequence
from typing import Protocol

from r1mega.data.batches import Texts
from r1mega.data.packing import spread
from r1mega.samples import Document
from r1mega.trainer.policy import Policy

VALIDATION_DOCUMENTS = 64
"""Documents of each data-parallel rank in one pass of a validation, which bounds its memory."""


def mean_loss(policy: Policy, texts: Texts, chunk_tokens: int) -> float:
    """Mean over all targets of -log p, in nats. Every rank calls this and gets the same.

    Args:
        chunk_tokens: length of a chunk; ranks are given whole ones.
    """
    mesh, lengths = policy.mesh, list(texts.lengths)
    total, count = 0.0, 0
    step = VALIDATION_DOCUMENTS * mesh.layout.dp
    for start in range(0, len(lengths), step):
        some = range(start, min(start + step, len(lengths)))
        shares = spread([lengths[i] for i in some], chunk_tokens, mesh.layout.dp)
        documents = [texts.document(some[k], 1.0) for k in shares[mesh.data_rank]]
        logps = policy.logprobs(documents, temperature=1.0)
        mine = (sum(float(logp.double().sum()) for logp in logps), sum(len(logp) for logp in logps))
        for logp, num in mesh.gather_over_data(mine):
            total, count = total - logp, count + num
    return total / count


class Scored(Protocol):
    """Tokenised documents of texts that a reward model scores, wherever they lie."""

    @property
    def lengths(self) -> Sequence[int]: ...

    def document(self, i: int, weight: float) -> Document: ...


def scores_of(policy: Policy, texts: Scored, chunk_tokens: int) -> list[list[float]]:
    """The score of every text of every document, in order. Every rank calls this and gets the same.

    Args:
        chunk_tokens: as in `mean_loss`.
    """
    mesh, lengths = policy.mesh, list(texts.lengths)
    found: list[list[float]] = [[] for _ in lengths]
    step = VALIDATION_DOCUMENTS * mesh.layout.dp
    for start in range(0, len(lengths), step):
        some = range(start, min(start + step, len(lengths)))
        mine = [some[k] for k in spread([lengths[i] for i in some], chunk_tokens, mesh.layout.dp)[mesh.data_rank]]
        scores = policy.scores([texts.document(i, 1.0) for i in mine])
        scored = [(i, values.tolist()) for i, values in zip(mine, scores, strict=True)]
        for of_rank in mesh.gather_over_data(scored):
            for i, values in of_rank:
                found[i] = values
    return found
