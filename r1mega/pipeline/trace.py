"""Where rows come from: each back through the rows it was made of to the answers it was sampled as, and to the
weights that answered.

    row -> intact? -> rows it was made of (`from`), each in turn -> journal entry -> weights -> the run that made them

A row resolves where all of this holds. What does not is a `TraceFault`, by the place of the row that is to blame.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from r1mega.data.signed_rows import SHA256, Row, digest_of, sha256_of
from r1mega.errors import DataError
from r1mega.pipeline.checkpoints import Checkpoints
from r1mega.pipeline.rollouts import Claim, Journals, claims_of
from r1mega.pipeline.row_files import JSONL, RowFiles, row_of
from r1mega.pipeline.run_folders import StageFolder

CHANGED = "changed row"
MISSING_PARENT = "missing parent"
CHANGED_IMPORT = "changed file that was imported"
OTHER_BEFORE = "another text before it was edited or written anew"
UNKNOWN_WEIGHTS = "unknown weights"
NO_ORIGIN = "row without an origin"
CIRCLE = "row that comes from itself"


@dataclass(frozen=True)
class TraceFault:
    """What keeps a row from resolving."""

    kind: str
    place: str
    """Of the row that is to blame."""
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.kind}: {self.what}"


@dataclass(slots=True)
class TracedRow:
    """What a row says of where it comes from, and what came of looking."""

    digest: str
    """By which others name it: the one that it has."""
    place: str
    parents: tuple[str, ...] = ()
    claims: Sequence[Claim] = ()
    imported: tuple[str, int, str] | None = None
    """File's name, line and digest of the raw row."""
    plain: bool = False
    """Whether it says nothing of where it comes from."""
    review: str = ""
    """What people decided on it: "accepted", "edited"."""
    rewritten: bool = False
    before: tuple[str, str] = ("", "")
    """Digests of what it says was there before: the answer that was written anew, the messages that were edited."""
    own: tuple[str, str] = ("", "")
    """The same of itself, where another row was made of it."""
    faults: list[TraceFault] = field(default_factory=list[TraceFault])

    @property
    def changed(self) -> bool:
        """Whether its content is not what its digest is of."""
        return any(fault.kind == CHANGED for fault in self.faults)


class Tracer:
    """Rows, and all that they were made of, in the run directories of a chain."""

    def __init__(self, stages: Sequence[StageFolder], files: RowFiles, checkpoints: Checkpoints) -> None:
        self.checkpoints, self.journals = checkpoints, Journals(stages)
        self.unread_imports = dict[str, int]()
        """Files that rows were imported from and that are not there any more, or tables: how many rows."""
        self._stages, self._files = stages, files
        self._all: list[TracedRow] = []
        self._rows: dict[str, TracedRow] = {}
        """By digest; of copies one that was not changed, if there is one."""

    def add(self, row: Row, place: str, *, digest: str = "", parent: bool = False, signed: bool = False) -> TracedRow:
        """Take a row up, to be resolved with others.

        Args:
            digest: of its content, where that is known already.
            parent: another row was made of it.
            signed: it stands in a file in which every row says where it comes from (`RowFiles.signed`).
        """
        now = digest or digest_of(row)
        own = str(row.get(SHA256) or now)
        known = self._rows.get(own)
        if known is not None and now == own and not known.changed:
            return known
        found = _read(row, own, now, place)
        if found.plain and signed:
            what = "it says nothing of where it comes from, and the stage that wrote this file says so of every row"
            found.faults.append(TraceFault(NO_ORIGIN, place, what))
        if parent:
            found.own = _said(row), digest_of({"messages": row.get("messages")})
        self._all.append(found)
        if known is None or now == own:
            self._rows[own] = found
        return found

    def resolve(self, *, keep: bool = False, advance: Callable[[int], object] = lambda _: None) -> None:
        """Look for all that the rows which were added come from.

        Args:
            keep: journal entries are kept (`Claim.found`).
            advance: called with the bytes of journals that were read.

        Raises:
            DataError, RunDirError: something cannot be read.
        """
        wanted = self._all
        while wanted:
            missing = {digest for row in wanted for digest in row.parents if digest not in self._rows}
            places = [place for digest in sorted(missing) if (place := self._files.named(digest)) is not None]
            wanted = [self.add(self._files.row(place), str(place), parent=True) for place in places]
        self._look_for_imports()
        claims = [claim for row in self._all for claim in row.claims if keep or not row.changed]
        self.journals.look_for(claims, keep=keep, advance=advance)
        for row in self._all:
            if row.changed:  # and nothing that it says is to be believed
                continue
            row.faults += [TraceFault(c.fault, row.place, _entry(c)) for c in row.claims if c.fault]
            for start in {claim.start for claim in row.claims}:
                if fault := self.checkpoints.of(start).fault:
                    row.faults.append(TraceFault(UNKNOWN_WEIGHTS, row.place, f"{start[:12]}: {fault}"))
            row.faults += self._of_parents(row)

    def parents(self, row: TracedRow) -> list[TracedRow]:
        """The rows that a row was made of, so far as they are there."""
        return [self._rows[digest] for digest in row.parents if digest in self._rows]

    def line(self, row: TracedRow) -> Iterator[TracedRow]:
        """A row, and every row that it was made of, each once."""
        seen, waiting = dict[str, None](), [row]
        while waiting:
            one = waiting.pop()
            if one.digest not in seen:
                seen[one.digest] = None
                yield one
                waiting += self.parents(one)

    def faults(self, row: TracedRow) -> list[TraceFault]:
        """All that keeps a row from resolving, of itself and of the rows that it was made of."""
        return [fault for one in self.line(row) for fault in one.faults]

    def _of_parents(self, row: TracedRow) -> Iterator[TraceFault]:
        for digest in row.parents:
            if digest == row.digest:
                yield TraceFault(CIRCLE, row.place, digest)
            elif (parent := self._rows.get(digest)) is None:
                yield TraceFault(MISSING_PARENT, row.place, f"it was made of row {digest}, which no file here has")
            elif not parent.changed:
                for said, is_, what in zip(row.before, parent.own, ("answer", "messages"), strict=True):
                    if said and is_ and said != is_:
                        told = f"it tells another {what} from before than {parent.place} has"
                        yield TraceFault(OTHER_BEFORE, row.place, told)

    def _look_for_imports(self) -> None:
        by_file: dict[str, dict[int, list[TracedRow]]] = defaultdict(lambda: defaultdict(list))
        for row in self._all:
            if row.imported is not None:
                by_file[row.imported[0]][row.imported[1]].append(row)
        for name, rows in by_file.items():
            named = (of.path for stage in self._stages for of in stage.inputs() if of.path.name == Path(name).name)
            there = [path for path in dict.fromkeys(named) if path.is_file() and path.suffix == JSONL]
            if not there:
                self.unread_imports[name] = sum(map(len, rows.values()))
                continue
            found = set[int]()
            for path in there:
                found |= _as_imported(path, rows)
            told = " and ".join(map(str, there))
            for number, some in rows.items():
                if number not in found:
                    for row in some:
                        what = f"{told}, line {number}, is not what it was when it was imported"
                        row.faults.append(TraceFault(CHANGED_IMPORT, row.place, what))


