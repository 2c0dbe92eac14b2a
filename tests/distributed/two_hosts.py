"""Two hosts on this machine: network namespaces, joined by a cable, whose own names resolve to loopback.

    with two_hosts(folder) as hosts:
        hosts[0].command("python", ...)     # put `...` on the first host
        hosts[1].address                    # as the other one reaches it

A host is a process that holds its namespaces (network, hostname, mounts); nothing of it is left when it ends.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Host:
    """One of them, and how it is reached."""

    name: str
    address: str
    address6: str
    pid: int

    def command(self, *command: str) -> list[str]:
        """`command`, to be run there."""
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", f"--wd={Path.cwd()}", *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.command(*command), check=True, capture_output=True)


def needed() -> None:
    """Skip the test where namespaces cannot be made; in CI they can, by root."""
    tools = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    made = not tools and subprocess.run(["unshare", "-n", "-u", "-m", "true"], capture_output=True).returncode == 0
    if not made and os.environ.get("R1MEGA_CI") and os.geteuid() == 0:
        pytest.fail(f"no network namespaces: {', '.join(tools) or 'unshare fails'}; `make system-deps` has the tools")
    if not made:
        pytest.skip("network namespaces need root, iproute2 and util-linux")


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """The two, up and connected.

    Args:
        folder: for their /etc/hosts.
    """
    with contextlib.ExitStack() as stack:
        hosts = [_host(stack, folder, number) for number in (1, 2)]
        first, second = hosts
        ends = [f"r1m{host.pid}"[:15] for host in hosts]
        _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end in zip(hosts, ends, strict=True):
            _run("ip", "link", "set", end, "netns", str(host.pid), "name", "cable")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "cable")
            host.run("ip", "-6", "address", "add", f"{host.address6}/64", "dev", "cable", "nodad")
            host.run("ip", "link", "set", "lo", "up")
        for host in hosts:
            host.run("ip", "link", "set", "cable", "up")
        yield first, second


def _host(stack: contextlib.ExitStack, folder: Path, number: int) -> Host:
    name = f"twin{number}"
    hosts_file = folder / f"{name}.hosts"
    others = "".join(f"10.77.0.{n}\ttwin{n}-lan\nfd77::{n}\ttwin{n}-six\n" for n in (1, 2))
    hosts_file.write_text(f"127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n{others}")
    script = 'hostname "$1" && mount --bind "$2" /etc/hosts && echo up && exec sleep infinity'
    holder = subprocess.Popen(
        ["unshare", "-n", "-u", "-m", "sh", "-c", script, "sh", name, str(hosts_file)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def end() -> None:
        holder.kill()
        holder.communicate()

    stack.callback(end)
    assert holder.stdout is not None
    said = holder.stdout.readline()
    assert said == "up\n", said
    return Host(name, f"10.77.0.{number}", f"fd77::{number}", holder.pid)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
