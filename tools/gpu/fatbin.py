"""A CUDA library without the device code that one architecture does not need: same length, mostly zeros.

nvcc puts device code into the section `.nv_fatbin`: containers, each a header and entries, machine code (ELF) or PTX
for one architecture. The driver reads entries' headers and loads the one that fits its GPU, so the others' contents
may be overwritten: headers stay as they are, nothing moves, and the file compresses to a twentieth. That a driver
takes such a library has not been tried on a GPU.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

CONTAINER = 0xBA55ED50
PTX, ELF = 1, 2


@dataclass(frozen=True)
class Entry:
    container: int
    """Which container of the section, from 0."""
    kind: int
    """PTX or ELF."""
    arch: int
    """90 for sm_90 and sm_90a."""
    start: int
    """Of its contents in the file."""
    size: int


def section(library: bytes | bytearray, name: str = ".nv_fatbin") -> tuple[int, int]:
    """Offset and size of a section of a 64-bit little-endian ELF file.

    Raises:
        ValueError: there is none of that name.
    """
    if bytes(library[:6]) != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", library, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + i * entry_size) for i in range(count)]
    names = headers[names_index][4]
    for name_at, _, _, _, offset, size in headers:
        end = library.index(b"\0", names + name_at)
        if bytes(library[names + name_at : end]).decode() == name:
            return offset, size
    raise ValueError(f"no section {name}: not a library with CUDA device code")


def entries(library: bytes | bytearray) -> Iterator[Entry]:
    """Every entry of every container, in the file's order.

    Raises:
        ValueError: something else lies between containers, or an entry reaches beyond its own.
    """
    place, size = section(library)
    stop, number = place + size, 0
    while place < stop:
        magic, version, header, contents = struct.unpack_from("<IHHQ", library, place)
        if magic == 0:  # alignment
            place += 4
            continue
        if magic != CONTAINER or version != 1:
            raise ValueError(
                f"at {place}: {magic:#x}, version {version}, where a container of device code should begin"
            )
        at, end = place + header, place + header + contents
        while at < end:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, at)
            (arch,) = struct.unpack_from("<I", library, at + 28)
            if at + entry_header + entry_size > end or kind not in (PTX, ELF):
                raise ValueError(f"at {at}: an entry of kind {kind} that is not within its container")
            yield Entry(number, kind, arch, at + entry_header, entry_size)
            at += entry_header + entry_size
        place, number = end, number + 1


def thin(library: bytearray, arch: int) -> tuple[int, int]:
    """Overwrite all contents but the machine code for `arch`, in place.

    Returns:
        Bytes of device code that stay, and that there were.

    Raises:
        ValueError: a container has no machine code for `arch`: its kernels would be gone.
    """
    found = list(entries(library))
    kept = [e for e in found if (e.kind, e.arch) == (ELF, arch)]
    if missing := {e.container for e in found} - {e.container for e in kept}:
        raise ValueError(
            f"{len(missing)} containers of device code have none for sm_{arch}, the first is {min(missing)}"
        )
    for entry in set(found) - set(kept):
        library[entry.start : entry.start + entry.size] = bytes(entry.size)
    return sum(e.size for e in kept), sum(e.size for e in found)
