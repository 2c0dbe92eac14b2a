"""Packing documents into chunks of one length: best-fit decreasing (report v2 B.1: "Best-Fit").

One packer for pretraining, SFT and RL. `spread` divides a batch over data-parallel ranks, `pack` lays out what a rank
has, and both agree: a rank that packs its share needs no more chunks than were dealt to it.

Deviation: of three batches of 64 in a hundred, best-fit makes one chunk more than their tokens fill. A batch of few
documents is then packed anew, the fullest chunk at a time, and keeps that plan where it has fewer chunks.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

from r1mega.errors import DataError

WORK = 512**2 * 32_768
"""(Documents squared) x capacity up to which the fullest chunks are looked for: a tenth of a second; 64 documents in
chunks of 32,768 tokens take a millisecond."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute documents over few chunks.

    Longest first, each document goes into the fullest chunk that still holds it, the older of two alike; equal
    lengths in the given order. A second's work for some 400,000 documents. Where few documents (`WORK`) would fit
    into fewer chunks by their tokens alone, the plan of `fullest_first` is taken if it has fewer.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a chunk.

    Returns:
        For each chunk the indices of its documents; every index exactly once. The same input gives the same plan.

    Raises:
        DataError: a document is longer than a chunk, or has no tokens.
    """
    for i, length in enumerate(lengths):
        if length > capacity:
            raise DataError(
                f"document {i} has {length} tokens, a chunk holds {capacity}: raise batch.chunk_tokens or shorten "
                "the documents"
            )
        if length <= 0:
            raise DataError(f"document {i} has {length} tokens: leave empty documents out")
    chunks = best_fit(lengths, capacity)
    if len(lengths) ** 2 * capacity <= WORK and len(chunks) * capacity - sum(lengths) >= capacity:
        chunks = min(chunks, fullest_first(lengths, capacity), key=len)
    return chunks


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: documents by length, each into the fullest chunk that holds it."""
    chunks: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # chunks by the tokens they still hold, a heap each
    spaces = _SortedInts()
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        space = spaces.at_least(lengths[i])
        if space < 0:
            space, chunk = capacity, len(chunks)
            chunks.append([])
        else:
            chunk = heappop(by_space[space])
            if not by_space[space]:
                spaces.remove(space)
        chunks[chunk].append(i)
        if left := space - lengths[i]:
            heap = by_space.setdefault(left, [])
            if not heap:
                spaces.add(left)
            heappush(heap, chunk)
    return chunks


def fullest_first(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Chunk by chunk: the longest document left, and those beside it that leave the least room (minimum bin slack).

    Among fillings of equal size the one whose documents come first by length: the same one from a part of the
    documents that has it. Which sizes can be had is a set of bits, one for each number of tokens.
    """
    left = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    chunks: list[list[int]] = []
    while left:
        first, *others = left
        room = capacity - lengths[first]
        sizes = [1]  # of what can be put together from the last n of the others
        for i in reversed(others):
            longer = sizes[-1] << lengths[i] if lengths[i] <= room else 0
            sizes.append(sizes[-1] | longer & ((1 << room + 1) - 1))
        chunk, wanted = [first], sizes[-1].bit_length() - 1
        for n, i in zip(range(len(others) - 1, -1, -1), others, strict=True):
            if lengths[i] <= wanted and sizes[n] >> wanted - lengths[i] & 1:
                chunk.append(i)
                wanted -= lengths[i]
        taken = set(chunk)
        left = [i for i in left if i not in taken]
        chunks.append(chunk)
    return chunks


def spread(lengths: Sequence[int], capacity: int, num_shares: int) -> list[list[int]]:
    """Divide documents over data-parallel ranks so that all have as many chunks, or one fewer.

    The whole batch is packed, and its chunks are dealt out, the fullest first, each to the rank with the fewest
    chunks, among several to the one with the fewest tokens. Ranks that are one short run an empty chunk beside the
    others' last.

    Args:
        lengths: tokens of each document of the batch, over all ranks.
        capacity: tokens of a chunk.

    Returns:
        For each rank the indices of its documents, ascending: `pack` on them needs no more chunks than were dealt.

    Raises:
        DataError: as `pack`.
    """
    if num_shares == 1:
        return [list(range(len(lengths)))]
    chunks = pack(lengths, capacity)
    tokens = [sum(lengths[i] for i in chunk) for chunk in chunks]
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    dealt = [(0, 0)] * num_shares  # chunks, tokens
    for c in sorted(range(len(chunks)), key=lambda c: -tokens[c]):
        rank = dealt.index(min(dealt))
        shares[rank] += chunks[c]
        dealt[rank] = dealt[rank][0] + 1, dealt[rank][1] + tokens[c]
    return [sorted(share) for share in shares]


class _SortedInts:
    """A set of small positive integers that finds the smallest one from a bound on: bits in words, and a summary."""

    BITS = 64

    def __init__(self) -> None:
        self._words: dict[int, int] = {}
        self._summary = 0

    def add(self, value: int) -> None:
        word, bit = divmod(value, self.BITS)
        self._words[word] = self._words.get(word, 0) | 1 << bit
        self._summary |= 1 << word

    def remove(self, value: int) -> None:
        word, bit = divmod(value, self.BITS)
        self._words[word] &= ~(1 << bit)
        if not self._words[word]:
            self._summary &= ~(1 << word)

    def at_least(self, bound: int) -> int:
        """The smallest member that is no smaller than `bound`; -1 where there is none."""
        word, bit = divmod(bound, self.BITS)
        if rest := self._words.get(word, 0) >> bit << bit:
            return word * self.BITS + _lowest(rest)
        if not (later := self._summary >> (word + 1)):
            return -1
        word += 1 + _lowest(later)
        return word * self.BITS + _lowest(self._words[word])


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
