"""Decontamination: data that shares n words in a row with an evaluation is found, listed, and filtered (report 2.4).

The report's rule is 10-grams of an evaluation's questions and answers; here of the words that normalise.py leaves. An
evaluation's prompt of fewer than n words is found where a prompt of the data is the same as a whole; an answer of
fewer is not looked for, and counted.

Files are read in blocks, of whole lines or of a row group, which processes of their own search (search_files.py);
this one writes what is left, in order: JSONL byte for byte, parquet with the same schema. Memory is a few blocks and
the evaluation's sequences, whatever the data's size.
"""

import json
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from r1mega.errors import DataError
from r1mega.evaluation.overlap import Evaluations, Hit
from r1mega.evaluation.parquet_rows import Filtered, is_parquet
from r1mega.evaluation.search_files import Block, Data, Searched, read, searched
from r1mega.runtime import files
from r1mega.runtime.progress import Bar

MB = 10**6
HITS, SUMMARY = "hits.jsonl", "summary.json"
SHOWN = 20
"""Hits that a report keeps to be shown."""


@dataclass
class Report:
    """What was found in all files."""

    n: int
    too_short: int
    """Answers of the evaluation that are too short to be looked for."""
    rows: Counter[str] = field(default_factory=Counter)
    """By file."""
    hit_rows: Counter[str] = field(default_factory=Counter)
    """By file: rows that share words with an evaluation."""
    texts: int = 0
    hits: int = 0
    shown: list[Hit] = field(default_factory=list)
    """The first of them."""
    widest: Hit | None = None
    """The hit whose words most texts of the evaluation have."""

    def add(self, block: Block, found: Searched) -> None:
        """Count what a block holds."""
        self.rows[str(block.file)] += found.rows
        self.hit_rows[str(block.file)] += len(found.lines)
        self.texts += found.texts
        self.hits += len(found.hits)
        self.shown += found.hits[: SHOWN - len(self.shown)]
        for hit in found.hits:
            if self.widest is None or hit.num_against > self.widest.num_against:
                self.widest = hit

    def to_json(self) -> dict[str, Any]:
        per_file = {name: {"rows": num, "hit": self.hit_rows[name]} for name, num in self.rows.items()}
        counts = {"texts": self.texts, "hits": self.hits, "answers_too_short": self.too_short}
        return {"n": self.n, "files": per_file, **counts}


def decontaminate(data: Data, evaluations: Evaluations, out: Path | None = None) -> Report:
    """Search the data; with `out`, write the rows without a hit into it.

    Args:
        out: a folder that appears when it is complete: each file by its name with the rows that are left, hits.jsonl
            and summary.json.

    Raises:
        DataError: a file cannot be read, a line is not JSON, a row has none of the fields; `out` exists; two files
            have one name.
    """
    report = Report(evaluations.index.n, evaluations.too_short)
    if out is None:
        _search(data, evaluations, report, None)
        return report
    names = Counter([HITS, SUMMARY, *(path.name for path in data.paths)])
    if twice := [name for name, num in names.items() if num > 1]:
        raise DataError(f"{twice[0]}: two files of {out} would have this name: filter one after the other")
    if out.exists():
        raise DataError(f"{out} exists: choose a folder that does not, or remove it")

    def fill(folder: Path) -> None:
        _search(data, evaluations, report, folder)
        files.dump_json(folder / SUMMARY, report.to_json())

    files.write_folder(out, fill)
    return report


def _search(data: Data, evaluations: Evaluations, report: Report, folder: Path | None) -> None:
    num_bytes = 0
    bar = Bar("decontaminate", max(1, data.num_bytes // MB), unit="MB")
    with bar, _Output(data, folder) as output, closing(searched(data, evaluations)) as blocks:
        for block, found in blocks:
            report.add(block, found)
            output.write(block, found)
            num_bytes += block.length
            if more := num_bytes // MB - bar.done:
                bar.advance(more, note=f"{report.hit_rows.total():,} rows with hits")


class _Output:
    """The files of a folder in the making; without a folder nothing is written."""

    def __init__(self, data: Data, folder: Path | None) -> None:
        lines = [] if folder is None else [HITS, *(p.name for p in data.paths if not is_parquet(p))]
        self._files: dict[str, IO[bytes]] = {name: (Path(folder or "") / name).open("wb") for name in lines}
        tables = () if folder is None else (path for path in data.paths if is_parquet(path))
        self._tables = {path.name: Filtered(path, Path(folder or "") / path.name) for path in tables}

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, *error: object) -> None:
        for file in (*self._files.values(), *self._tables.values()):
            file.close()

    def write(self, block: Block, found: Searched) -> None:
        """The rows of a block without those of its hits, and the hits."""
        if not self._files:
            return
        rows = (json.dumps(hit.to_json(), ensure_ascii=False).encode() for hit in found.hits)
        self._files[HITS].writelines(row + b"\n" for row in rows)
        if (table := self._tables.get(block.file.name)) is not None:
            table.write(block.start, {place for place, _ in found.lines})
            return
        lines, at = read(block), 0
        for start, end in found.lines:
            self._files[block.file.name].write(lines[at:start])
            at = end
        self._files[block.file.name].write(lines[at:])
