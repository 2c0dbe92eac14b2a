"""Plants small faults one at a time in a copy of the tree, and says which of them no test notices.

python tools/mutate.py [ID]... [--table FOLDER] [--out FILE] [--within N] [--marks EXPRESSION]

A fault is a [[mutant]] of a TOML file in tools/mutants: id, file, breaks (what it spoils), old (a text that stands
once in the file) and new (what stands there instead). Tests that import the file meet it first, directly, then
through other modules; what none of them notices meets all others. A fault counts as killed when a test fails with it
that passes without it. The result is a table, and FILE, from which an interrupted run goes on; what was judged of
these very files is not judged again. Exit code 1 when a fault survives, 2 when the table does not fit the tree.
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

try:
    import pytest
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"mutate: {said}", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).parents[1]
TESTS = "tests"
OWN = "tests/unit/test_mutate.py"
"""Asks whether the faults have their places in the tree, and would notice each of them that is planted."""


class TableError(Exception):
    """The table of faults does not fit the tree, or the tests cannot judge it."""


@dataclass(frozen=True)
class Mutant:
    """One planted fault."""

    id: str
    file: str
    breaks: str
    old: str
    new: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a fault."""

    id: str
    file: str
    breaks: str
    killed_by: str
    """The first test that fails with the fault and passes without it; empty where it survives."""
    distance: int | None
    """Imports between that test's file and the fault's; None where there are none, or no test saw it."""
    seconds: float
    digest: str
    """Of the fault."""


def read_table(folder: Path, root: Path) -> list[Mutant]:
    """The faults of every TOML file of the folder.

    Raises:
        TableError: an entry is malformed or its text does not stand exactly once in its file; lists all of them.
    """
    found: list[Mutant] = []
    faults: list[str] = []
    wanted = {field.name for field in fields(Mutant)}
    for file in sorted(folder.glob("*.toml")):
        for row in tomllib.loads(file.read_text(encoding="utf-8")).get("mutant", []):
            name = f"{file.name}: {row.get('id', '(no id)')}"
            if set(row) != wanted:
                faults.append(f"{name}: has the fields {sorted(row)}, a mutant has {sorted(wanted)}")
                continue
            mutant = Mutant(**row)
            path = root / mutant.file
            times = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
            if times != 1 or mutant.old == mutant.new:
                seen = f"stands {times} times in it" if path.is_file() else "there is no such file"
                faults.append(f"{name}: {mutant.file}: {seen}; bring `old` to today's code: {mutant.old!r}")
            found.append(mutant)
    faults += [
        f"{id}: {times} faults have this id" for id, times in Counter(m.id for m in found).items() if times > 1
    ]
    if not found:
        faults.append(f"{folder}: no faults in it")
    if faults:
        raise TableError("\n  ".join([f"{folder}: {len(faults)} do not fit", *faults]))
    return found


