"""Whether what this process writes would survive a power cut: os.fsync, os.rename and os.replace, recorded.

After a power cut a file has the content of its last fsync, and a folder the entries of its own. So a rename is right
where what it moves is on the disk by then, and an artefact is safe where its content is, and its name in its folder.
Content and entries are compared, not clocks; whoever has written them, in Python or not, in a thread or not.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

Identity = tuple[int, int]
"""Device and inode: what a file keeps through renames."""


class Disk:
    """What would be left of `root` after a power cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root, self._kept = root.resolve(), dict[Identity, object]()
        self.faults: list[str] = []
        """Renames of what was not on the disk."""
        self.renamed: list[str] = []
        """Names that something was renamed to."""
        sync, rename, replace = os.fsync, os.rename, os.replace

        def fsync(file: object) -> None:
            sync(file)  # type: ignore[arg-type]
            descriptor = file if isinstance(file, int) else file.fileno()  # type: ignore[attr-defined]
            path = Path(f"/proc/self/fd/{descriptor}").resolve()
            self._kept[_identity(path)] = _state(path)

        def checked(move: object) -> object:
            def moving(source: str, target: str, **options: object) -> None:
                if self.root in Path(source).resolve().parents:
                    self.faults += [f"{source} -> {target}: {fault}" for fault in self._lost(Path(source))]
                    self.renamed.append(Path(target).name)
                move(source, target, **options)  # type: ignore[operator]

            return moving

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", checked(rename))
        monkeypatch.setattr(os, "replace", checked(replace))

    def lost(self, *paths: Path) -> list[str]:
        """What of files and folders, of all that is in them, and of their names up to `root`, would not be there."""
        found = [fault for path in paths for fault in self._lost(path)]
        names = {(p.parent, p) for path in paths for p in (path, *path.parents) if self.root in p.resolve().parents}
        return [
            *self.faults,
            *found,
            *(f"{path}: its name" for parent, path in sorted(names) if not self._named(parent, path)),
        ]

    def _named(self, folder: Path, path: Path) -> bool:
        entries = self._kept.get(_identity(folder))
        return isinstance(entries, dict) and entries.get(path.name) == path.stat().st_ino

    def _lost(self, path: Path) -> Iterator[str]:
        for made in (path, *path.rglob("*")) if path.is_dir() else (path,):
            if self._kept.get(_identity(made)) != _state(made):
                yield f"{made}: {'entries' if made.is_dir() else 'content'}"


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino


def _state(path: Path) -> object:
    if path.is_dir():
        return {entry.name: entry.inode() for entry in os.scandir(path)}
    return hashlib.sha256(path.read_bytes()).hexdigest()
