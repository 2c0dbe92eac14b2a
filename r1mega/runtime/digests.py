"""Digests of files and model folders: what they hold, whatever their path, name, or how it is cut into files.

Digests are XXH3-128, in hexadecimal. A large file is hashed once: its digest is kept with its size, time and inode,
and trusted while these agree. A safetensors file counts by its tensors (name, dtype, shape, bytes), so that a model
is the same model in one file or in many.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from r1mega.errors import DataError
from r1mega.runtime import env, files
from r1mega.runtime.progress import Bar

KEPT_BYTES = 64 * 2**20
"""A smaller file is hashed whenever it is asked for: that takes no time."""
SETTLED_NS = 2 * 10**9
"""A file that changed later than this before it is hashed may change again and show the same time: not kept."""
BLOCK_BYTES = 4 * 2**20
THREADS = 8
BAR_BYTES = 2**30
"""From here on a bar is shown."""
MAX_KEPT = 20_000
"""Files whose digests one place remembers, the newest first."""

INDEX = "model.safetensors.index.json"
MEGATRON = ".metadata"
GLANCED_BYTES = 4 * KEPT_BYTES
"""The most that a glance hashes in all."""
COMPANIONS = ("config.json", "generation_config.json", "tokenizer.json")
"""What makes other answers of the same weights: architecture, ends, and how text and tokens become one another."""


def digest_of(*parts: Any) -> str:
    """Of JSON values, by what they say."""
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())


class NotHashed(Exception):
    """A file whose digest is not remembered, and which is too large for a glance."""


class Digests:
    """Digests of files, remembered in JSON files of this user's and of a run."""

    def __init__(
        self,
        run_dir: Path | None = None,
        *,
        verify: bool = False,
        glance: bool = False,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            run_dir: a run directory, which remembers them too; it may be resumed on a machine with another home.
            verify: hash again what is remembered.
            glance: answer at once or not at all (`NotHashed`), and write nothing.
            beat: called now and then while files are hashed.
        """
        self._left = GLANCED_BYTES if glance else None
        self._places = [p / "digests.json" for p in (env.cache_dir(), run_dir) if p is not None]
        self._verify, self._beat = verify, beat
        self._known: dict[str, str] | None = None

    def of(self, path: Path) -> str:
        """Of a file, a model's folder or any other folder; "" where nothing is there.

        A JSON file counts by what it says. Of a model's folder the weights count and `COMPANIONS`; of another folder
        everything, by name.

        Raises:
            DataError: something in it cannot be read.
            NotHashed: it takes more than a glance.
        """
        if path.is_file():
            return _of_json(path) if path.suffix == ".json" else self._of_files([path], path.name)[path]
        if not path.is_dir():
            return ""
        if (weights := weight_files(path)) or (path / "config.json").is_file():
            found = self._of_files(weights, path.name)
            total = sum(int(digest, 16) for digest in found.values()) % 2**128
            return digest_of(f"{total:032x}", {n: _of_json(path / n) for n in COMPANIONS if (path / n).is_file()})
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        found = self._of_files(inside, path.name)
        return digest_of([(str(file.relative_to(path)), found[file]) for file in inside])

    def _of_files(self, paths: Sequence[Path], title: str) -> dict[Path, str]:
        """Digest of each; a safetensors file's add up to its folder's."""
        try:
            marks = {path: _mark(path) for path in paths}
            known = {} if self._verify else self._read()
            found = {path: known[mark.key] for path, mark in marks.items() if mark.key in known}
            missing = [path for path in paths if path not in found]
            self._glance(missing, marks)
            found |= self._hash(missing, marks, title)
            changed = [path for path in paths if _mark(path) != marks[path]]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        if changed:
            raise DataError(f"{changed[0]}: changed while it was read; wait for what writes it, and start again")
        if self._left is not None:
            return found
        old = time.time_ns() - SETTLED_NS
        self._keep({m.key: found[p] for p, m in marks.items() if m.bytes >= KEPT_BYTES and m.mtime_ns < old})
        return found

    def _glance(self, paths: Sequence[Path], marks: Mapping[Path, "_Mark"]) -> None:
        if self._left is None:
            return
        large = [path for path in paths if marks[path].bytes >= KEPT_BYTES]
        self._left -= sum(marks[path].bytes for path in paths)
        if large or self._left < 0:
            raise NotHashed(str((large or list(paths))[0]))

    def _hash(self, paths: Sequence[Path], marks: Mapping[Path, "_Mark"], title: str) -> dict[Path, str]:
        pieces = [(path, piece) for path in paths for piece in _pieces(path)]
        total = sum(marks[path].bytes for path in paths)
        sums: dict[Path, int] = {}
        with (
            Bar(f"hashing {title}", total / 1e6, unit="MB", silent=total < BAR_BYTES) as bar,
            ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
        ):
            jobs = {pool.submit(_hash_piece, path, piece): (path, piece) for path, piece in pieces}
            try:
                for job in as_completed(jobs):
                    path, piece = jobs.pop(job)
                    sums[path] = (sums.get(path, 0) + job.result()) % 2**128
                    bar.advance(piece.bytes / 1e6)
                    self._beat()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {path: f"{sums.get(path, 0):032x}" for path in paths}

    def _read(self) -> dict[str, str]:
        if self._known is None:
            self._known = {}
            for place in self._places:
                self._known |= _remembered(place)
        return self._known

    def _keep(self, found: dict[str, str]) -> None:
        if not found:
            return
        self._read().update(found)
        for place in self._places:
            there = _remembered(place)
            if any(there.get(key) != digest for key, digest in found.items()):
                newest = list({**{k: v for k, v in there.items() if k not in found}, **found}.items())[-MAX_KEPT:]
                try:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    files.write_json(place, dict(newest))
                except OSError:
                    continue  # a home that is read-only: the next run hashes again


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights, of a Hugging Face folder or a distributed checkpoint; [] in any other.

    Those that the index names and others called model*, or without an index all safetensors files: as
    `formats.hf_files` reads them.
    """
    if (folder / MEGATRON).is_file():
        return [folder / MEGATRON, *sorted(folder.glob("*.distcp"))]
    names = {file.name for file in folder.glob("*.safetensors")}
    try:
        listed = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        names = {n for n in names if n in listed or n.startswith("model")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no index; one that cannot be read is named where the weights are read
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


@dataclass(frozen=True)
class _Mark:
    """By which a file is known not to have changed."""

    name: str
    bytes: int
    mtime_ns: int
    inode: int

    @property
    def key(self) -> str:
        return f"{self.name} {self.bytes} {self.mtime_ns} {self.inode}"


def _mark(path: Path) -> _Mark:
    stat = path.stat()
    return _Mark(path.name, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@dataclass(frozen=True)
class _Piece:
    """A range of a file that is hashed by one thread, and what it is."""

    what: str
    start: int
    bytes: int


def _pieces(path: Path) -> Iterable[_Piece]:
    """The tensors of a whole safetensors file; any other file is one piece."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            base = 8 + int.from_bytes(file.read(8), "little")
            try:
                header: dict[str, Any] = json.loads(file.read(base - 8)) if base <= min(size, 10**8) else {}
                header.pop("__metadata__", None)
                found = [
                    _Piece(json.dumps([name, of["dtype"], of["shape"]]), base + start, stop - start)
                    for name, of in header.items()
                    for start, stop in [of["data_offsets"]]
                ]
            except (ValueError, KeyError, TypeError, AttributeError):
                found = []
        if found and sum(piece.bytes for piece in found) == size - base:
            return found
    return [_Piece("file", 0, size)]


def _hash_piece(path: Path, piece: _Piece) -> int:
    hasher = xxhash.xxh3_128(piece.what.encode())
    with path.open("rb", buffering=0) as file:
        file.seek(piece.start)
        block, left = memoryview(bytearray(min(BLOCK_BYTES, max(piece.bytes, 1)))), piece.bytes
        while left:
            num = file.readinto(block[: min(left, len(block))])
            if not num:
                raise OSError(5, "shorter than it was a moment ago", str(path))
            hasher.update(block[:num])
            left -= num
    return hasher.intdigest()


def _of_json(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return digest_of(json.loads(content))
    except (ValueError, RecursionError):
        return xxhash.xxh3_128_hexdigest(content)


def _remembered(place: Path) -> dict[str, str]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
