"""By which of its addresses this host is reached from another one. Standard library alone, and nothing is sent.

A host's own name says nothing about that: often it means 127.0.1.1.
"""

import array
import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

SIOCGIFCONF = 0x8912
IPV6_ADDRESSES = Path("/proc/net/if_inet6")
_NAME_BYTES, _ENTRY_BYTES = 16, 40
"""Of struct ifreq on 64-bit Linux."""


def local_address(peer: str) -> str:
    """The address that this host has on the route to `peer`, a name or an address: 127.0.0.1 to itself by that one.

    Raises:
        OSError: `peer` does not resolve, or there is no route to any of its addresses.
    """
    failure = OSError(f"{peer} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM):
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)  # of a datagram socket: the kernel chooses the route, and sends nothing
            except OSError as error:
                failure = error
            else:
                return probe.getsockname()[0].partition("%")[0]
    raise failure


def is_loopback(host: str) -> bool:
    """Whether a host's name or address, unresolved, means the host where it is said."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def interface_of(address: str) -> str:
    """The network interface that has one of this host's addresses; any of 127.0.0.0/8 is the loopback's.

    Raises:
        OSError: no interface has it.
    """
    wanted = ipaddress.ip_address(address)
    if wanted.version == 4 and wanted.is_loopback:
        wanted = ipaddress.ip_address("127.0.0.1")
    for name, found in _addresses():
        if found == wanted:
            return name
    raise OSError(f"none of this host's network interfaces has the address {address}")


def interfaces() -> list[str]:
    """The names of this host's network interfaces."""
    return [name for _, name in socket.if_nameindex()]


def _addresses() -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """Interfaces and their addresses, an interface as often as it has any."""
    found: list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]] = []
    entries = array.array("B", bytes(_ENTRY_BYTES * 1024))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        asked = struct.pack("iP", len(entries), entries.buffer_info()[0])
        (length, _) = struct.unpack("iP", fcntl.ioctl(probe, SIOCGIFCONF, asked))
    for start in range(0, length, _ENTRY_BYTES):
        entry = entries[start : start + _ENTRY_BYTES].tobytes()
        name = entry[:_NAME_BYTES].partition(b"\0")[0].decode()
        found.append((name, ipaddress.IPv4Address(entry[_NAME_BYTES + 4 : _NAME_BYTES + 8])))
    if IPV6_ADDRESSES.exists():
        for line in IPV6_ADDRESSES.read_text().splitlines():
            digits, *_, name = line.split()
            found.append((name, ipaddress.IPv6Address(int(digits, 16))))
    return found
