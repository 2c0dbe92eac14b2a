"""Which documents a data-parallel rank learns from at each step of training on given tokens, and their weights."""

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from r1mega.data.epochs import Epochs
from r1mega.data.packing import spread
from r1mega.samples import Document


class Texts(Protocol):
    """Tokenised documents, wherever they lie."""

    @property
    def lengths(self) -> Sequence[int]: ...

    @property
    def num_targets(self) -> Iterable[int]: ...

    def document(self, i: int, weight: float) -> Document:
        """Document i, each of whose targets weighs `weight` in the loss."""
        ...


class Batches:
    """One data-parallel rank's share of every step's documents.

    Documents of 3 and 2 targets, one a rank: with `token_mean` every target weighs 1/5 on both ranks; with
    `sequence_mean` 1/6 on the first and 1/4 on the second.
    """

    def __init__(
        self,
        texts: Texts,
        epochs: Epochs,
        *,
        rank: int,
        num_ranks: int,
        chunk_tokens: int,
        reduction: Literal["token_mean", "sequence_mean"] = "token_mean",
    ) -> None:
        """
        Args:
            rank: which of the `num_ranks` data-parallel ranks this is.
            chunk_tokens: length of a chunk; ranks are given whole ones.
            reduction: token_mean: mean over the batch's targets. sequence_mean: mean over a document's targets, then
                over documents.
        """
        self._texts, self._epochs, self._reduction = texts, epochs, reduction
        self._rank, self._num_ranks, self._chunk_tokens = rank, num_ranks, chunk_tokens
        self._lengths, self._num_targets = list(texts.lengths), list(texts.num_targets)

    def share(self, step: int) -> tuple[list[Document], int]:
        """This rank's documents of the step after `step` steps, and the number of tokens of all ranks' documents.

        The weights of all ranks' targets sum to 1.
        """
        chosen = self._epochs.batch(step)
        lengths = [self._lengths[i] for i in chosen]
        total = sum(self._num_targets[i] for i in chosen)
        mine = [chosen[k] for k in spread(lengths, self._chunk_tokens, self._num_ranks)[self._rank]]
        if self._reduction == "token_mean":
            weights = [1.0 / total] * len(mine)
        else:
            weights = [1.0 / (len(chosen) * self._num_targets[i]) for i in mine]
        return [self._texts.document(i, w) for i, w in zip(mine, weights, strict=True)], sum(lengths)
