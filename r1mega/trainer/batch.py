"""From documents to the tensors of micro-batches.

Chunks lie beside each other ([B, S]), or behind each other in one row where Transformer Engine takes them (B is 1,
and S the length of all chunks), of which a context-parallel rank has its part (`trainer.context`).

Shapes: B chunks of a micro-batch, S tokens of a chunk, T targets of a micro-batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch
from r1mega.data.packing import pack
from r1mega.errors import DataError
from r1mega.families.spec import ModelSpec
from r1mega.samples import Document
from r1mega.trainer.context import zigzag
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.network.attention import Segments, segments
from r1mega.trainer.network.thd import Packed, document_multiple, packed, padded, to_device

PADDING_RUN = 32
"""Padding attends to itself in runs of this length, which keeps it cheap."""


@dataclass(frozen=True)
class Form:
    """How a rank's tensors are laid out."""

    packed: bool = False
    """Chunks behind each other in one row."""
    cp: int = 1
    """Ranks that share each sequence; packed alone."""
    rank: int = 0
    """Which of them this is."""
    tp: int = 1

    @property
    def multiple(self) -> int:
        """What each document is padded to."""
        return document_multiple(self.cp, self.tp)


BESIDE = Form()


def form_of(mesh: Mesh, *, packed: bool) -> Form:
    """How a rank's tensors lie; `packed`: its layers take chunks behind each other, as Transformer Engine's do."""
    if not packed:
        return BESIDE
    return Form(packed=True, cp=mesh.layout.cp, rank=mesh.context_rank, tp=mesh.layout.tp)


def in_groups_of(layout: TrainerLayout) -> int:
    """Of what the number of micro-batches is a multiple: a virtual pipeline moves one for each of its ranks."""
    return layout.pp if layout.vpp > 1 else 1


def check_kind(documents: Sequence[Document], spec: ModelSpec) -> None:
    """Raises DataError where a document is not of the kind that the model's head reads."""
    for i, document in enumerate(documents):
        if document.scored != (spec.head == "score"):
            what = "is scored, and a language model" if document.scored else "is not scored, and a model of scores"
            remedy = "documents of tokens to predict" if document.scored else "those that Document.of_texts makes"
            raise DataError(f"document {i}: {what} is to read it, which takes {remedy}")


@dataclass(frozen=True)
class Targets:
    """Tokens to predict, or ends of texts to score. `rows` indexes hidden states [S, B, H] flattened to [S * B, H].

    A context-parallel rank has those t of the T targets whose row it has.
    """

    rows: Tensor
    """[t] int64: the position that predicts each target, or at which a text's score is read."""
    ids: Tensor
    """[t] int64: the token it should predict; of a text the token at its end."""
    places: Tensor | None = None
    """[t] int64: which of all targets each is; None where this rank has all."""
    count: int | None = None
    """T, where it is not t."""

    @property
    def total(self) -> int:
        """T, over all context-parallel ranks."""
        return len(self.ids) if self.count is None else self.count

    def to(self, device: torch.device) -> "Targets":
        places = self.places if self.places is None else to_device(self.places, device)
        return replace(self, rows=to_device(self.rows, device), ids=to_device(self.ids, device), places=places)


@dataclass(frozen=True)
class Ahead:
    """What the layer of MTP depth k sees at each position: the token k behind it."""

    ids: Tensor
    """[B, S] int64. Arbitrary where the document has no token so far ahead; never before a target."""
    padding: Tensor
    """[B, S] bool, True where the document has none: as padding, these are left out of the routers' counts."""

    def to(self, device: torch.device) -> "Ahead":
        return Ahead(to_device(self.ids, device), to_device(self.padding, device))


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass needs. Documents of a chunk, and texts of a document, neither attend to nor predict each
    other."""

    input_ids: Tensor
    """[B, S] int64, padded with 0."""
    position_ids: Tensor
    """[B, S] int64, counted from each text's start."""
    segments: Segments | Packed
    """Which positions attend to each other: those of one text."""
    padding_mask: Tensor
    """[B, S] bool, True = padding."""
    ahead: tuple[Ahead, ...]
    """For MTP depth k = 1, 2, ..."""
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

    def to(self, device: torch.device) -> "MicroBatch":
        """This micro-batch on a device. Host to device once, before any of it is used."""
        if device.type == "cpu":
            return self
        plain = {n: to_device(getattr(self, n), device) for n in ("input_ids", "position_ids", "padding_mask", "doc")}
        return replace(
            self,
            **plain,
            segments=self.segments.to(device),
            ahead=tuple(a.to(device) for a in self.ahead),
            targets=self.targets.to(device),
            mtp_targets=tuple(t.to(device) for t in self.mtp_targets),
            fields={n: to_device(t, device) for n, t in self.fields.items()},
        )


