"""Which files the wheels of a lock install, and whether a path is in two of them.

    python tools/wheel_files.py requirements/gpu-engine.lock [--python 3.12] [--glibc 2.39] [--all]

pip installs what a lock names without asking who owns a path: of two wheels that both have it, the one installed last
wins, and the other package is broken without a word. A wheel's list of its files stands at the end of its archive, so
it is read by requests for those bytes alone, from the addresses that uv finds in the index it is set up with: some
tens of megabytes for a lock of gigabytes. Scripts that entry points make count as files. A package that comes as
source has no such list; the result names it.

The result goes beside the lock, as gpu-engine.files.json, with the lock's digest: tests/unit/test_locks.py tells when
the lock is another one. Paths that may be in two wheels stand in requirements/shared_paths.toml, with the reason; the
exit status is 1 where another one is, or where one of these is not.
"""

import argparse
import configparser
import fnmatch
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from csv import reader
from pathlib import Path
from typing import Any

try:
    from packaging.tags import Tag, compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"wheel_files: {said}", file=sys.stderr)
    sys.exit(2)

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
ALLOWED = REQUIREMENTS / "shared_paths.toml"
TAIL_BYTES = 256 << 10
"""Read at once from a wheel's end: the archive's directory and, mostly, the list of files."""
TRIES = 4


class LockError(Exception):
    """A lock whose files cannot be told."""


class Remote(io.RawIOBase):
    """A file behind an address, read by requests for the bytes that are asked for."""

    def __init__(self, url: str) -> None:
        self.url, self.place = url, 0
        self.tail, self.size = _fetch(url, f"bytes=-{TAIL_BYTES}")

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def read(self, size: int = -1) -> bytes:
        stop = self.size if size < 0 else min(self.place + size, self.size)
        known = self.size - len(self.tail)
        if self.place >= known:
            data = self.tail[self.place - known : stop - known]
        elif stop > self.place:
            data, _ = _fetch(self.url, f"bytes={self.place}-{stop - 1}")
        else:
            data = b""
        self.place += len(data)
        return data


def _fetch(url: str, wanted: str) -> tuple[bytes, int]:
    """(bytes of a range, size of the whole file). A server that knows no ranges sends all; it is cut here."""
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": wanted}), timeout=120) as reply:
                if reply.status == 206:
                    return reply.read(), int(reply.headers["Content-Range"].rpartition("/")[2])
                data = reply.read()
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start = int(first) if first else max(0, len(data) - int(last))
                return data[start : int(last) + 1 if first and last else None], len(data)
        except (OSError, urllib.error.URLError) as error:
            if not left:
                raise LockError(f"{url.rpartition('/')[2]} could not be read: {error}") from error
    raise AssertionError("not reached")


def tags(python: str, glibc: str) -> list[Tag]:
    """What an x86-64 machine of this Python and C library takes, the best first."""
    major, minor = (int(part) for part in python.split("."))
    most = int(glibc.partition(".")[2])
    old = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    platforms = []
    for least in range(most, 4, -1):
        platforms.append(f"manylinux_2_{least}_x86_64")
        if least in old:
            platforms.append(f"{old[least]}_x86_64")
    platforms.append("linux_x86_64")
    own = list(cpython_tags((major, minor), platforms=platforms))
    return own + list(compatible_tags((major, minor), f"cp{major}{minor}", platforms))


def chosen(wheels: Iterable[Mapping[str, Any]], order: Mapping[Tag, int]) -> str | None:
    """Address of the wheel that an installer takes, or None where none fits: then the source package is built."""
    ranked = []
    for wheel in wheels:
        *_, fits = parse_wheel_filename(wheel["url"].rpartition("/")[2])
        ranked += [(order[tag], wheel["url"]) for tag in fits if tag in order]
    return min(ranked)[1] if ranked else None


def installed(archive: zipfile.ZipFile) -> dict[str, str]:
    """Digests of a wheel's files by where they are installed, from its own list; "" where it names none.

    A path begins with "site-packages/", or as the folder of an environment does: "bin/", "include/", "share/".
    """
    places = {"purelib": "site-packages/", "platlib": "site-packages/", "scripts": "bin/", "headers": "include/"}
    (record,) = (n for n in archive.namelist() if n.endswith(".dist-info/RECORD") and n.count("/") == 1)
    found = {}
    for name, digest, _ in reader(archive.read(record).decode().splitlines()):
        folder, _, rest = name.partition("/")
        if folder.endswith(".data"):
            scheme, _, rest = rest.partition("/")
            found[places.get(scheme, "") + rest] = digest
        elif not name.endswith("/"):
            found["site-packages/" + name] = digest
    points = record.replace("RECORD", "entry_points.txt")
    if points in archive.namelist():
        parsed = configparser.ConfigParser(delimiters="=", interpolation=None)
        parsed.optionxform = str  # type: ignore[assignment]
        parsed.read_string(archive.read(points).decode())
        for section in {"console_scripts", "gui_scripts"} & set(parsed.sections()):
            found |= {f"bin/{name}": text for name, text in parsed[section].items()}
    return found