def tree_files(root: Path) -> list[str]:
    """What git tracks or would track, that is there."""
    asked = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(asked, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({name for name in names if name and (root / name).is_file()})


def digest_of(root: Path, names: Sequence[str]) -> str:
    whole = hashlib.sha256()
    for name in names:
        whole.update(f"{name}\0{hashlib.sha256((root / name).read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


class Imports:
    """How far each test file is from a module, in imports: 1 where it imports it itself."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        """names: the tree's files. In tests an import counts wherever it stands, elsewhere at the top of a module."""
        self._root, self._files = root, {name for name in names if name.endswith(".py")}
        tests = (n for n in self._files if n.startswith(f"{TESTS}/") and Path(n).name.startswith("test_"))
        self.tests = sorted(n for n in tests if n != OWN)
        self._importers: dict[str, set[str]] = {}
        for name in self._files:
            for imported in self._imported_by(name):
                self._importers.setdefault(imported, set()).add(name)

    def distances(self, file: str) -> dict[str, int]:
        """The test files that reach `file`."""
        found, edge, distance = {file}, {file}, 0
        tests: dict[str, int] = {}
        while edge:
            distance += 1
            edge = {importer for name in edge for importer in self._importers.get(name, ())} - found
            found |= edge
            tests |= {name: distance for name in edge if name in self.tests}
        return tests

    def _imported_by(self, name: str) -> Iterator[str]:
        tree = ast.parse((self._root / name).read_text(encoding="utf-8"))
        beside = [Path(name).parent, *Path(name).parent.parents] if name.startswith(f"{TESTS}/") else [Path()]
        for node in ast.walk(tree) if name.startswith(f"{TESTS}/") else _at_the_top(tree):
            if isinstance(node, ast.Import):
                dotted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                dotted = [part for alias in node.names for part in (f"{node.module}.{alias.name}", node.module)]
            else:
                continue
            for folder in beside:
                yield from (found for d in dotted if (found := self._file(folder, d)))

    def _file(self, folder: Path, dotted: str) -> str | None:
        path = folder / dotted.replace(".", "/")
        return next((n for n in (f"{path}.py", f"{path}/__init__.py") if n in self._files), None)


def _at_the_top(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from _at_the_top(child)


class Bench:
    """A copy of the tree in which faults are planted and tests run."""

    def __init__(self, root: Path, copy: Path, names: Sequence[str], marks: str) -> None:
        self._root, self._copy, self._marks = root, copy, marks
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name, follow_symlinks=False)
        if (root / ".venv").exists():
            (copy / ".venv").symlink_to((root / ".venv").resolve())
        self._sound: dict[str, bool] = {}
        # No bytecode: what is written within a second in the same length would be taken for unchanged.
        self._environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}

    def killer(self, mutant: Mutant, waves: Sequence[Sequence[str]]) -> str | None:
        """The first test that fails with the fault, of files run wave by wave; None where there is none.

        Raises:
            TableError: pytest itself fails, or that test fails without the fault as well.
        """
        path = self._copy / mutant.file
        sound = path.read_text(encoding="utf-8")
        for files in waves:
            path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
            try:
                failed = self._first_failure(files)
            finally:
                path.write_text(sound, encoding="utf-8")
            if failed is not None:
                if failed not in self._sound:
                    self._sound[failed] = self._first_failure([failed]) is None
                if not self._sound[failed]:
                    raise TableError(f"{mutant.id}: {failed} fails without the fault as well: mend that first")
                return failed
        return None

    def _first_failure(self, tests: Sequence[str]) -> str | None:
        cache = self._copy / ".pytest_mutants"
        shutil.rmtree(cache, ignore_errors=True)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-o", f"cache_dir={cache}", "-m", self._marks, *tests]
        done = subprocess.run(
            command, cwd=self._copy, env=self._environment, capture_output=True, text=True, errors="replace"
        )
        if done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):  # none has these marks
            return None
        record = cache / "v/cache/lastfailed"
        failed = list(json.loads(record.read_text())) if record.is_file() else []
        if not failed:
            raise TableError(f"pytest left with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
        return failed[0]


def waves_of(imports: Imports, file: str, within: int | None) -> tuple[list[list[str]], dict[str, int]]:
    """Test files in the order in which a fault meets them, direct importers first; and their distances."""
    distances = imports.distances(file)
    direct = [t for t in imports.tests if distances.get(t) == 1]
    nearest = sorted(
        (t for t in imports.tests if 1 < distances.get(t, 0) <= (within or 99)), key=distances.__getitem__
    )
    others = [] if within else [t for t in imports.tests if t not in distances]
    return [wave for wave in (direct, nearest, others) if wave], distances


def judge(root: Path, table: Path, out: Path, ids: Sequence[str], *, within: int | None, marks: str) -> list[Verdict]:
    """The verdict on every fault of the table, or on those named; each is written to `out` as it falls.

    Raises:
        TableError: as `read_table` and `Bench.killer`, or an id is unknown.
    """
    mutants = read_table(table, root)
    if unknown := sorted(set(ids) - {m.id for m in mutants}):
        raise TableError(f"{table}: no fault named {', '.join(unknown)}")
    # Faults do not judge one another.
    names = [n for n in tree_files(root) if root / n != out and table not in (root / n).parents]
    before = json.loads(out.read_text()) if out.is_file() else {}
    question = {"tree": digest_of(root, names), "within": within, "marks": marks}
    known = {v["digest"]: Verdict(**v) for v in before.get("mutants", [])} if _same(before, question) else {}
    todo = [m for m in mutants if m.digest not in known and (not ids or m.id in ids)]
    imports, began = Imports(root, names), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        bench = Bench(root, Path(folder), names, marks)
        for number, mutant in enumerate(todo, 1):
            start = time.monotonic()
            waves, distances = waves_of(imports, mutant.file, within)
            killer = bench.killer(mutant, waves) or ""
            distance = distances.get(killer.partition("::")[0])
            seconds = round(time.monotonic() - start, 1)
            known[mutant.digest] = Verdict(
                mutant.id, mutant.file, mutant.breaks, killer, distance, seconds, mutant.digest
            )
            left = (time.monotonic() - began) / number * (len(todo) - number)
            said = f"killed by {killer}" if killer else "SURVIVES"
            print(f"{number}/{len(todo)} {mutant.id}: {said} ({seconds:.0f} s; about {left:.0f} s left)", flush=True)
            judged = [known[m.digest] for m in mutants if m.digest in known]
            _write(out, {**question, "mutants": [asdict(v) for v in judged]})
    return [known[m.digest] for m in mutants if m.digest in known and (not ids or m.id in ids)]


def _same(before: dict[str, Any], question: dict[str, Any]) -> bool:
    return all(before.get(name) == value for name, value in question.items())


def _write(out: Path, result: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.replace(out)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ID", help="these faults alone")
    parser.add_argument("--table", type=Path, default=root / "tools/mutants")
    parser.add_argument("--out", type=Path, default=root / "docs/measurements/mutants.json")
    parser.add_argument("--within", type=int, help="ask test files at most so many imports away, and no others")
    parser.add_argument("--marks", default="not slow", help="pytest's -m")
    given = parser.parse_args(arguments)
    try:
        verdicts = judge(root, given.table, given.out, given.ids, within=given.within, marks=given.marks)
    except TableError as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 2
    for v in verdicts:
        print(f"{v.id:6} {v.file:36} {v.breaks:70} {v.killed_by or 'SURVIVES'}")
    survivors = [v.id for v in verdicts if not v.killed_by]
    print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} killed{'; survivors: ' if survivors else ''}"
          f"{', '.join(survivors)}")  # fmt: skip
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
