"""From documents to the tensors of micro-batches.

Shapes: B chunks of a micro-batch, S tokens of a chunk, T targets of a micro-batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1mega.config.schema import Batch
from r1mega.data.packing import pack
from r1mega.errors import DataError
from r1mega.samples import Document
from r1mega.trainer.attention import Segments, segments

PADDING_RUN = 32
"""Padding attends to itself in runs of this length, which keeps it cheap."""


@dataclass(frozen=True)
class Targets:
    """Tokens to predict. `rows` indexes hidden states [S, B, H] flattened to [S * B, H]."""

    rows: Tensor
    """[T] int64: the position that predicts each target."""
    ids: Tensor
    """[T] int64: the token it should predict."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass needs. Documents of a chunk neither attend to nor predict each other."""

    input_ids: Tensor
    """[B, S] int64, padded with 0."""
    position_ids: Tensor
    """[B, S] int64, counted from each document's start."""
    segments: Segments
    """Which positions attend to each other: those of one document."""
    padding_mask: Tensor
    """[B, S] bool, True = padding."""
    targets: Targets
    """Ordered document by document."""
    mtp_targets: tuple[Targets, ...]
    """For MTP depth k = 1, 2, ...: each target predicted from k tokens further back, inside its document."""
    doc: Tensor
    """[T] int64: which document of the micro-batch a target belongs to; ascending from 0."""
    fields: Mapping[str, Tensor]
    """[T] fp32 each."""
    documents: tuple[int, ...]
    """Indices into the mini-batch's documents."""


def micro_batches(
    documents: Sequence[Document],
    batch: Batch,
    *,
    mtp_depths: int,
    agreed: Callable[[int], int] = lambda num_chunks: num_chunks,
) -> list[MicroBatch]:
    """Pack documents into chunks, chunks into micro-batches of equal size.

    Args:
        documents: may be empty where other ranks have some.
        mtp_depths: how many MTP depths need targets.
        agreed: the number of chunks that all data-parallel ranks make, from this rank's own; no smaller. Chunks
            without documents make up for the difference: experts and pipelines need the ranks to move in step.

    Raises:
        DataError: no documents on any rank, an empty or too long one, or fields that do not fit the targets.
    """
    names = set(documents[0].fields) if documents else set()
    for i, d in enumerate(documents):
        ends = [1, *(end for span in d.target_spans for end in span), len(d.token_ids)]
        if sorted(ends) != ends:
            targets = f"spans {d.spans}" if d.spans else f"learn_from {d.learn_from}"
            raise DataError(f"document {i}: {targets} with {len(d.token_ids)} tokens")
        if set(d.fields) != names:
            raise DataError(f"document {i}: fields {sorted(d.fields)}, the first one has {sorted(names)}")
        wrong = {n: len(v) for n, v in d.fields.items() if len(v) != d.num_targets}
        if wrong:
            raise DataError(f"document {i}: {d.num_targets} targets, but fields of length {wrong}")
    chunks = pack([len(d.token_ids) for d in documents], batch.chunk_tokens)
    num_chunks = agreed(len(chunks))
    if num_chunks == 0:
        raise DataError("no documents to train on: the mini-batch is empty")
    num_micro_batches = max(1, -(-num_chunks // batch.chunks_per_micro_batch))
    step = max(1, -(-num_chunks // num_micro_batches))  # a pipeline sends one shape
    chunks += [[] for _ in range(num_micro_batches * step - len(chunks))]
    return [
        _micro_batch(documents, chunks[i : i + step], batch.chunk_tokens, sorted(names), mtp_depths)
        for i in range(0, len(chunks), step)
    ]


def _micro_batch(
    documents: Sequence[Document], chunks: list[list[int]], size: int, names: list[str], mtp_depths: int
) -> MicroBatch:
    num_chunks = len(chunks)
    ids = torch.zeros(num_chunks, size, dtype=torch.int64)
    padding = torch.zeros(num_chunks, size, dtype=torch.bool)
    runs: list[range] = []  # rows of [S, B] flattened: position p of chunk b is row p * B + b
    rows: list[list[int]] = [[] for _ in range(mtp_depths + 1)]
    targets: list[list[int]] = [[] for _ in range(mtp_depths + 1)]
    doc: list[int] = []
    fields: dict[str, list[float]] = {n: [] for n in names}
    order = [i for chunk in chunks for i in chunk]
    place = 0
    for b, chunk in enumerate(chunks):
        start = 0
        for i in chunk:
            d = documents[i]
            length = len(d.token_ids)
            ids[b, start : start + length] = torch.tensor(d.token_ids)
            runs.append(range(start * num_chunks + b, (start + length) * num_chunks + b, num_chunks))
            for k in range(mtp_depths + 1):
                for begin, stop in d.target_spans:
                    first = max(begin, k + 1)  # the predictor, k + 1 back, lies in the document
                    rows[k] += [(start + t - k - 1) * num_chunks + b for t in range(first, stop)]
                    targets[k] += d.token_ids[first:stop]
            doc += [place] * d.num_targets
            for n in names:
                fields[n] += d.fields[n]
            place += 1
            start += length
        padding[b, start:] = True
        for stop in range(start, size, PADDING_RUN):
            last = min(stop + PADDING_RUN, size)
            runs.append(range(stop * num_chunks + b, last * num_chunks + b, num_chunks))
    all_targets = [Targets(torch.tensor(r), torch.tensor(t)) for r, t in zip(rows, targets, strict=True)]
    all_targets = [Targets(t.rows.long(), t.ids.long()) for t in all_targets]  # empty lists make floats
    segs = segments(runs, (size, num_chunks))
    return MicroBatch(
        input_ids=ids,
        position_ids=segs.positions.T,
        segments=segs,
        padding_mask=padding,
        targets=all_targets[0],
        mtp_targets=tuple(all_targets[1:]),
        doc=torch.tensor(doc).long(),
        fields={n: torch.tensor(v, dtype=torch.float32) for n, v in fields.items()},
        documents=tuple(order),
    )