def _as_imported(path: Path, rows: Mapping[int, Sequence[TracedRow]]) -> set[int]:
    """The lines of a file that are what they were when rows were made of them."""
    found = set[int]()
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number in rows:
                    digests = {row.imported[2] for row in rows[number] if row.imported is not None}
                    if _digest(line) in digests and len(digests) == 1:
                        found.add(number)
    except OSError as error:
        raise DataError(f"cannot read rows from {path}: {error.strerror}") from error
    return found


def _digest(line: bytes) -> str:
    try:
        return digest_of(row_of(line, ""))
    except DataError:
        return ""


def _read(row: Row, own: str, now: str, place: str) -> TracedRow:
    """A row by itself.

    Args:
        own: the digest that it has.
        now: that of its content.
    """
    found = TracedRow(own, place)
    if now != own:
        found.faults.append(TraceFault(CHANGED, place, f"it was {own}, and its content is {now}"))
    of: Any = row.get("provenance")
    if of is None:
        found.plain = True
        return found
    try:
        found.parents = _parents(of.get("from", []))
        found.review, found.rewritten = str(of.get("review", {}).get("decision", "")), "rewrite" in of
        found.before = _before(row, of)
        if (raw := of.get("imported")) is not None:
            found.imported = str(raw["file"]), int(raw["line"]), str(raw["sha256"])
        elif not found.parents:
            found.claims = claims_of(row)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        found.faults.append(TraceFault(NO_ORIGIN, place, f"its provenance cannot be read ({error!r})"))
        return found
    if not (found.claims or found.parents or found.imported):
        found.faults.append(TraceFault(NO_ORIGIN, place, "its provenance names no answer, no row and no file"))
    return found


def _parents(named: Any) -> tuple[str, ...]:
    """The digests in a row's `from`. Raises ValueError where these are none."""
    if not isinstance(named, list) or not all(isinstance(one, str) for one in cast(list[Any], named)):
        raise ValueError(f"from is {named!r}, and no list of rows' sha256")
    return tuple(cast(list[str], named))


def _said(row: Row) -> str:
    """SHA-256 of a row's last turn; "" where it has none."""
    turns: Any = row.get("messages")
    return sha256_of(turns[-1]["content"]) if turns else ""


def _before(row: Row, of: Mapping[str, Any]) -> tuple[str, str]:
    """Of a row that people looked at, what they had before them; of one that was written anew, of what."""
    if (review := of.get("review")) is None:
        return str(of.get("rewrite", {}).get("of_sha256", "")), ""
    return "", digest_of({"messages": review.get("original") or row.get("messages")})


def _entry(claim: Claim) -> str:
    return (
        f"answer {claim.index} to {claim.question} with seed {claim.seed}, of weights {claim.start[:12]} version "
        f"{claim.version}"
    )
