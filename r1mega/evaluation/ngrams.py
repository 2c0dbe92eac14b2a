"""Sequences of n words as 64-bit hashes, a block of texts at a time, and an index of those that are looked for.

Words are found and hashed with numpy, without a Python object for each. A word's hash is of its first 256 bytes and
its length, and a sequence's a polynomial in those of its words, mod 2^64. Hashes only choose what is looked at: a
sequence counts as found where its words are the same, byte for byte.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_LETTER, _DIGIT = 1, 2
_CLASS = np.zeros(256, np.uint8)
_CLASS[np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", np.uint8)] = _LETTER
_CLASS[128:] = _LETTER  # UTF-8 of what normalise.py left: letters of other scripts
_CLASS[np.frombuffer(b"0123456789", np.uint8)] = _DIGIT
_HASHED_BYTES = 256
INDEXED_AT_ONCE = 512
"""Texts of an evaluation."""
_P, _Q, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), np.uint64(0xBF58476D1CE4E5B9)
_KEPT = np.array([(1 << 8 * kept) - 1 for kept in range(9)], np.uint64)
"""Of a little-endian word of 8 bytes, the first 0 .. 8."""


@dataclass(frozen=True)
class Words:
    """The words of several texts, in order."""

    buffer: bytes
    starts: NDArray[np.int64]
    """[words]: where each word begins in `buffer`."""
    ends: NDArray[np.int64]
    """[words]"""
    text: NDArray[np.int64]
    """[words]: the number of the text that it stands in, ascending."""

    def sequence(self, first: int, n: int) -> bytes:
        """n words from a place on, a space between them."""
        places = zip(self.starts[first : first + n], self.ends[first : first + n], strict=True)
        return b" ".join(self.buffer[start:end] for start, end in places)


def words_of(texts: Sequence[str]) -> Words:
    """The words of texts that `normalise` made."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    buffer = b" ".join(encoded) + b" " * 8  # a word of 8 bytes may be read anywhere
    kinds = _CLASS[np.frombuffer(buffer, np.uint8)]
    changes = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    bounds = np.concatenate(([0], changes))
    starts = bounds[kinds[bounds] != 0]
    ends = np.concatenate((changes, [len(buffer)]))[kinds[bounds] != 0]
    first_byte = np.cumsum([0, *(len(text) + 1 for text in encoded)])
    text = np.searchsorted(first_byte, starts, side="right") - 1
    return Words(buffer, starts, ends, text)


def hashes(words: Words, n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash and first word of every sequence of n words within one text, in order."""
    if len(words.starts) < n:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    word = _word_hashes(words)
    num = len(word) - n + 1
    total, power = np.zeros(num, np.uint64), np.uint64(1)
    with np.errstate(over="ignore"):
        for j in range(n):
            total += word[j : j + num] * power
            power *= _Q
    whole = np.flatnonzero(words.text[:num] == words.text[n - 1 :])
    return _mixed(total[whole]), whole


def _word_hashes(words: Words) -> NDArray[np.uint64]:
    """[words]: of each word's bytes."""
    eight = np.ndarray((len(words.buffer) - 7,), "<u8", words.buffer, strides=(1,))  # 8 bytes from every byte on
    length = words.ends - words.starts
    found = eight[words.starts] & _KEPT[np.minimum(length, 8)]
    found = _mixed(found + length.astype(np.uint64) * _P)
    longer = np.flatnonzero(length > 8)
    for at in range(8, _HASHED_BYTES, 8):
        if not len(longer):
            break
        more = eight[words.starts[longer] + at] & _KEPT[np.minimum(length[longer] - at, 8)]
        found[longer] = _mixed(found[longer] * _P + more)
        longer = longer[length[longer] > at + 8]
    return found


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of a value spread over all of them."""
    values = (values ^ (values >> np.uint64(31))) * _MIX
    return values ^ (values >> np.uint64(29))


class _Seen:
    """A sequence of words while an index is made."""

    __slots__ = ("first", "hash", "last", "num_texts")

    def __init__(self, value: int, first: int) -> None:
        self.hash, self.first, self.last, self.num_texts = value, first, first, 1


@dataclass(frozen=True)
class Found:
    """A sequence of words that stands in a text and in one that is looked for."""

    text: int
    """The number of the text among those that were searched."""
    against: int
    """The number of the first text that is looked for and has it."""
    words: str
    num_against: int
    """How many of the texts that are looked for have it."""


@dataclass(frozen=True)
class Index:
    """All sequences of n words of the texts that are looked for."""

    n: int
    hashes: NDArray[np.uint64]
    """[sequences], ascending and each once."""
    words: Sequence[bytes]
    """[sequences]: their words."""
    first: NDArray[np.int64]
    """[sequences]: the first text that has it."""
    num_texts: NDArray[np.int64]
    """[sequences]: how many texts have it."""
    table: NDArray[np.bool_] = field(repr=False)
    """[a power of two]: whether a sequence's hash has these low bits: most that are searched end here."""

    @classmethod
    def of(cls, texts: Sequence[str], n: int) -> "Index":
        """Of texts that `normalise` made."""
        seen: dict[bytes, _Seen] = {}
        for start in range(0, len(texts), INDEXED_AT_ONCE):
            words = words_of(texts[start : start + INDEXED_AT_ONCE])
            for value, place in zip(*hashes(words, n), strict=True):
                number = start + int(words.text[place])
                known = seen.setdefault(words.sequence(int(place), n), _Seen(int(value), number))
                known.num_texts += known.last != number
                known.last = number
        ordered = sorted(seen, key=lambda sequence: seen[sequence].hash)
        values = np.array([seen[sequence].hash for sequence in ordered], np.uint64)
        first = np.array([seen[sequence].first for sequence in ordered], np.int64)
        num_texts = np.array([seen[sequence].num_texts for sequence in ordered], np.int64)
        size = 1 << max(16, min(28, (32 * len(ordered)).bit_length()))
        table = np.zeros(size, np.bool_)
        table[values & np.uint64(size - 1)] = True
        return cls(n, values, ordered, first, num_texts, table)

    def find(self, texts: Sequence[str]) -> list[Found]:
        """Every place in texts that `normalise` made at which a sequence that is looked for stands, in order."""
        if not len(self.hashes) or not texts:
            return []
        words = words_of(texts)
        values, places = hashes(words, self.n)
        maybe = np.flatnonzero(self.table[values & np.uint64(len(self.table) - 1)])
        at = np.searchsorted(self.hashes, values[maybe])
        same = np.flatnonzero(self.hashes[np.minimum(at, len(self.hashes) - 1)] == values[maybe])
        found = []
        for entry, place in zip(at[same], places[maybe[same]], strict=True):
            sequence = words.sequence(int(place), self.n)
            entry = self._entry(int(entry), sequence)
            if entry is not None:
                text, first = int(words.text[place]), int(self.first[entry])
                found.append(Found(text, first, sequence.decode(), int(self.num_texts[entry])))
        return found

    def _entry(self, entry: int, sequence: bytes) -> int | None:
        """The place of a sequence among those that have one hash, of which `entry` is the first."""
        value = self.hashes[entry]
        while entry < len(self.hashes) and self.hashes[entry] == value:
            if self.words[entry] == sequence:
                return entry
            entry += 1
        return None
