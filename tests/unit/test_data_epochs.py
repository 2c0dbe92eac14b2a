"""Epochs: every document once in each, in an order of its own, whatever step a run goes on from."""

import random

import pytest

from r1mega.data.epochs import Epochs
from r1mega.errors import DataError

LENGTHS = [random.Random(0).randint(1, 50) for _ in range(103)]


def steps(epochs: Epochs, num: int) -> list[list[int]]:
    return [epochs.batch(step) for step in range(num)]


@pytest.mark.parametrize(("unit", "size"), [("samples", 10), ("chunks", 7)])
def test_every_document_comes_once_in_an_epoch_and_in_another_order_in_the_next(unit, size: int):
    epochs = Epochs(LENGTHS, size, seed=3, unit=unit, chunk_tokens=50)
    batches = steps(epochs, 3 * epochs.steps_per_epoch)
    orders = [
        [i for batch in batches[e * epochs.steps_per_epoch : (e + 1) * epochs.steps_per_epoch] for i in batch]
        for e in range(3)
    ]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    other = Epochs(LENGTHS, size, seed=4, unit=unit, chunk_tokens=50)
    assert steps(other, 1) != batches[:1]


@pytest.mark.parametrize("unit", ["samples", "chunks"])
def test_a_run_that_goes_on_takes_the_very_next_documents(unit):
    whole = Epochs(LENGTHS, 9, seed=0, unit=unit, chunk_tokens=50)
    num = 2 * whole.steps_per_epoch
    expected = steps(whole, num)
    for step in (1, whole.steps_per_epoch - 1, whole.steps_per_epoch, num - 1):
        resumed = Epochs(LENGTHS, 9, seed=0, unit=unit, chunk_tokens=50)
        assert resumed.batch(step) == expected[step]
        assert resumed.place(step) == {
            "epoch": step // whole.steps_per_epoch,
            "batches": step % whole.steps_per_epoch,
        }


def test_chunks_of_a_step_are_full_and_no_more_than_asked_for():
    epochs = Epochs(LENGTHS, 7, seed=0, unit="chunks", chunk_tokens=50)
    assert epochs.steps_per_epoch == -(-len_chunks(list(range(103))) // 7)
    for step in range(epochs.steps_per_epoch - 1):
        assert len_chunks(epochs.batch(step)) == 7


def len_chunks(chosen: list[int]) -> int:
    from r1mega.data.packing import pack

    return len(pack([LENGTHS[i] for i in chosen], 50))


def test_the_rest_of_an_epoch_is_its_last_batch_or_left_out():
    assert len(Epochs(LENGTHS, 10, seed=0).batch(10)) == 3
    left_out = Epochs(LENGTHS, 10, seed=0, keep_rest=False)
    assert left_out.steps_per_epoch == 10
    assert all(len(batch) == 10 for batch in steps(left_out, 20))


def test_too_few_documents_are_refused():
    with pytest.raises(DataError, match="0 documents do not make a batch of 4"):
        Epochs([], 4, seed=0)
    with pytest.raises(DataError, match="3 documents do not make a batch of 4"):
        Epochs([1, 2, 3], 4, seed=0, keep_rest=False)


@pytest.mark.parametrize(("unit", "size"), [("samples", 10), ("chunks", 7)])
def test_what_is_left_out_comes_no_more_and_every_other_place_is_as_it_was(unit, size: int):
    def of(*left_out: set[int]) -> Epochs:
        epochs = Epochs(LENGTHS, size, seed=3, unit=unit, chunk_tokens=50)
        for documents in left_out:
            epochs.leave_out(documents)
        return epochs

    plain, first, second = of(), set(of().batch(4)), set(of().batch(9))
    once, twice = of(first), of(first, second)
    num = 3 * plain.steps_per_epoch
    assert once.steps_per_epoch == plain.steps_per_epoch
    for step in range(num):
        before, after = plain.batch(step), once.batch(step)
        assert not first & set(after)
        assert set(before) - first <= set(after)  # and in the places of the others some that were kept
        assert len(after) >= len(before) if unit == "samples" else after
        if not second & set(after):
            assert twice.batch(step) == after  # also where an earlier one had been replaced
        assert not (first | second) & set(twice.batch(step))
    assert steps(of(first | second), num) == steps(twice, num)  # as a run that resumes is told it
    with pytest.raises(DataError, match="all 103 documents have been left out"):
        of(set(range(103)))


def test_batches_that_are_passed_over_are_taken_by_no_step():
    plain, epochs = Epochs(LENGTHS, 10, seed=0), Epochs(LENGTHS, 10, seed=0)
    epochs.pass_over(4, 3)
    epochs.pass_over(4, 1)
    epochs.pass_over(15, 2)
    assert steps(epochs, 20) == [plain.batch(i) for i in [*range(4), *range(8, 19), *range(21, 26)]]
    assert epochs.place(4) == {"epoch": 0, "batches": 8} and epochs.place(7) == {"epoch": 1, "batches": 0}
