"""The gloo transport: weights travel through host memory, as a few packed broadcasts.

Sender (trainer, rank 0 of the group) and receivers (vLLM workers, ranks 1..N, `weights.worker`) cut the stream into
the same buckets, computed from the metadata alone. After the last bucket all ranks exchange what they saw (tensors,
bytes, a checksum); any difference fails the push on both sides.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from torch.distributed import TCPStore

from r1mega.weights.sender import Link, PushedWeights, Sent, pump, receiving, with_answer
from r1mega.weights.servers import ServerClient
from r1mega.weights.stream import Param, Tally, buckets, checked
from r1mega.weights.wire import LARGEST_BUCKET_BYTES, Wire


class GlooSender:
    """The trainer's end. `Sender` says what its methods do."""

    def __init__(self, link: Link, client: ServerClient) -> None:
        """Form the group with all workers of the client's servers.

        Raises:
            RolloutError: a server refuses.
            RuntimeError: a server fails, or does not come within `link.timeout_s`.
        """
        self.sent, self._client = Sent(), client
        self._bucket_bytes = min(link.bucket_bytes, LARGEST_BUCKET_BYTES)
        world_size, timeout = 1 + link.num_workers, timedelta(seconds=link.timeout_s)
        # Port 0: the store takes a free one, and no other process can take it in between.
        store = TCPStore(link.address, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        worker = {
            "master_address": link.name, "master_port": store.port, "rank_offset": 1, "world_size": world_size,
            "timeout_s": link.timeout_s, "bucket_bytes": self._bucket_bytes,
        }  # fmt: skip
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(client.init_weight_transfer_engine, worker)
            try:
                self._wire = Wire(store, 0, world_size, link.timeout_s, link.address)
            except Exception as error:
                raise with_answer(error, answer) from error
            answer.result()

    def send(self, source: PushedWeights) -> None:
        params = [Param(name, dtype, tuple(shape)) for name, dtype, shape in source.metadata()]
        tally = Tally()
        with receiving(self._client, params, self.close) as servers:
            stream = checked(iter(source), params)
            pump(self._wire, buckets(params, self._bucket_bytes), stream, servers.refused, seen=tally.add)
            self._wire.compare(tally, servers.refused)
            servers.wait(self._wire.timeout_s)
        self.sent = Sent(tally.num_tensors, tally.num_bytes, tally.checksum)

    def close(self) -> None:
        self._wire.close()
