"""megatron-core 0.16.1: a synchronous checkpoint starts two processes where none is needed.

What breaks: the results of writing go through the queue of a manager process, started by spawn: the main program
is imported once more (seconds, and an endless loop without a `__main__` guard). The writing itself happens in a
fork, of a process that has threads.
Goes when: a synchronous save writes in its own process.
"""

import queue
from typing import Any

PACKAGE = "megatron-core"
VERSIONS = ("0.16.1",)


def apply() -> None:
    """Write every bucket here and now. For synchronous saves; idempotent."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    writer = filesystem_async.FileSystemWriterAsync

    def write(transforms: list[Any], use_msc: bool, rank: int, buckets: list[Any], results: Any) -> None:
        written: dict[int, Any] = {}
        for i, bucket in enumerate(buckets):
            done: queue.Queue[Any] = queue.Queue()
            counter: queue.Queue[int] = queue.Queue()
            counter.put(i)
            # Plain queues serve: nothing is written in another process.
            put: Any = writer.write_preloaded_data
            put(transforms, i, bucket, done, counter, use_fsync=True)
            _, outcome = done.get_nowait()
            if isinstance(outcome, Exception):
                raise outcome
            written[i] = outcome
        results.put(written)

    filesystem_async._results_queue = queue.Queue()
    setattr(writer, "write_preloaded_data_multiproc", staticmethod(write))  # noqa: B010 (its type is narrower)
