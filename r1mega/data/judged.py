"""Tokenised pairs and labelled answers as documents, and a data-parallel rank's share of every step's."""

from collections.abc import Sequence
from dataclasses import dataclass

from r1mega.buffers import Int32s
from r1mega.data.epochs import Epochs
from r1mega.data.packing import spread
from r1mega.data.settings import Balance, Objective
from r1mega.data.token_store import TokenStore
from r1mega.samples import Document


@dataclass(frozen=True)
class Judged:
    """The N documents of a store that `preference_data.Preferences` wrote."""

    store: TokenStore
    objective: Objective
    margin_scale: float = 0.0
    """Of pairs with a gap: the margin is this times the gap."""

    @property
    def lengths(self) -> list[int]:
        """[N] tokens of each document, all of its texts together."""
        return self.store.lengths

    @property
    def labels(self) -> list[bool]:
        """[N] of labelled answers: whether each is safe."""
        assert self.store.values is not None
        return (self.store.values > 0.5).tolist()

    def tokens(self, i: int) -> tuple[int, ...]:
        """Of each text of document i, in its order."""
        spans = self.store.spans[self.store.span_starts[i] : self.store.span_starts[i + 1]]
        return tuple((spans[:, 1] - spans[:, 0]).tolist())

    def document(self, i: int, weight: float, share: float = 1.0) -> Document:
        """Document i with the fields of `algos.preference`.

        Args:
            weight: of it in the loss; a pair's stands on both of its texts.
            share: of it in the metrics.
        """
        begin = int(self.store.starts[i])
        ids = Int32s(self.store.tokens[begin : self.store.starts[i + 1]])
        lengths = self.tokens(i)
        ends = [sum(lengths[: k + 1]) for k in range(len(lengths))]
        texts = [ids[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        value = 0.0 if self.store.values is None else float(self.store.values[i])
        if self.objective == "pointwise":
            fields = {"weight": [weight], "share": [share], "safe": [value]}
        else:
            margin = self.margin_scale * value
            fields = {"weight": [weight] * 2, "margin": [margin] * 2, "tokens": [float(n) for n in lengths]}
        return Document.of_texts(texts, fields)


class JudgedBatches:
    """One data-parallel rank's share of every step's pairs or answers; the weights of all ranks' sum to 1."""

    def __init__(
        self,
        texts: Judged,
        epochs: Epochs,
        *,
        rank: int,
        num_ranks: int,
        chunk_tokens: int,
        balance: Balance = "none",
    ) -> None:
        """
        Args:
            rank: which of the `num_ranks` data-parallel ranks this is.
            chunk_tokens: length of a chunk; ranks are given whole ones.
            balance: of labelled answers. none: each weighs the same. classes: safe and unsafe ones weigh the same
                over the data set, whatever their numbers.
        """
        self._texts, self._epochs = texts, epochs
        self._rank, self._num_ranks, self._chunk_tokens = rank, num_ranks, chunk_tokens
        self._lengths = texts.lengths
        self._relative = relative_weights(texts.labels) if balance == "classes" else [1.0] * len(self._lengths)

    def share(self, step: int) -> tuple[list[Document], int]:
        """This rank's documents of the step after `step` steps, and the number of tokens of all ranks' documents."""
        chosen = self._epochs.batch(step)
        lengths = [self._lengths[i] for i in chosen]
        total = sum(self._relative[i] for i in chosen)
        mine = [chosen[k] for k in spread(lengths, self._chunk_tokens, self._num_ranks)[self._rank]]
        share = 1.0 / len(chosen)
        return [self._texts.document(i, self._relative[i] / total, share) for i in mine], sum(lengths)


def relative_weights(labels: Sequence[bool]) -> list[float]:
    """Weights under which both classes of a data set weigh the same: total / (2 x its class).

    >>> relative_weights([True, False, False, False])[:2]
    [2.0, 0.6666666666666666]
    """
    total, safe = len(labels), sum(labels)
    of_class = {True: safe, False: total - safe}
    return [total / (2 * of_class[label]) for label in labels]
