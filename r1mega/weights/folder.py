"""A Hugging Face folder's weights into running servers of the same model: no start, and answers as after one.

    give = GiveFolder()
    give([server], folder)      # the server now answers as one that was started of `folder`

The folder is streamed from the mapped file through the push that a trainer's weights take (`push.py`): the same
buckets, the same tallies compared, the prefix cache emptied, the version read back. Its weights are version 0, as
those of a server's start are, and from the first byte on the folder is what a restart begins with: so a server that
fails in the middle, or later, comes back with the weights that it is believed to have.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from r1mega.errors import ConfigError, listed
from r1mega.families.registry import read_language_model
from r1mega.families.spec import Kind, ModelSpec
from r1mega.formats.hf_files import read_files
from r1mega.formats.hf_folder import HFFolder
from r1mega.rollout.alike import differences
from r1mega.rollout.server import Server
from r1mega.weights.push import Pusher

log = logging.getLogger(__name__)


class FolderWeights:
    """A re-iterable stream of (Hugging Face name, tensor) of a folder, in the order of its family's table.

    Has the shape of vLLM's `WeightSource`. Tensors are windows into the mapped files, of the dtype in which they are
    stored, and good until the next one is asked for. MTP layers, which engines skip, are left
    out; a head that the table names a second time is sent under both names, whether or not the folder repeats it.
    """

    def __init__(self, path: Path) -> None:
        """Hold the folder against its own config.json: files, names, shapes and dtypes, no tensor's data.

        A folder may lack all of the MTP layers that its config.json states: a server starts of it.

        Raises:
            ConfigError: config.json is missing or not understood.
            WeightMappingError: everything that is wrong with files, index, names, shapes and dtypes.
        """
        self._folder = HFFolder(path, _as_far_as_served(path))
        self._rows = [row for row in self._folder.table if not row.mtp]
        self._originals = {row.megatron: row for row in self._folder.table if row.kind is not Kind.COPY}

    def metadata(self) -> list[tuple[str, Any, tuple[int, ...]]]:
        """(name, dtype, shape) of every tensor, in the order of iteration."""
        return [
            (name, self._folder.dtype(self._originals[row.megatron]), shape)
            for row in self._rows
            for name, shape in zip(row.hf, row.hf_shapes, strict=True)
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for row in self._rows:
            yield from zip(row.hf, self._folder.parts(self._originals[row.megatron]), strict=True)
            self._folder.release()


def _as_far_as_served(path: Path) -> ModelSpec:
    """The model of a folder's config.json, without MTP layers where the folder has nothing of them."""
    spec = read_language_model(path)
    of_mtp = {name for row in spec.tensors() if row.mtp for name in row.hf}
    if any(entry.name in of_mtp for _, entry in read_files(path)[0]):
        return spec
    return dataclasses.replace(spec, num_mtp_layers=0)


class GiveFolder:
    """Gives running servers the weights of other folders; see the module."""

    def __init__(
        self,
        *,
        address: str = "",
        transport: str = "gloo",
        verify: int = 0,
        breakable: Callable[[], AbstractContextManager[None]] = nullcontext,
        pusher: Callable[..., Pusher] = Pusher,
    ) -> None:
        """
        Args:
            address, breakable: see `Pusher`.
            transport: for which the servers were started (`Cluster.transport`). Only gloo sends from host memory;
                servers of the others are started anew, of the folder.
            verify: 0: what servers hold after a push of the folder is not proven (`weights.verify`); otherwise it is.
            pusher: as `Pusher`.
        """
        self._address, self._transport, self._verify = address, transport, verify
        self._breakable, self._pusher = breakable, pusher

    def __call__(self, servers: Sequence[Server], folder: Path) -> None:
        """Return once the servers, which must be ready, answer with the folder's weights, as version 0.

        Raises:
            ConfigError: the folder is of a model that is served otherwise; nothing has been sent.
            WeightMappingError: the folder is no whole one of its model; nothing has been sent.
            RolloutError: as `Pusher.push`.
        """
        for running in sorted({server.model_dir for server in servers} - {folder}):
            if different := differences(running, folder):
                raise ConfigError(
                    listed(
                        f"{folder}: not served as {running} is, whose server is to take its weights "
                        f"({len(different)} differences); start a server of its own",
                        different,
                    )
                )
        weights = FolderWeights(folder)
        for server in servers:
            server.model_dir = folder
        seconds = self._push(weights, servers) if self._transport == "gloo" else self._start_anew(servers, folder)
        for server in servers:
            server.foreign = False
            log.info("the rollout server at %s took the weights of %s in %.1f s", server.url, folder, seconds)

    def _push(self, weights: FolderWeights, servers: Sequence[Server]) -> float:
        pusher = self._pusher(weights, servers, address=self._address, verify=self._verify, breakable=self._breakable)
        try:
            report = pusher.push(0)
        finally:
            pusher.close()
        for recovery in report.recoveries:
            recovery.tell()
        return report.seconds

    def _start_anew(self, servers: Sequence[Server], folder: Path) -> float:
        """All at once; what breaks off the wait for them stops them for good."""
        begin = time.monotonic()
        with ThreadPoolExecutor(len(servers)) as executor:
            pending = [
                executor.submit(server.restart, f"to begin with the weights of {folder}") for server in servers
            ]
            try:
                with self._breakable():
                    for start in pending:
                        start.result()
            except KeyboardInterrupt:  # StopNow is one
                for server in servers:  # or leaving the executor would wait for their start
                    server.stop()
                raise
        return time.monotonic() - begin
