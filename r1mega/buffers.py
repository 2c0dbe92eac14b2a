"""Per-token numbers as immutable memory: 4 bytes each, where a tuple of Python ints takes 36 and one of floats 32.

Neither torch nor numpy is imported here, and both read the memory without a copy: `np.asarray(buffer)` is a
read-only array over it, `torch.from_numpy(np.array(buffer))` a tensor of its own.
"""

import array
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar, overload

Number = TypeVar("Number", int, float)

_SHOWN = 16
"""Numbers that `repr` spells out."""


class _Buffer(Sequence[Number]):
    """A sequence of machine numbers. Buffers are equal when they are of one class and equal in every bit, so -0.0 is
    not 0.0 and NaN equals itself; that makes them hashable and "the same answer" a comparison of memory."""

    __slots__ = ("_data",)
    _code: ClassVar[Literal["i", "f"]]
    """The numbers' type, as `array` and `memoryview` name it."""

    def __init__(self, values: Iterable[Number] = ()) -> None:
        """Copy `values`: any numbers, or at the speed of memory what has the same numbers in memory (a numpy array).

        Raises:
            OverflowError: a number is beyond the type (a float beyond float32 becomes infinite instead).
            TypeError: something is no number, or no integer where integers are asked for.
        """
        found = _same_memory(values, self._code)
        self._data = array.array(self._code, values).tobytes() if found is None else found

    @classmethod
    def repeated(cls, value: Number, num: int) -> Self:
        """`num` times the same number."""
        return cls._over((array.array(cls._code, (value,)) * num).tobytes())

    @classmethod
    def _over(cls, data: bytes) -> Self:
        made = cls.__new__(cls)
        made._data = data
        return made

    @property
    def view(self) -> "memoryview[Any]":
        """The memory itself, read-only."""
        return memoryview(self._data).cast(self._code)

    @property
    def nbytes(self) -> int:
        return len(self._data)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """By which numpy takes the memory as it is."""
        order = "<" if sys.byteorder == "little" else ">"
        kind = {"i": "i4", "f": "f4"}[self._code]
        return {"shape": (len(self),), "typestr": order + kind, "data": self._data, "version": 3}

    def tolist(self) -> list[Number]:
        """As Python numbers; a float is the double that equals it."""
        numbers: list[Any] = self.view.tolist()
        return numbers

    def __len__(self) -> int:
        return len(self._data) // 4

    @overload
    def __getitem__(self, index: int) -> Number: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Number | Self:
        if isinstance(index, slice):
            return self._over(self.view[index].tobytes())
        return self.view[index]

    def __iter__(self) -> Iterator[Number]:
        return iter(self.view)

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self):
            return NotImplemented
        return self._over(self._data + other._data)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self._data)

    def __repr__(self) -> str:
        more = f", ... {len(self)} in all" if len(self) > _SHOWN else ""
        return f"{type(self).__name__}([{', '.join(map(repr, self.view[:_SHOWN]))}{more}])"


class Int32s(_Buffer[int]):
    """[n] int32, such as token ids.

    >>> ids = Int32s([5, 6, 7])
    >>> ids[0], ids[1:], ids + Int32s([8]), ids.nbytes
    (5, Int32s([6, 7]), Int32s([5, 6, 7, 8]), 12)
    """

    __slots__ = ()
    _code = "i"


class Float32s(_Buffer[float]):
    """[n] float32, such as log-probabilities. What was float32 before it became a Python float is kept exactly.

    >>> Float32s([-0.5, -0.1])
    Float32s([-0.5, -0.10000000149011612])
    """

    __slots__ = ()
    _code = "f"


def _same_memory(values: Any, code: str) -> bytes | None:
    """The bytes of an object whose memory holds one row of numbers of type `code`; None where it does not."""
    if isinstance(values, _Buffer):
        return values._data if values._code == code else None
    try:
        view = memoryview(values)
    except TypeError:
        return None
    return view.tobytes() if view.format == code and view.ndim == 1 else None
