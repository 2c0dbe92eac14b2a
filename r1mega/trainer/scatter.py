"""A rollout's samples from rank 0 to those that learn from them.

Rank 0 divides every mini-batch over the data-parallel ranks by chunks; each leader (the first rank of its
copy of the model) receives its share alone and hands it to the tensor-, pipeline- and context-parallel ranks of its
copy.
The same encoding is what a checkpoint keeps of a rollout that is not used up.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from r1mega.buffers import Float32s, Int32s
from r1mega.data.packing import spread
from r1mega.samples import Document, Sample
from r1mega.trainer.mesh import Mesh

T = TypeVar("T")
MiniBatches = list[list[Sample]]
IN_CHECKPOINT = "rollout.npz"
"""How the files of a checkpoint end that hold what data-parallel ranks had not yet learnt from."""
_PER_TOKEN = ("behaviour_logp", "old_logp", "ref_logp")


def redivide(shares: Sequence[MiniBatches], num_shares: int, chunk_tokens: int) -> list[MiniBatches]:
    """What was divided over some ranks, divided over another number of them; mini-batches keep their samples.

    Args:
        shares: of every data-parallel rank, with as many mini-batches each.
        chunk_tokens: as in `scatter`.
    """
    minibatches = [[s for part in parts for s in part] for parts in zip(*shares, strict=True)]
    return _divided(minibatches, num_shares, chunk_tokens)


def _divided(minibatches: MiniBatches, num_shares: int, chunk_tokens: int) -> list[MiniBatches]:
    lengths = ([len(s.prompt_ids) + len(s.completion_ids) for s in m] for m in minibatches)
    divided = [spread(of_one, chunk_tokens, num_shares) for of_one in lengths]
    return [[[m[k] for k in d[i]] for m, d in zip(minibatches, divided, strict=True)] for i in range(num_shares)]


def scatter(mesh: Mesh, minibatches: MiniBatches | None, chunk_tokens: int) -> MiniBatches:
    """This rank's share of each mini-batch. Every rank calls this; rank 0 gives the mini-batches.

    Args:
        chunk_tokens: length of the chunks that the ranks will make; each is given whole ones (`data.packing.spread`).
    """
    if mesh.world_size == 1:
        assert minibatches is not None
        return minibatches
    dp: int = parallel_state.get_data_parallel_world_size()
    return decode(_dealt(mesh, None if minibatches is None else _divided(minibatches, dp, chunk_tokens), encode))


def scatter_documents(mesh: Mesh, documents: Sequence[Document] | None, chunk_tokens: int) -> list[Document]:
    """This rank's share of some documents, as `scatter`'s of samples; `spread` says which they are."""
    if mesh.world_size == 1:
        assert documents is not None
        return list(documents)
    shares = None
    if documents is not None:
        dp: int = parallel_state.get_data_parallel_world_size()
        divided = spread([len(d.token_ids) for d in documents], chunk_tokens, dp)
        shares = [[documents[i] for i in dealt] for dealt in divided]
    return pickle.loads(_dealt(mesh, shares, pickle.dumps))


def _dealt(mesh: Mesh, shares: Sequence[T] | None, encode: Callable[[T], bytes]) -> bytes:
    """This rank's share, encoded. Rank 0 gives one for each data-parallel rank, in their order."""
    copy: Any = parallel_state.get_model_parallel_group()
    leader = dist.get_process_group_ranks(copy)[0]
    leaders = mesh.gather_over_data(leader)
    if mesh.context_rank:
        return _from_first_of_context(b"", mesh)
    data = b""
    if mesh.first:
        assert shares is not None
        own, *others = shares
        for rank, share in zip(leaders[1:], others, strict=True):
            _send(encode(share), rank, mesh)  # one at a time: together they are as large as the rollout
        data = encode(own)
    elif mesh.rank == leader:
        data = _receive(mesh)
    found = [data]
    if copy.size() > 1:
        with mesh.waiting(f"rank {leader}, which hands on the samples"):
            dist.broadcast_object_list(found, leader, group=copy)
    return _from_first_of_context(found[0], mesh)


