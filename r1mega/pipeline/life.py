"""One row's life: what it says, what became of it before and since, who answered, and who learnt it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from r1mega.data.signed_rows import SHA256, Row, digest_of
from r1mega.errors import DataError, RunDirError
from r1mega.pipeline.checkpoints import Checkpoints
from r1mega.pipeline.rollouts import Claim
from r1mega.pipeline.row_files import WRITTEN, RowFiles, RowPlace, Trained, lines_of, own_digest
from r1mega.pipeline.run_folders import StageFolder, stage_folders
from r1mega.pipeline.trace import CHANGED, TracedRow, TraceFault, Tracer
from r1mega.runtime.digests import Digests

PREFIX = re.compile("[0-9a-f]{8,64}")
AT_LINE = re.compile(r"(.+):([1-9][0-9]*)", re.DOTALL)
OUTCOMES = ("read", "not taken", "taken", "learnt")
"""What became of a row where a run was given it: read where the run did not write down which rows it used; taken into
what the run wrote; learnt by a run that trained on it."""
Life = dict[str, Any]


def trace(name: str, folder: Path) -> Life:
    """The life of a row, as JSON.

    Args:
        name: its sha256 or the first 8 digits or more, or FILE:LINE, or RUN_DIR:LINE of the rows that a stage wrote
            or trained on.
        folder: has the run directories of the chain.

    Raises:
        RunDirError: the folder or a run directory cannot be read.
        DataError: no row, or more than one, has this name; or it cannot be read.
    """
    at = AT_LINE.fullmatch(name)
    stages = stage_folders(folder.resolve())
    files = RowFiles(stages, [Path(at[1])] if at and Path(at[1]).is_file() else [])
    try:
        if at is not None:
            place = _at_line(Path(at[1]), int(at[2]), files)
        elif PREFIX.fullmatch(name):
            place = _by_prefix(name, files, folder)
        else:
            raise DataError(f"{name}: neither a row's sha256, 8 hexadecimal digits or more of it, nor FILE:LINE")
        return _Chain(stages, files, Tracer(stages, files, Checkpoints(stages, Digests()))).life(place)
    finally:
        files.close()


def _at_line(path: Path, line: int, files: RowFiles) -> RowPlace:
    """The row at a line of a file; of a stage's run directory, of what it wrote or trained on."""
    if path.is_dir():
        if (trained := Trained.read(StageFolder.read(path))) is not None:
            if line > len(trained.rows):
                raise DataError(f"{path}: trained on {len(trained.rows)} rows, and has no row {line}")
            digest, place, number = trained.rows[line - 1]
            if (found := files.named(digest)) is not None:
                return found
            path, line = StageFolder.read(path).moved(Path(place.rpartition(", ")[0])), number
        else:
            written = [path / name for name in WRITTEN if (path / name).is_file()]
            if not written:
                raise RunDirError(f"{path}: neither wrote rows ({', '.join(WRITTEN)}) nor trained on any")
            path = written[0]
    if not path.is_file():
        raise DataError(f"{path}: no such file of rows")
    for place, _ in lines_of(path):
        if place.line == line:
            return place
    raise DataError(f"{path}: has no line {line}")


def _by_prefix(prefix: str, files: RowFiles, folder: Path) -> RowPlace:
    found: dict[str, list[RowPlace]] = {}
    for file in files.files:
        for place, line in lines_of(file):
            if prefix.encode() in line and (own := own_digest(line)).startswith(prefix):
                found.setdefault(own, []).append(place)
    if len(found) > 1:
        raise DataError(
            f"{prefix}: the beginning of {len(found)} rows: {', '.join(sorted(found)[:5])}; give more of it"
        )
    if not found:
        num = len(files.files)
        raise DataError(
            f"{prefix}: no row under {folder} has this sha256 ({num} files of rows); --in names another folder"
        )
    (places,) = found.values()
    whole = (place for place in places if digest_of(row := files.row(place)) == row.get(SHA256))
    return next(whole, places[0])


def _object(part: Any) -> Mapping[str, Any]:
    """A part of a row's provenance; nothing where it is of another form, which `trace` says of the row."""
    return cast(Mapping[str, Any], part) if isinstance(part, Mapping) else {}


def _listed(part: Any) -> Sequence[Any]:
    """The same of a list."""
    return cast(Sequence[Any], part) if isinstance(part, list) else ()


