"""The ipc transport: weights are handed over within each GPU, which a trainer's rank and a worker share.

Each rank has the whole tensors, one after the other, and packs them into one buffer on its GPU; the worker on that
GPU is told by a handle where that is, and copies what is in it. Handles of all ranks go to the servers as one pickle
with each buffer's content (vllm/distributed/weight_transfer/ipc_engine.py), so servers must be on this very host and
started with VLLM_ALLOW_INSECURE_SERIALIZATION=1. The workers' end is vLLM's own `ipc` engine.

    for chunk in chunks(stream, params, bound, ranks):      # every rank, at the same time
        ...                                                 # the first one sends each before it asks for the next
"""

import base64
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from r1mega.errors import RolloutError
from r1mega.runtime import network
from r1mega.weights.sender import Link, PushedWeights, Sent
from r1mega.weights.servers import ServerClient
from r1mega.weights.stream import Bucket, Param, buckets, checked, described, evened, evened_stream, size

Handles = Mapping[str, tuple[Any, ...]]
"""A GPU's UUID -> what rebuilds the buffer there (`torch.multiprocessing.reductions.rebuild_cuda_tensor`)."""


class Ranks(Protocol):
    """The trainer's (`trainer.mesh.Mesh`)."""

    @property
    def device(self) -> torch.device: ...

    def gather(self, mine: Any) -> list[Any]: ...


class WholeWeights(PushedWeights, Protocol):
    """What every rank iterates over and has the tensors of (`PolicySource(everywhere=True)`)."""

    @property
    def ranks(self) -> Ranks: ...


def share_on_gpu(buffer: torch.Tensor) -> Handles:
    """This rank's handle; the buffer must outlive its use elsewhere."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, arguments = reduce_tensor(buffer)
    return {str(torch.cuda.get_device_properties(buffer.device).uuid): arguments}


def chunks(
    source: PushedWeights,
    bound_bytes: int,
    ranks: Ranks,
    share: Callable[[torch.Tensor], Handles] = share_on_gpu,
) -> Iterator[tuple[Bucket, Handles]]:
    """The source's tensors in one buffer, again and again: what is in it now, and where it is on each GPU.

    A chunk is there on every rank when it is yielded, and until all ranks ask for the next. Tensors lie in it without
    gaps, in the order of `evened`.

    Args:
        source: iterated over once, to its end, on every rank.
        bound_bytes: of the buffer, where no tensor is larger.

    Raises:
        SourceError: the source disagrees with its metadata.
        RanksLostError: another rank is gone.
    """
    said = [Param(name, dtype, tuple(shape)) for name, dtype, shape in source.metadata()]
    cut = buckets(evened(said), bound_bytes, align=1)
    buffer = torch.empty(max((b.num_bytes for b in cut), default=0), dtype=torch.uint8, device=ranks.device)
    handles = {gpu: found for one in ranks.gather(share(buffer)) for gpu, found in one.items()}
    stream = evened_stream(checked(iter(source), said), said)
    for bucket in cut:
        for _, view in bucket.views(buffer):
            view.copy_(next(stream)[1])
        if buffer.is_cuda:
            torch.cuda.synchronize(buffer.device)
        ranks.gather(None)  # all have it
        yield bucket, handles
        ranks.gather(None)  # the first one has sent it, and workers have copied it
    for _ in stream:  # runs its check for what is left over
        pass


def follow(source: WholeWeights, bound_bytes: int, share: Callable[[torch.Tensor], Handles] = share_on_gpu) -> None:
    """What the ranks do that send nothing."""
    for _ in chunks(source, bound_bytes, source.ranks, share):
        pass
    source.ranks.gather(None)  # workers have let go of it
    _release(source.ranks.device)


class IpcSender:
    """The trainer's end in its first rank. `Sender` says what its methods do; nothing is connected."""

    def __init__(
        self,
        link: Link,
        client: ServerClient,
        ranks: Ranks,
        share: Callable[[torch.Tensor], Handles] = share_on_gpu,
    ) -> None:
        """
        Raises:
            RolloutError: a server is on another host, or refuses.
            RuntimeError: a server fails.
        """
        if away := [server.url for server in client.servers if not network.is_loopback(server.host)]:
            raise RolloutError(
                f"weights.transport = 'ipc' hands weights over within a host's GPUs by pickles that a server trusts; "
                f"{', '.join(away)} is reached over a network. Set rollout.host to 127.0.0.1, or transport to nccl"
            )
        self.sent, self._client, self._ranks, self._share = Sent(), client, ranks, share
        self._bound_bytes = link.bucket_bytes
        client.init_weight_transfer_engine({"packed": True})

    def send(self, source: PushedWeights) -> None:
        failure: Exception | None = None
        num_tensors = num_bytes = 0
        try:
            self._client.start_weight_update()
        except Exception as error:
            failure = error
        # To the end even where a server has failed: the other ranks pack along.
        for bucket, handles in chunks(source, self._bound_bytes, self._ranks, self._share):
            if failure is None:
                try:
                    self._client.update_weights(told(bucket, handles))
                except Exception as error:
                    failure = error
            num_tensors, num_bytes = num_tensors + len(bucket.params), num_bytes + bucket.num_bytes
        if failure is None:
            try:
                self._client.finish_weight_update()
                # Or workers would keep the buffer mapped until the next push, and its memory could not be given back.
                self._client.shutdown_weight_transfer_engine()
            except Exception as error:
                failure = error
        self._ranks.gather(None)  # workers have let go of every rank's buffer
        _release(self._ranks.device)
        if failure is not None:
            raise failure
        self.sent = Sent(num_tensors, num_bytes)

    def close(self) -> None: ...


def told(bucket: Bucket, handles: Handles) -> dict[str, Any]:
    """One chunk as vLLM's ipc engine takes it over HTTP."""
    sizes: Sequence[int] = [size(param) for param in bucket.params]
    pickled = base64.b64encode(pickle.dumps(dict(handles))).decode()
    return {**described(bucket.params), "tensor_sizes": sizes, "ipc_handles_pickled": pickled}


def _release(device: torch.device) -> None:
    """Give back what was shared, now that nobody uses it elsewhere."""
    if device.type == "cuda":
        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()
