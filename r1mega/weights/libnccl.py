"""NCCL's C functions that a broadcast between the trainer and vLLM's workers needs, without torch's process groups.

A communicator of torch's cannot be shared with processes that are none of its ranks; this one is formed by NCCL's own
unique id, which goes to the workers over HTTP. Nothing here blocks: calls return at once, and `Communicator.state`
says when what they began is done, so that whoever waits can give up.
"""

import ctypes
import threading
from collections.abc import Callable

UNIQUE_ID_BYTES = 128
UINT8, FLOAT32, SUM = 1, 7, 0
"""Of ncclDataType_t and ncclRedOp_t."""
SUCCESS, IN_PROGRESS = 0, 7
"""Of ncclResult_t."""
NAME = "libnccl.so.2"
"""That which torch has loaded, where it has."""


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_char * UNIQUE_ID_BYTES),)


class _Config(ctypes.Structure):
    """ncclConfig_t as of NCCL 2.14, the first that has `blocking`; later fields keep NCCL's defaults."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
    )


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES = {
    "ncclGetVersion": (ctypes.POINTER(_INT),),
    "ncclGetUniqueId": (ctypes.POINTER(_UniqueId),),
    "ncclCommInitRankConfig": (ctypes.POINTER(_POINTER), _INT, _UniqueId, _INT, ctypes.POINTER(_Config)),
    "ncclCommGetAsyncError": (_POINTER, ctypes.POINTER(_INT)),
    "ncclCommAbort": (_POINTER,),
    "ncclAllReduce": (_POINTER, _POINTER, _SIZE, _INT, _INT, _POINTER, _POINTER),
    "ncclBroadcast": (_POINTER, _POINTER, _SIZE, _INT, _INT, _POINTER, _POINTER),
}


class NcclError(RuntimeError):
    """A call of NCCL's has failed."""


class Library:
    """One libnccl, loaded."""

    def __init__(self, path: str = NAME) -> None:
        """Raises OSError where there is none, or one that lacks a function (before NCCL 2.14)."""
        self.path = path
        loaded = ctypes.CDLL(path)
        try:
            self._functions = {name: getattr(loaded, name) for name in (*_SIGNATURES, "ncclGetErrorString")}
        except AttributeError as error:
            raise OSError(f"{path}: {error}") from None
        for name, arguments in _SIGNATURES.items():
            self._functions[name].restype, self._functions[name].argtypes = _INT, arguments
        self._functions["ncclGetErrorString"].restype = ctypes.c_char_p

    def version(self) -> int:
        """As NCCL counts: 22907 is 2.29.7."""
        found = _INT()
        self.call("ncclGetVersion", ctypes.byref(found))
        return found.value

    def unique_id(self) -> bytes:
        """[128] of a communicator that is to be formed; this process is where its ranks meet."""
        made = _UniqueId()
        self.call("ncclGetUniqueId", ctypes.byref(made))
        return ctypes.string_at(ctypes.addressof(made), UNIQUE_ID_BYTES)

    def call(self, name: str, *arguments: object) -> None:
        """Raises NcclError where the function fails. What is begun and not done yet is no failure."""
        if (result := self._functions[name](*arguments)) not in (SUCCESS, IN_PROGRESS):
            raise NcclError(f"{name}: {self.text(result)}")

    def text(self, result: int) -> str:
        """What NCCL says of a result."""
        return self._functions["ncclGetErrorString"](_INT(result)).decode()


class Communicator:
    """One rank's end, on the current CUDA device. `abort` may come from any thread."""

    def __init__(self, library: Library, unique_id: bytes, rank: int, world_size: int) -> None:
        """Begin to join; `state` says when all ranks have.

        Raises:
            NcclError: the device or an argument is not to NCCL's liking.
        """
        self._library, self._comm, self._lock = library, _POINTER(), threading.Lock()
        joined = _UniqueId()
        ctypes.memmove(ctypes.addressof(joined), unique_id, UNIQUE_ID_BYTES)
        config = _Config(ctypes.sizeof(_Config), 0xCAFEBEEF, 21400, 0)
        arguments = (world_size, joined, rank, ctypes.byref(config))
        library.call("ncclCommInitRankConfig", ctypes.byref(self._comm), *arguments)

    def done(self) -> bool:
        """Whether what was begun last is under way on the stream; until then nothing else may be begun.

        Raises:
            NcclError: it failed, here or on another rank, or was aborted.
        """
        state = _INT()
        self._with_comm("ncclCommGetAsyncError", lambda comm: (comm, ctypes.byref(state)))
        if state.value not in (SUCCESS, IN_PROGRESS):
            raise NcclError(self._library.text(state.value))
        return state.value == SUCCESS

    def all_reduce(self, source: int, target: int, num_floats: int, stream: int) -> None:
        """Begin to add up fp32 numbers at device addresses over all ranks."""
        self._with_comm("ncclAllReduce", lambda comm: (source, target, num_floats, FLOAT32, SUM, comm, stream))

    def broadcast(self, address: int, num_bytes: int, stream: int) -> None:
        """Begin to send rank 0's bytes at a device address."""
        self._with_comm("ncclBroadcast", lambda comm: (address, address, num_bytes, UINT8, 0, comm, stream))

    def _with_comm(self, name: str, arguments: Callable[[ctypes.c_void_p], tuple[object, ...]]) -> None:
        with self._lock:
            if not self._comm:
                raise NcclError(f"{name}: the communicator was aborted")
            self._library.call(name, *arguments(self._comm))

    def abort(self) -> None:
        """Free the communicator, whatever is under way on it; other ranks learn it as NCCL notices."""
        with self._lock:
            comm, self._comm = self._comm, _POINTER()
        if comm:
            self._library.call("ncclCommAbort", comm)