def _from_first_of_context(data: bytes, mesh: Mesh) -> bytes:
    """The samples' encoding on all ranks that share each sequence, of which the first has it."""
    found = [data]
    if mesh.layout.cp > 1:
        group: Any = parallel_state.get_context_parallel_group()
        with mesh.waiting("the first rank of its context-parallel group, which hands on the samples"):
            dist.broadcast_object_list(found, dist.get_process_group_ranks(group)[0], group=group)
    return found[0]


def checkpoint_files(mesh: Mesh, minibatches: MiniBatches) -> dict[str, bytes]:
    """This rank's share as files of a checkpoint, by name: one of each copy of the model."""
    return {f"{mesh.data_rank:05d}.{IN_CHECKPOINT}": encode(minibatches)} if mesh.leads_copy else {}


def from_checkpoint(mesh: Mesh, checkpoint: Path, chunk_tokens: int) -> MiniBatches:
    """This rank's share of what the data-parallel ranks of any layout had saved by `checkpoint_files`.

    Args:
        chunk_tokens: as in `scatter`.
    """
    files = sorted(checkpoint.glob(f"*.{IN_CHECKPOINT}"))
    if len(files) == mesh.layout.dp:
        return decode(files[mesh.data_rank].read_bytes())
    return redivide([decode(file.read_bytes()) for file in files], mesh.layout.dp, chunk_tokens)[mesh.data_rank]


def encode(minibatches: Sequence[Sequence[Sample]]) -> bytes:
    """Samples as a few arrays (npz): per token int32 and float32, per sample int64 and float64."""
    samples = [s for minibatch in minibatches for s in minibatch]
    arrays: dict[str, np.ndarray] = {
        "sizes": np.array([len(m) for m in minibatches], np.int64),
        "prompt_lengths": np.array([len(s.prompt_ids) for s in samples], np.int64),
        "completion_lengths": np.array([len(s.completion_ids) for s in samples], np.int64),
        "prompt_ids": _joined([s.prompt_ids for s in samples], np.int32),
        "completion_ids": _joined([s.completion_ids for s in samples], np.int32),
        "adv": np.array([s.adv for s in samples], np.float64),
        "weight": np.array([s.weight for s in samples], np.float64),
    }
    for name in _PER_TOKEN:
        values = [getattr(s, name) for s in samples]
        arrays[f"{name}_lengths"] = np.array([len(v) for v in values], np.int64)
        arrays[name] = _joined(values, np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def decode(data: bytes) -> MiniBatches:
    """What `encode` was given, bit for bit."""
    with np.load(io.BytesIO(data)) as arrays:
        columns = {
            "prompt_ids": map(Int32s, _cut(arrays["prompt_ids"], arrays["prompt_lengths"])),
            "completion_ids": map(Int32s, _cut(arrays["completion_ids"], arrays["completion_lengths"])),
            "adv": arrays["adv"].tolist(),
            "weight": arrays["weight"].tolist(),
            **{
                # float64 where an older version wrote them, of the same values
                name: map(Float32s, _cut(arrays[name].astype(np.float32), arrays[f"{name}_lengths"]))
                for name in _PER_TOKEN
            },
        }
        sizes: list[int] = arrays["sizes"].tolist()
    rows = zip(*columns.values(), strict=True)
    samples = iter([Sample(**dict(zip(columns, row, strict=True))) for row in rows])
    return [[next(samples) for _ in range(size)] for size in sizes]


def _joined(buffers: Sequence[Int32s | Float32s], dtype: type[np.number]) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *map(np.asarray, buffers)], dtype=dtype)


def _cut(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _send(data: bytes, rank: int, mesh: Mesh) -> None:
    with mesh.waiting(f"rank {rank} to take its samples", "first_rank_timeout_s"):
        dist.send(torch.tensor(len(data)), rank, group=mesh.patient)
        dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), rank, group=mesh.patient)


def _receive(mesh: Mesh) -> bytes:
    size = torch.zeros((), dtype=torch.int64)
    with mesh.waiting("the first rank's samples", "first_rank_timeout_s"):
        dist.recv(size, 0, group=mesh.patient)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, 0, group=mesh.patient)
    return data.numpy().tobytes()