def micro_batches(
    documents: Sequence[Document],
    batch: Batch,
    *,
    mtp_depths: int,
    agreed: Callable[[int], int] = lambda num_chunks: num_chunks,
    form: Form = BESIDE,
    multiple: int = 1,
) -> list[MicroBatch]:
    """Pack documents into chunks, chunks into micro-batches of equal size.

    Args:
        documents: may be empty where other ranks have some.
        mtp_depths: how many MTP depths need targets.
        agreed: the number of chunks that all data-parallel ranks make, from this rank's own; no smaller. Chunks
            without documents make up for the difference: experts and pipelines need the ranks to move in step.
        form: how the tensors are laid out.
        multiple: of which the number of micro-batches is one; a virtual pipeline moves so many at a time.

    Raises:
        DataError: no documents on any rank, an empty or too long one, or fields that do not fit the targets.
    """
    names = set(documents[0].fields) if documents else set()
    for i, d in enumerate(documents):
        _check(i, d, names)
    chunks = pack([_rows_of(d, form) for d in documents], batch.chunk_tokens)
    num_chunks = agreed(len(chunks))
    if num_chunks == 0:
        raise DataError("no documents to train on: the mini-batch is empty")
    num_micro_batches = max(1, -(-num_chunks // batch.chunks_per_micro_batch))
    num_micro_batches += -num_micro_batches % multiple
    step = max(1, -(-num_chunks // num_micro_batches))  # a pipeline sends one shape
    chunks += [[] for _ in range(num_micro_batches * step - len(chunks))]
    return [
        _micro_batch(documents, chunks[i : i + step], batch.chunk_tokens, sorted(names), mtp_depths, form)
        for i in range(0, len(chunks), step)
    ]


def _check(i: int, d: Document, names: set[str]) -> None:
    """Raises DataError where a document's targets, texts or fields do not fit it."""
    if d.scored and any(start >= stop for start, stop in d.texts):
        raise DataError(f"document {i}: texts that begin at {(0, *d.starts)} with {len(d.token_ids)} tokens")
    if d.starts and not d.scored:
        raise DataError(f"document {i}: has {len(d.texts)} texts and is not scored: make it with Document.of_texts")
    ends = [0 if d.scored else 1, *(end for span in d.target_spans for end in span), len(d.token_ids)]
    if sorted(ends) != ends:
        targets = f"spans {d.spans}" if d.spans else f"learn_from {d.learn_from}"
        raise DataError(f"document {i}: {targets} with {len(d.token_ids)} tokens")
    if set(d.fields) != names:
        raise DataError(f"document {i}: fields {sorted(d.fields)}, the first one has {sorted(names)}")
    wrong = {n: len(v) for n, v in d.fields.items() if len(v) != d.num_targets}
    if wrong:
        raise DataError(f"document {i}: {d.num_targets} targets, but fields of length {wrong}")


def _rows_of(d: Document, form: Form) -> int:
    """What a document takes of a chunk: each text is padded by itself."""
    return sum(padded(stop - start, form.multiple) for start, stop in d.texts)


def by_document(
    documents: Sequence[Document], batches: Sequence[MicroBatch], values: Sequence[Tensor]
) -> list[Tensor]:
    """What `micro_batches` divided, together again: values of the targets, [T] a micro-batch, by document.

    Returns:
        For each document, in order, [num_targets].
    """
    result: dict[int, Tensor] = {}
    for batch, of_targets in zip(batches, values, strict=True):
        counts = [documents[i].num_targets for i in batch.documents]
        result.update(zip(batch.documents, of_targets.split(counts), strict=True))
    return [result[i] for i in range(len(documents))]


def _micro_batch(
    documents: Sequence[Document],
    chunks: list[list[int]],
    size: int,
    names: list[str],
    mtp_depths: int,
    form: Form = BESIDE,
) -> MicroBatch:
    num_chunks = len(chunks)
    ids = torch.zeros(num_chunks, size, dtype=torch.int64)
    left = torch.zeros(num_chunks, size, dtype=torch.int32)  # tokens of the document from each position on
    # Row of [S, B] flattened of position p of chunk b: p * stride + b * between.
    stride, between = (1, size) if form.packed else (num_chunks, 1)
    runs: list[range] = []
    rows: list[list[np.ndarray]] = [[] for _ in range(mtp_depths + 1)]
    targets: list[list[np.ndarray]] = [[] for _ in range(mtp_depths + 1)]
    order = [i for chunk in chunks for i in chunk]
    for b, chunk in enumerate(chunks):
        start, first_row = 0, b * between
        for i in chunk:
            d = documents[i]
            tokens = np.asarray(d.token_ids)
            for text_start, text_stop in d.texts:
                length = text_stop - text_start
                ids.numpy()[b, start : start + length] = tokens[text_start:text_stop]
                left[b, start : start + length] = torch.arange(length, 0, -1, dtype=torch.int32)
                stop = start + padded(length, form.multiple)
                runs.append(range(start * stride + first_row, stop * stride + first_row, stride))
                shift = start - text_start  # from places in the document to places in the chunk
                for k, back, (span_start, span_stop) in _predicted(d, text_start, text_stop, mtp_depths):
                    rows[k].append((np.arange(span_start, span_stop) - back + shift) * stride + first_row)
                    targets[k].append(tokens[span_start:span_stop])
                start = stop
        run = padded(PADDING_RUN, form.multiple)
        for begin in range(start, size, run):
            last = min(begin + run, size)
            runs.append(range(begin * stride + first_row, last * stride + first_row, stride))
    all_targets = [Targets(_joined(r, np.int64), _joined(t, np.int64)) for r, t in zip(rows, targets, strict=True)]
    placed = [documents[i] for i in order]
    if form.packed:
        ids, left = ids.view(1, -1), left.view(1, -1)
    rolled = [torch.roll(ids, -k, dims=1) for k in range(1, mtp_depths + 1)]
    segs = _attending(runs, (size, num_chunks), form)
    if form.cp > 1:
        mine = zigzag([len(run) for run in runs], form.cp, form.rank)
        all_targets = [_part(t, mine, ids.numel()) for t in all_targets]
        ids, left, *rolled = (x[:, mine] for x in (ids, left, *rolled))
    return MicroBatch(
        input_ids=ids,
        position_ids=segs.positions.T,
        segments=segs,
        padding_mask=left == 0,
        ahead=tuple(Ahead(ids, left <= k) for k, ids in enumerate(rolled, 1)),
        targets=all_targets[0],
        mtp_targets=tuple(all_targets[1:]),
        doc=torch.arange(len(order)).repeat_interleave(torch.tensor([d.num_targets for d in placed]).long()),
        fields={n: _joined([np.asarray(d.fields[n]) for d in placed], np.float32) for n in names},
        documents=tuple(order),
    )


def _predicted(d: Document, start: int, stop: int, mtp_depths: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(depth, how many tokens before a target it is read, range of targets) of one text, [start, stop)."""
    if d.scored:
        yield 0, 0, (stop - 1, stop)
        return
    for k in range(mtp_depths + 1):
        for span_start, span_stop in d.target_spans:
            # The predictor, k + 1 back, lies in the document.
            yield k, k + 1, (max(span_start, k + 1), span_stop)


def _joined(parts: Sequence[np.ndarray], dtype: type[np.number]) -> Tensor:
    """Arrays behind each other, in a tensor's own memory."""
    return torch.from_numpy(np.concatenate([np.empty(0, dtype), *parts], dtype=dtype))


def _attending(runs: list[range], shape: tuple[int, int], form: Form) -> Segments | Packed:
    """Who attends to whom. runs: of rows, in the order of the tensors; shape: (tokens of a chunk, chunks)."""
    if form.packed:
        return packed([len(run) for run in runs], cp=form.cp, rank=form.rank)
    return segments(runs, shape)


def _part(targets: Targets, mine: Tensor, num_rows: int) -> Targets:
    """The targets whose row is among `mine`, by their place there."""
    here = torch.full((num_rows,), -1)
    here[mine] = torch.arange(len(mine))
    rows = here[targets.rows]
    places = (rows >= 0).nonzero()[:, 0]
    return Targets(rows[places], targets.ids[places], places, len(targets.ids))
