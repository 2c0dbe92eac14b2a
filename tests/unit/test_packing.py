"""Packing: best-fit decreasing, every document once, few chunks, and as many of them on every rank."""

import math
import random
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mega.data.packing import best_fit, fullest_first, pack, spread
from r1mega.errors import DataError

CONTEXT = 32_768
LENGTHS = st.lists(st.integers(1, 50), max_size=60)


@pytest.fixture(scope="module")
def report_lengths() -> list[int]:
    """800,000 lengths such as the report's: median 3,300, long-tailed, none over the context."""
    drawn = np.random.default_rng(0).lognormal(math.log(3300), 1.0, 800_000)
    return np.clip(np.rint(drawn), 1, CONTEXT).astype(int).tolist()


def plain(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing by its definition, every chunk looked at."""
    chunks: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        space = [capacity - sum(lengths[j] for j in chunk) for chunk in chunks]
        fitting = [c for c in range(len(chunks)) if space[c] >= lengths[i]]
        if fitting:
            chunks[min(fitting, key=lambda c: (space[c], c))].append(i)
        else:
            chunks.append([i])
    return chunks


def test_best_fit_by_hand():
    # 7 opens a chunk of 10; 6 another; 4 fits only the second; 3 fills the first; 2 opens a third.
    assert pack([4, 7, 2, 6, 3], 10) == [[1, 4], [3, 0], [2]]


def test_exact_fits_fill_chunks_to_the_brim():
    assert pack([10, 6, 4, 10, 5, 5], 10) == [[0], [3], [1, 2], [4, 5]]
    assert pack([], 10) == []


def test_too_long_and_empty_documents_are_refused():
    with pytest.raises(DataError, match="document 1 has 11 tokens, a chunk holds 10"):
        pack([3, 11], 10)
    with pytest.raises(DataError, match="document 2 has 0 tokens: leave empty documents out"):
        pack([3, 10, 0], 10)
    with pytest.raises(DataError, match="document 1 has 11 tokens"):
        spread([3, 11], 10, 2)


@given(LENGTHS)
def test_it_is_best_fit_decreasing_unless_that_wastes_a_chunk(lengths: list[int]):
    plan = plain(lengths, 50)
    assert best_fit(lengths, 50) == plan
    found = pack(lengths, 50)
    assert found == plan or -(-sum(lengths) // 50) <= len(found) < len(plan)


def test_the_fullest_chunk_by_hand():
    lengths = [5, 4, 4, 3, 2, 2]  # best-fit makes 5 + 4, 4 + 3 + 2 and a third of the last 2
    assert best_fit(lengths, 10) == [[0, 1], [2, 3, 4], [5]]
    assert pack(lengths, 10) == fullest_first(lengths, 10) == [[0, 3, 4], [1, 2, 5]]


@given(LENGTHS)
def test_a_chunk_leaves_no_more_room_than_any_other_filling(lengths: list[int]):
    """Tried out: no subset of what was left could have filled a chunk further."""
    left = set(range(len(lengths)))
    for chunk in fullest_first(lengths, 50):
        assert left.issuperset(chunk)
        longest = max(left, key=lambda i: lengths[i])
        sizes = {lengths[longest]}
        for i in left - {longest}:
            sizes |= {size + lengths[i] for size in sizes if size + lengths[i] <= 50}
        assert sum(lengths[i] for i in chunk) == max(sizes)
        left -= set(chunk)
    assert not left


@given(LENGTHS)
def test_every_document_once_and_chunks_within_capacity(lengths: list[int]):
    chunks = pack(lengths, 50)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in chunk) <= 50 for chunk in chunks)
    # At most one chunk is less than half full, or two of them would have been one.
    assert sum(sum(lengths[i] for i in chunk) <= 25 for chunk in chunks) <= 1


@given(LENGTHS, st.integers(1, 5))
def test_ranks_need_no_more_chunks_than_were_dealt_to_them(lengths: list[int], num_ranks: int):
    shares = spread(lengths, 50, num_ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    counts = [len(pack([lengths[i] for i in share], 50)) for share in shares]
    assert max(counts) <= -(-len(pack(lengths, 50)) // num_ranks)


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_a_batch_of_64_is_padded_to_whole_chunks_and_ranks_alone(report_lengths: list[int], num_ranks: int):
    for first in range(0, 64 * 1000, 64):
        batch = report_lengths[first : first + 64]
        counts = [len(pack([batch[i] for i in share], CONTEXT)) for share in spread(batch, CONTEXT, num_ranks)]
        assert max(counts) == math.ceil(math.ceil(sum(batch) / CONTEXT) / num_ranks), batch


def test_the_reports_data_set_packs_with_next_to_no_padding(report_lengths: list[int]):
    chunks = pack(report_lengths, CONTEXT)
    least = -(-sum(report_lengths) // CONTEXT)
    assert least <= len(chunks) <= 1.01 * least
    assert len(chunks) - least < 20


def instructions(lengths: list[int]) -> int:
    """How many of Python's instructions packing them takes."""
    count = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        best_fit(lengths, CONTEXT)
    finally:
        sys.settrace(before)
    return count


def test_a_document_costs_as_much_among_many_as_among_few(report_lengths: list[int]):
    """Why 800,000 are packed in seconds: no chunk is looked at but the one that is taken."""
    few, many = (instructions(report_lengths[:num]) / num for num in (500, 8000))
    assert many <= 1.2 * few


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_a_batch_of_64_pads_by_rounding_alone(report_lengths: list[int], num_ranks: int):
    """To whole chunks and to as many on every rank; where few documents fill chunks badly, one chunk a rank more."""
    rng = random.Random(num_ranks)
    more = 0
    for _ in range(200):
        lengths = rng.sample(report_lengths, 64)
        least = -(-sum(lengths) // CONTEXT)
        a_rank = -(-least // num_ranks)
        made = max(len(pack([lengths[i] for i in share], CONTEXT)) for share in spread(lengths, CONTEXT, num_ranks))
        assert a_rank <= made <= a_rank + 1
        more += made > a_rank
    assert more <= 12