def addresses(lock: Path, python: str, glibc: str) -> tuple[dict[str, str], list[str]]:
    """(addresses of the lock's wheels by the packages' names, names of those that come as source). Needs uv.

    Raises:
        LockError: uv is not there, or the index has not what the lock names.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "pylock.toml")
        command = [
            "uv", "pip", "compile", "-q", str(lock), "--no-deps", "--generate-hashes", "--format", "pylock.toml",
            "--python-version", python, "--python-platform", f"x86_64-manylinux_{glibc.replace('.', '_')}",
            "-o", str(out),
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise LockError("uv is not there: pip install uv") from error
        except subprocess.CalledProcessError as error:
            raise LockError(f"uv cannot find what {lock.name} names: {error.stderr.strip()[-600:]}") from error
        packages = tomllib.loads(out.read_text())["packages"]
    order = {tag: place for place, tag in reversed(list(enumerate(tags(python, glibc))))}
    wheels = {p["name"]: chosen(p.get("wheels", ()), order) for p in packages}
    return {n: u for n, u in wheels.items() if u}, sorted(n for n, u in wheels.items() if not u)


def shared(files: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Packages that own a path, of each path that several own."""
    owners = defaultdict(list)
    for name in sorted(files):
        for path in files[name]:
            owners[path].append(name)
    return {path: names for path, names in sorted(owners.items()) if len(names) > 1}


def judge(
    files: Mapping[str, Mapping[str, str]], allowed: Iterable[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """What a lock's wheels share, by the rule that allows it, and what is wrong.

    A rule has `paths` (a pattern), `packages` (their names, all of them), `why`, and `same = true` where the files
    have to be byte for byte the same, so that no order of installation matters.
    """
    rules = [{**rule, "files": 0} for rule in allowed if set(rule["packages"]) <= files.keys()]
    faults = []
    for path, names in shared(files).items():
        same = len({files[name][path] for name in names}) == 1 and files[names[0]][path] != ""
        for rule in rules:
            if fnmatch.fnmatchcase(path, rule["paths"]) and set(names) <= set(rule["packages"]):
                rule["files"] += 1
                if rule.get("same") and not same:
                    faults.append(f"{path} differs between {', '.join(names)}, and was allowed as the same")
                break
        else:
            faults.append(f"{path} is in {' and '.join(names)}{' (the same bytes)' if same else ''}")
    faults += [
        f"{r['paths']} of {', '.join(r['packages'])} is allowed, and not shared" for r in rules if not r["files"]
    ]
    return rules, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--glibc", default="2.39", help="of the machine; Ubuntu 24.04 has 2.39")
    parser.add_argument("--all", action="store_true", help="print every path that is in two wheels, not the first 20")
    options = parser.parse_args()
    lock: Path = options.lock
    try:
        wheels, sources = addresses(lock, options.python, options.glibc)

        def read(url: str) -> dict[str, str]:
            with zipfile.ZipFile(Remote(url)) as archive:  # type: ignore[arg-type]
                return installed(archive)

        with ThreadPoolExecutor(8) as pool:
            files = dict(zip(wheels, pool.map(read, wheels.values()), strict=True))
        rules, faults = judge(files, tomllib.loads(ALLOWED.read_text())["shared"])
    except LockError as error:
        print(f"wheel_files: {error}", file=sys.stderr)
        return 2
    for fault in faults if options.all else faults[:20]:
        print(fault, file=sys.stderr)
    count = len(set().union(*files.values()))
    print(f"{lock.name}: {len(files)} wheels, {count} files, {len(sources)} from source; {len(faults)} faults")
    if faults:
        return 1
    result = {
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "python": options.python,
        "glibc": options.glibc,
        "wheels": len(files),
        "files": count,
        "from_source": sources,
        "shared": rules,
    }
    lock.with_suffix(".files.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
