"""Packing: best-fit decreasing, every document once, nothing over the length of a chunk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mega.data.packing import pack
from r1mega.errors import DataError


def test_best_fit_by_hand():
    # 7 opens a chunk of 10; 6 another; 4 fits only the second; 3 fills the first; 2 opens a third.
    assert pack([4, 7, 2, 6, 3], 10) == [[1, 4], [3, 0], [2]]


def test_too_long_is_refused():
    with pytest.raises(DataError, match="document 1 has 11 tokens"):
        pack([3, 11], 10)


@given(st.lists(st.integers(1, 50), max_size=60))
def test_every_document_once_and_chunks_within_capacity(lengths):
    chunks = pack(lengths, 50)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in chunk) <= 50 for chunk in chunks)
    # At most one chunk is less than half full, or two of them would have been one.
    assert sum(sum(lengths[i] for i in chunk) <= 25 for chunk in chunks) <= 1