@dataclass
class _Chain:
    """Where a row is looked for."""

    stages: Sequence[StageFolder]
    files: RowFiles
    tracer: Tracer

    def life(self, place: RowPlace) -> Life:
        row = self.files.row(place)
        traced = self.tracer.add(row, str(place), signed=place.file in self.files.signed)
        self.tracer.resolve(keep=True)
        also, became, changed = self._mentions(row, place)
        faults = [*self.tracer.faults(traced), *changed]
        return {
            **self._told(traced, row),
            "also_in": [str(other) for other in also],
            "became": became,
            "read_by": sorted(
                self._read_by(row, [place.file, *(other.file for other in also)], became),
                key=lambda of: OUTCOMES.index(of["outcome"]),
            ),
            "resolves": not faults,
            "faults": [{"kind": fault.kind, "row": fault.place, "what": fault.what} for fault in faults],
            "damaged_journal_lines": self.tracer.journals.damaged,
        }

    def _told(self, traced: TracedRow, row: Row) -> Life:
        """A row and what it was made of."""
        of = _object(row.get("provenance"))
        names = list(_object(of.get("answers"))) or [""]
        told: Life = {"sha256": traced.digest, "place": traced.place, "intact": not traced.changed}
        told |= {name: row[name] for name in ("messages", "prompt", "chosen", "rejected", "response") if name in row}
        told |= {name: row[name] for name in ("gap", "safe", "votes") if name in row}
        told |= {name: x for name, x in of.items() if name not in ("answer", "answers", "policy", "sampling", "from")}
        told["asked_as"] = _object(of.get("policy")).get("asked_as", "")
        told["rollouts"] = [self._rollout(*one) for one in zip(names, traced.claims, strict=False)]
        starts = dict.fromkeys(claim.start for claim in traced.claims)
        told["checkpoints"] = [self._checkpoint(start) for start in starts]
        told["from"] = [self._told(parent, self._row(parent)) for parent in self.tracer.parents(traced)]
        return told

    def _row(self, traced: TracedRow) -> Row:
        place = self.files.named(traced.digest)
        assert place is not None, "it was read there"
        return self.files.row(place)

    def _checkpoint(self, start: str) -> Life:
        return self.tracer.checkpoints.of(start).to_json()

    @staticmethod
    def _rollout(name: str, claim: Claim) -> Life:
        told: Life = {"answer": claim.index, "seed": claim.seed, "sampling": claim.sampling.to_json()}
        told |= {"of": name} if name else {}
        if (entry := claim.found) is None:
            return {**told, "fault": claim.fault}
        return {
            **told,
            "journal": str(entry.file),
            "line": entry.line,
            "asked_at_once": entry.key.n,
            "prompt_tokens_digest": entry.key.prompt,
            "policy": entry.key.policy,
            "weight_version": entry.key.weight_version,
            "text_sha256": claim.text_sha256,
        }

    def _mentions(self, row: Row, place: RowPlace) -> tuple[list[RowPlace], list[Life], list[TraceFault]]:
        """Other places of a row; rows that were made of it; and copies of it that were changed."""
        own = str(row.get(SHA256, ""))
        also, became, changed = list[RowPlace](), list[Life](), list[TraceFault]()
        for other in self.files.places(own) if own else ():
            if (other.file, other.line) == (place.file.resolve(), place.line):
                continue
            found = self.files.row(other)
            if found.get(SHA256) == own:
                also.append(other)
                if (now := digest_of(found)) != own:
                    changed.append(TraceFault(CHANGED, str(other), f"it was {own}, and its content is {now}"))
            elif own in _listed(_object(found.get("provenance")).get("from")):
                became.append({"sha256": found.get(SHA256), "place": str(other)})
        return also, became, changed

    def _read_by(self, row: Row, files: Sequence[Path], became: Sequence[Life]) -> Iterator[Life]:
        """Runs that were given the row, and what became of it there (`OUTCOMES`)."""
        names, own = (digest_of(row), row.get(SHA256)), {file.resolve() for file in files}
        has = {file.parent for file in own} | {Path(made["place"]).parent for made in became}
        for stage in self.stages:
            trained, writes = Trained.read(stage), any((stage.path / name).is_file() for name in WRITTEN)
            learnt = trained is not None and any(known in names for known, _, _ in trained.rows)
            if learnt or any(of.path.resolve() in own for of in stage.inputs()):
                left = "not taken" if trained is not None or writes else "read"
                outcome = "learnt" if learnt else "taken" if stage.path.resolve() in has else left
                yield {"run_dir": str(stage.path), "stage": stage.kind, "outcome": outcome}
