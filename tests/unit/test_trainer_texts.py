"""Documents of several texts as tensors, worked by hand: beside each other, packed, and divided over ranks."""

from typing import Any

from r1mega.buffers import Float32s, Int32s
from r1mega.config.training import Batch
from r1mega.samples import Document


def hand_worked(form, chunk_tokens=16) -> Any:
    """A pair of 3 and 2 tokens and a single text of 4."""
    from r1mega.trainer.batch import micro_batches

    documents = [
        Document.of_texts([Int32s([11, 12, 13]), Int32s([21, 22])], {"gap": [3.0, 3.0]}),
        Document.of_texts([Int32s([31, 32, 33, 34])], {"gap": [1.0]}),
    ]
    (batch,) = micro_batches(documents, Batch(chunk_tokens=chunk_tokens), mtp_depths=0, form=form)
    return batch


def test_texts_of_a_pair_lie_apart(mesh):
    from r1mega.trainer.batch import BESIDE

    batch = hand_worked(BESIDE, 12)
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, 31, 32, 33, 34, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]]
    assert batch.padding_mask.tolist() == [[False] * 9 + [True] * 3]
    assert (batch.targets.rows.tolist(), batch.targets.ids.tolist()) == ([2, 4, 8], [13, 22, 34])
    assert batch.doc.tolist() == [0, 0, 1] and batch.fields["gap"].tolist() == [3.0, 3.0, 1.0]
    assert batch.documents == (0, 1)


def test_texts_of_a_pair_are_runs_of_a_packed_row(mesh):
    from r1mega.trainer.batch import Form

    batch = hand_worked(Form(packed=True), 12)
    assert batch.segments.cu_seqlens.tolist() == [0, 3, 5, 9, 12] and batch.segments.longest == 4
    assert batch.targets.rows.tolist() == [2, 4, 8]


def test_context_parallel_ranks_share_each_text(mesh):
    """cp 2: each text is padded to 4 rows by itself, of which rank 0 takes the first and the last block."""
    from r1mega.trainer.batch import Form

    first, second = (hand_worked(Form(packed=True, cp=2, rank=rank)) for rank in (0, 1))
    assert first.segments.cu_seqlens.tolist() == [0, 4, 8, 12, 16]
    assert first.input_ids.tolist() == [[11, 0, 21, 0, 31, 34, 0, 0]]
    assert second.input_ids.tolist() == [[12, 13, 22, 0, 32, 33, 0, 0]]
    assert first.position_ids.tolist() == [[0, 3, 0, 3, 0, 3, 0, 3]]
    assert second.position_ids.tolist() == [[1, 2, 1, 2, 1, 2, 1, 2]]
    # The ends are rows 2, 5 and 11 of the whole: two on the second rank, one on the first.
    assert (first.targets.rows.tolist(), first.targets.places.tolist()) == ([5], [2])
    assert (second.targets.rows.tolist(), second.targets.places.tolist()) == ([1, 2], [0, 1])
    assert first.targets.total == second.targets.total == 3
    assert first.targets.ids.tolist() == [34] and second.targets.ids.tolist() == [13, 22]
    assert Float32s(first.fields["gap"].numpy()) == Float32s([3.0, 3.0, 1.0])
