"""Every row that a run trained on, or of a stage that makes data every row that it wrote, back to its origin.

Which rows those are the run itself has written down (`data/train/rows.txt`), so that what was held out, too long or
met before is not among them. A row has to be what it was then, and to resolve as `trace` says.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mega.data.signed_rows import digest_of
from r1mega.errors import DataError
from r1mega.pipeline.checkpoints import Checkpoints
from r1mega.pipeline.row_files import JSONL, WRITTEN, RowFiles, RowPlace, Trained, lines_of, row_of
from r1mega.pipeline.run_folders import StageFolder, stage_folders
from r1mega.pipeline.trace import CHANGED, TracedRow, TraceFault, Tracer
from r1mega.runtime.digests import Digests
from r1mega.runtime.progress import Bar

GONE = "row that is gone"
OTHER_FILE = "other file than was read"
SHOWN = 20
"""Broken rows that are listed by name."""


@dataclass
class TraceCounts:
    """What came of a run's rows."""

    what: str
    """Which rows: "trained on", or "written"."""
    rows: int = 0
    sampled: int = 0
    """Resolved to answers in a journal, and to the weights that gave them."""
    imported: int = 0
    """Resolved to a row of a file that nobody sampled here."""
    unread: Mapping[str, int] = field(default_factory=dict[str, int])
    """Of these, by file: those whose file is not there any more, or is no JSONL."""
    accepted: int = 0
    edited: int = 0
    """By people."""
    rewritten: int = 0
    checkpoints: Counter[str] = field(default_factory=Counter[str])
    """Who answered -> rows, of those that resolve."""
    faults: Counter[str] = field(default_factory=Counter[str])
    """Kind -> broken rows; a row may have several."""
    broken: list[tuple[str, list[str]]] = field(default_factory=list[tuple[str, list[str]]])
    """Of the first `SHOWN` that do not resolve: place, and what is wrong."""
    num_broken: int = 0
    notes: list[str] = field(default_factory=list[str])

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "which": self.what,
            "resolved": self.rows - self.num_broken,
            "sampled": self.sampled,
            "imported": self.imported,
            "imported_and_not_looked_at": dict(self.unread),
            "accepted": self.accepted,
            "edited": self.edited,
            "rewritten": self.rewritten,
            "checkpoints": dict(self.checkpoints),
            "broken": self.num_broken,
            "faults": dict(self.faults),
            "first_broken": [{"row": place, "faults": faults} for place, faults in self.broken],
            "notes": self.notes,
        }


def trace_all(run_dir: Path, chain: Path, *, silent: bool = False) -> TraceCounts:
    """
    Args:
        run_dir: of the stage whose rows are traced.
        chain: the folder that has the run directories of the stages before it.
        silent: show no progress.

    Raises:
        RunDirError: `run_dir` or one in `chain` is none.
        DataError: the stage has no rows to trace, or something cannot be read.
    """
    stage, stages = StageFolder.read(run_dir.resolve()), stage_folders(chain.resolve())
    if all(known.path != stage.path for known in stages):
        stages.append(stage)
    files = RowFiles(stages)
    tracer = Tracer(stages, files, Checkpoints(stages, Digests()))
    wanted = WantedRows.of(stage, stages)
    tally = TraceCounts(wanted.what, notes=wanted.notes)
    with Bar("rows", max(wanted.num, 1), unit="row", silent=silent) as bar:
        roots = [root for root in wanted.roots(tracer, files) if bar.advance() is None]
    num_bytes = sum(file.stat().st_size for file in tracer.journals.files)
    with Bar("journals", max(num_bytes / 1e6, 1e-6), unit="MB", silent=silent or not num_bytes) as bar:
        tracer.resolve(advance=lambda num: bar.advance(num / 1e6))
    files.close()
    _count(tally, tracer, roots)
    return tally


