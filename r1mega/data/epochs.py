"""Which documents each optimiser step takes: epochs, each in an order of its own, from seed and step alone.

A resumed run therefore goes on with the very next document, whatever the number of its ranks. What is left out of a
run on the way, and which batches it passes over, is told from outside, and the rest follows from that as well.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Literal

from r1mega.data.packing import pack
from r1mega.errors import DataError


class Epochs:
    """Batches of documents; within an epoch every document comes once."""

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        unit: Literal["samples", "chunks"] = "samples",
        chunk_tokens: int = 0,
        keep_rest: bool = True,
    ) -> None:
        """
        Args:
            lengths: tokens of each document.
            batch_size: documents, or chunks, of a step.
            seed: of the orders.
            unit: samples: documents are taken in a shuffled order. chunks: all of them are packed together, and
                their chunks are taken in a shuffled order.
            chunk_tokens: length of such a chunk.
            keep_rest: whether an epoch's last batch may be smaller; otherwise what does not fill it is left out of
                this epoch.

        Raises:
            DataError: no documents, or fewer than fill one batch where the rest is left out.
        """
        self._lengths, self._size, self._seed, self._keep_rest = lengths, batch_size, seed, keep_rest
        self._packed_to = chunk_tokens if unit == "chunks" else 0
        self._left_out: set[int] = set()
        self._passed: list[tuple[int, int]] = []
        self._epoch = -1
        self._units: list[list[int]] = []
        self._deal(0)
        num = len(self._units)
        self.steps_per_epoch = -(-num // batch_size) if keep_rest else num // batch_size
        if not self.steps_per_epoch:
            raise DataError(f"{num} documents do not make a batch of {batch_size}")

    def leave_out(self, documents: Iterable[int]) -> None:
        """Documents that no later batch has. The place of a unit that loses all of its documents is taken by another
        unit of the same epoch, drawn for that place, so that steps keep their number and batches their size; every
        other place has what it would have had.

        Raises:
            DataError: none would be left.
        """
        self._left_out |= set(documents)
        if len(self._left_out) >= len(self._lengths):
            raise DataError(f"all {len(self._lengths)} documents have been left out: there is nothing to train on")
        self._deal(self._epoch)

    def pass_over(self, since: int, batches: int) -> None:
        """Let the steps from one on take the batches that many further on, in place of their own."""
        self._passed.append((since, batches))

    def batch(self, step: int) -> list[int]:
        """The documents of the step after `step` steps."""
        epoch, place = divmod(self._index(step), self.steps_per_epoch)
        if epoch != self._epoch:
            self._deal(epoch)
        return [i for unit in self._units[place * self._size : (place + 1) * self._size] for i in unit]

    def place(self, step: int) -> dict[str, int]:
        """Where the run stands after `step` steps: whole epochs, and batches of the one that follows."""
        epoch, batches = divmod(self._index(step), self.steps_per_epoch)
        return {"epoch": epoch, "batches": batches}

    def _index(self, step: int) -> int:
        return step + sum(batches for since, batches in self._passed if step >= since)

    def _deal(self, epoch: int) -> None:
        rng = random.Random(f"{self._seed}/{epoch}")
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        if self._packed_to:
            chunks = pack([self._lengths[i] for i in order], self._packed_to)
            units = [[order[i] for i in chunk] for chunk in chunks]
            rng.shuffle(units)
        else:
            units = [[i] for i in order]
        self._units = self._without_left_out(units, epoch) if self._left_out else units
        self._epoch = epoch

    def _without_left_out(self, units: list[list[int]], epoch: int) -> list[list[int]]:
        kept = [[i for i in unit if i not in self._left_out] for unit in units]
        return [unit or self._in_place_of(k, kept, epoch) for k, unit in enumerate(kept)]

    def _in_place_of(self, place: int, kept: list[list[int]], epoch: int) -> list[int]:
        """The unit for an empty place: drawn again and again until one has documents, so that leaving out more later
        changes no other place."""
        rng = random.Random(f"{self._seed}/{epoch}/{place}")
        while not (unit := kept[rng.randrange(len(kept))]):
            pass
        return unit
