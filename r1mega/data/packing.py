"""Packing documents into chunks of one length: best-fit decreasing (report v2 B.1: "Best-Fit")."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from r1mega.errors import DataError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Distribute documents over as few chunks as best-fit decreasing finds.

    Longest first, each document goes into the fullest chunk that still holds it; equal lengths in the given order.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a chunk.

    Returns:
        For each chunk the indices of its documents; every index exactly once. The same input gives the same plan.

    Raises:
        DataError: a document is longer than a chunk.
    """
    for i, length in enumerate(lengths):
        if length > capacity:
            raise DataError(
                f"document {i} has {length} tokens, a chunk holds {capacity}: raise batch.chunk_tokens or shorten "
                "the documents"
            )
    chunks: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, chunk), ascending
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[i], -1))
        if place == len(free):
            left, chunk = capacity, len(chunks)
            chunks.append([])
        else:
            left, chunk = free.pop(place)
        chunks[chunk].append(i)
        insort(free, (left - lengths[i], chunk))
    return chunks