@dataclass
class WantedRows:
    """Rows that are to be traced, by the files that have them."""

    what: str
    files: dict[Path, dict[int, str] | None]
    """File -> number of each row -> its digest when it was trained on; None: all rows of the file, as they are."""
    stage: StageFolder
    named: Sequence[str] = ()
    """Rows of datasets, which are in no file: "NAME, row N"."""
    notes: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, stage: StageFolder, stages: Sequence[StageFolder]) -> "WantedRows":
        """Raises DataError where a stage has no rows."""
        if (trained := Trained.read(stage)) is not None:
            found: dict[Path, dict[int, str] | None] = {}
            datasets: list[str] = []
            files = {place: _file(stage, place) for place in {place for _, place, _ in trained.rows}}
            for digest, place, number in trained.rows:
                if (file := files[place]) is None:
                    datasets.append(f"{place} {number}")
                else:
                    of_file = found.setdefault(file, {})
                    assert of_file is not None
                    of_file[number] = digest
            return cls("trained on", found, stage, datasets)
        if written := [stage.path / name for name in WRITTEN[:-1] if (stage.path / name).is_file()]:
            return cls("written", dict.fromkeys(written), stage)
        read = [of.path for of in stage.inputs() if of.setting == "data.files"]
        if not read:
            raise DataError(
                f"{stage.path}: a stage {stage.kind!r} neither trains on rows nor writes any; name the run directory "
                "of a stage that does (sft, reward_model, mixture, rejection, preferences)"
            )
        note = "the run did not write down which rows it trained on: all rows of its files are traced"
        return cls("read", dict.fromkeys(read), stage, notes=[note])

    @property
    def num(self) -> int:
        """How many, as far as that is known before the files are read."""
        return len(self.named) + sum(len(of or ()) for of in self.files.values())

    def roots(self, tracer: Tracer, files: RowFiles) -> Iterator[TracedRow]:
        """Each, taken up by the tracer, or with the fault that it is not what it was."""
        for name in self.named:
            yield TracedRow("", name, plain=True)
        for file, numbers in self.files.items():
            if file.suffix != JSONL:
                yield from self._of_table(file, numbers or {})
            elif file.is_file():
                yield from self._of_file(file, numbers, tracer, files)
            else:
                yield from (self._elsewhere(file, n, of, tracer, files) for n, of in (numbers or {}).items())

    def _of_file(
        self, file: Path, numbers: dict[int, str] | None, tracer: Tracer, files: RowFiles
    ) -> Iterator[TracedRow]:
        left, others = dict(numbers or {}), dict[str, RowPlace]()
        there, known = dict[int, str](), set(left.values())
        for place, line in lines_of(file):
            if not line.strip():
                continue
            try:
                row = row_of(line, str(place))
            except DataError as error:
                there[place.line] = str(error)
                if numbers is None:
                    yield _broken(str(place), CHANGED, str(error))
                continue
            now = digest_of(row)
            if numbers is None or left.get(place.line) == now:
                left.pop(place.line, None)
                yield tracer.add(row, str(place), digest=now, signed=file.resolve() in files.signed)
            else:
                others[now] = place
                if now not in known:  # or it is a row that stood elsewhere
                    there[place.line] = f"what stands there now is {now}"
        moved = {number: others[was] for number, was in left.items() if was in others}
        if moved:
            self.notes.append(f"{file}: {len(moved)} rows stand at other lines than when they were trained on")
        for number, was in left.items():
            if number in moved:
                yield tracer.add(
                    files.row(moved[number]), str(moved[number]), digest=was, signed=file.resolve() in files.signed
                )
            elif number in there:
                what = f"{was} was trained on; {there[number]}"
                yield _broken(f"{file}, line {number}", CHANGED, what)
            else:
                yield self._elsewhere(file, number, was, tracer, files)

    def _elsewhere(self, file: Path, number: int, was: str, tracer: Tracer, files: RowFiles) -> TracedRow:
        """A row whose place is gone: the same row, where another file still has it."""
        if (place := files.named(was)) is not None and digest_of(row := files.row(place)) == was:
            return tracer.add(row, str(place), digest=was)
        return _broken(f"{file}, line {number}", GONE, f"{was} was trained on, and no file here has it any more")

    def _of_table(self, file: Path, numbers: Mapping[int, str]) -> Iterator[TracedRow]:
        """Rows of a parquet file, which counts as a whole."""
        digests = {of.digest for of in self.stage.inputs() if of.path.resolve() == file.resolve()}
        same = file.is_file() and Digests().of(file) in digests
        for number in numbers or (0,):
            place = f"{file}, row {number}"
            fault = f"{file} is not there any more, or not what it was"
            yield TracedRow("", place, plain=True) if same else _broken(place, OTHER_FILE, fault)


def _file(stage: StageFolder, place: str) -> Path | None:
    """Where the file of a place "FILE, line" is now; None of a dataset."""
    path = Path(place.rpartition(", ")[0])
    return stage.moved(path) if path.suffix in (JSONL, ".parquet") else None


def _broken(place: str, kind: str, what: str) -> TracedRow:
    return TracedRow("", place, faults=[TraceFault(kind, place, what)])


def _count(tally: TraceCounts, tracer: Tracer, roots: Sequence[TracedRow]) -> None:
    tally.unread = tracer.unread_imports
    if num := len(tracer.journals.damaged):
        first = tracer.journals.damaged[0]
        tally.notes.append(f"{num} lines of journals are no entries, the first one {first}: damaged or changed")
    told = defaultdict[str, str](str)
    for root in roots:
        tally.rows += 1
        line = list(tracer.line(root))
        if faults := [fault for one in line for fault in one.faults]:
            tally.num_broken += 1
            tally.faults.update({fault.kind for fault in faults})
            if len(tally.broken) < SHOWN:
                tally.broken.append((root.place, [str(fault) for fault in faults]))
            continue
        starts = {claim.start for one in line for claim in one.claims}
        for start in starts:
            told[start] = told[start] or tracer.checkpoints.of(start).told()
        tally.checkpoints.update(told[start] for start in starts)
        tally.sampled += bool(starts)
        tally.imported += not starts
        decisions = {one.review for one in line}
        tally.edited += "edited" in decisions
        tally.accepted += "accepted" in decisions and "edited" not in decisions
        tally.rewritten += any(one.rewritten for one in line)
