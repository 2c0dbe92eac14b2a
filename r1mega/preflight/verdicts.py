"""Verdicts on data that were reached before: that nothing is wrong, by the digest of what was looked at.

A key covers the bytes of the files, the settings that matter, this program's own sources and the versions of the
libraries that read: whatever of them changes, the verdict is reached anew. A fault is never kept. The cache lies in
$XDG_CACHE_HOME/r1mega/verdicts (~/.cache), may be removed at any time, and is done without where it cannot be
written.
"""

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import r1mega
from r1mega.errors import DataError
from r1mega.runtime.env import cache_dir
from r1mega.runtime.progress import Bar

log = logging.getLogger(__name__)

LIBRARIES = ("datasets", "jinja2", "pyarrow", "reasoning_gym", "tokenizers", "torch", "transformers")
BLOCK = 1 << 24


def key(what: str, *parts: Any) -> str:
    """The name of a verdict on `what`.

    Args:
        parts: all that it depends on beside code and libraries, as JSON takes it.
    """
    return hashlib.sha256(json.dumps([what, _program(), parts], default=str).encode()).hexdigest()


def known(key: str) -> bool:
    """Whether nothing was wrong. What was to be told of the data all the same is told again."""
    try:
        told = (_folder() / key).read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return False
    for line in told:
        log.warning("%s", line)
    return True


def keep(key: str, about: str, told: Iterable[str] = ()) -> None:
    """Nothing is wrong.

    Args:
        about: for whoever looks into the cache.
        told: lines that `known` tells again.
    """
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        lines = [f"{time.strftime('%Y-%m-%d %H:%M:%S')} {about}: nothing is wrong", *told]
        (_folder() / key).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        log.warning("%s: the verdict on %s is not kept: %s", _folder(), about, error.strerror)


def digest(files: Iterable[Path]) -> list[str]:
    """SHA-256 of the bytes of each file. Raises DataError where one cannot be read, as a folder cannot."""
    files = list(files)
    found: list[str] = []
    try:
        total = sum(file.stat().st_size for file in files)
        with Bar("reading", total / 2**20, unit="MiB", silent=total < 2**30) as bar:
            for file in files:
                hashed = hashlib.sha256()
                with file.open("rb") as content:
                    while block := content.read(BLOCK):
                        hashed.update(block)
                        bar.advance(len(block) / 2**20)
                found.append(hashed.hexdigest())
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}: name a file that can be read") from error
    return found


def digest_of_tree(folder: Path, without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Name and SHA-256 of every file below a folder, in the order of their names.

    Args:
        without: ends of names that are passed over.
    """
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.endswith(without))
    return list(zip((str(f.relative_to(folder)) for f in files), digest(files), strict=True))


def _folder() -> Path:
    return cache_dir() / "verdicts"


@cache
def _program() -> list[Any]:
    """This program's sources, and the versions of what it reads data with."""
    root = Path(r1mega.__file__).parent
    sources = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        sources.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    versions: list[str | None] = []
    for name in LIBRARIES:
        try:
            versions.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            versions.append(None)
    return [sources.hexdigest(), versions]
