"""Rows of JSONL and parquet files, or of a dataset by its name, each checked as it is read: for whatever a row says.

Fields that are not looked at are passed over, said once, and not read where the format allows. pyarrow and datasets
take seconds to import and are, where they are met, by the reader that needs them.
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from r1mega.data import lines
from r1mega.data.tables import fetched, load_dataset, parquet_file
from r1mega.errors import DataError

log = logging.getLogger(__name__)

JSONL, PARQUET = ".jsonl", ".parquet"

Row = TypeVar("Row")


@dataclass(frozen=True)
class RowForm(Generic[Row]):
    """What rows of one kind have."""

    what: str
    """They are, in the plural, for messages: "conversations"."""
    fields: Collection[str]
    """All that is looked at in a row."""
    read: Callable[[Any, str], Row]
    """Of a row's value and where it stands, "FILE, line N". Raises DataError that names the place and the fault."""
    needs: Callable[[Collection[str]], str]
    """Of a table's columns: which it must have, in words, where it lacks some; "" where it has them."""


class CheckedRows(Generic[Row]):
    """Files and a dataset to read rows from; iterate over it as often as needed.

    Raises (from every method):
        DataError: a file that is missing, unreadable or of another kind, a dataset that cannot be had, or a malformed
            row, by file and line.
    """

    def __init__(
        self, form: RowForm[Row], files: Sequence[Path], dataset: str, split: str, dataset_config: str = ""
    ) -> None:
        """Nothing is opened yet.

        Args:
            form: of the rows.
            files: *.jsonl and *.parquet.
            dataset: what `datasets.load_dataset` knows: a name on the hub or in its cache, a folder; or "".
            split: of the dataset.
            dataset_config: which of the dataset's configs, by name; "": it has one, or names its default.
        """
        self._form = form
        self._files, self._name, self._split, self._config = tuple(files), dataset, split, dataset_config
        self._passed_over: set[str] = set()

    def __iter__(self) -> Iterator[Row]:
        """Every row of the files in their order, then of the dataset."""
        for file in self._files:
            self._known(file)
            yield from self._read_jsonl(file) if file.suffix == JSONL else self._read_parquet(file)
        if self._name:
            of = ", ".join(filter(None, [self._config, self._split]))
            where = f"{self._name} ({of})"
            rows = self._dataset.select_columns(self._columns(self._dataset.column_names, where))
            for number, row in enumerate(fetched(rows, where, self._form.what), 1):
                yield self._form.read(row, f"{where}, row {number}")

    def __len__(self) -> int:
        """How many there are; from what the files say of themselves, or by reading their lines once."""
        return self._length

    @functools.cached_property
    def _length(self) -> int:
        counts = [
            self._count_jsonl(file) if self._known(file) == JSONL else self._count_parquet(file)
            for file in self._files
        ]
        return sum(counts) + (len(self._dataset) if self._name else 0)

    def mark(self) -> list[Any]:
        """What changes when the rows do: sizes and times of the files, the dataset's fingerprint; JSON."""
        stats: list[Any] = []
        for file in self._files:
            self._known(file)
            try:
                stat = file.stat()
            except OSError as error:
                raise DataError(f"cannot read {self._form.what} from {file}: {error.strerror}") from error
            stats.append((str(file), stat.st_size, stat.st_mtime_ns))
        dataset = [self._name, self._config, self._split, self._dataset._fingerprint] if self._name else []
        return [stats, *dataset]

    @functools.cached_property
    def _dataset(self) -> Any:
        return load_dataset(self._name, self._config, self._split, "dataset_config", "data.files")

    def _read_jsonl(self, file: Path) -> Iterator[Row]:
        for row, where in lines.rows(file, self._form.what):
            if isinstance(row, Mapping):
                self._say_what_is_passed_over(row, str(file))
            yield self._form.read(row, where)

    def _read_parquet(self, file: Path) -> Iterator[Row]:
        with parquet_file(file, self._form.what) as table:
            columns = self._columns(table.schema_arrow.names, str(file))
            batches = table.iter_batches(batch_size=256, columns=columns)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(fetched(rows, str(file), self._form.what), 1):
                yield self._form.read(row, f"{file}, row {number}")

    def _columns(self, names: Sequence[str], where: str) -> list[str]:
        """Those to be read: another one, an image say, may take long or what is not installed."""
        found = [name for name in self._form.fields if name in names]
        if needed := self._form.needs(found):
            raise DataError(f"{where}: needs {needed}; its columns are {', '.join(map(repr, names)) or 'none'}")
        self._say_what_is_passed_over(names, where)
        return found

    def _say_what_is_passed_over(self, names: Iterable[str], where: str) -> None:
        if more := [name for name in names if name not in self._form.fields and name not in self._passed_over]:
            self._passed_over.update(more)
            log.info("%s: fields that are passed over: %s", where, ", ".join(map(repr, more)))

    def _known(self, file: Path) -> str:
        if file.suffix not in (JSONL, PARQUET):
            raise DataError(f"{file}: {self._form.what} are read from *{JSONL} and *{PARQUET} files")
        return file.suffix

    def _count_jsonl(self, file: Path) -> int:
        try:
            with file.open("rb") as lines:
                return sum(1 for line in lines if line.strip())
        except OSError as error:
            raise DataError(f"cannot read {self._form.what} from {file}: {error}") from error

    def _count_parquet(self, file: Path) -> int:
        with parquet_file(file, self._form.what) as table:
            return table.metadata.num_rows
