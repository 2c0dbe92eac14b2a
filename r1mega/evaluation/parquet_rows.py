"""Parquet files for decontamination: their rows, a row group at a time, and what is left of them in the same form.

A row group is a block: no column is read but those that are looked at, and rows count from 1 over the whole file.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from r1mega.data.tables import fetched, parquet_file
from r1mega.errors import DataError
from r1mega.evaluation.row_texts import NAMED

SUFFIX = ".parquet"
BATCH_ROWS = 2048
"""Rows that are Python objects at one time."""


def is_parquet(file: Path) -> bool:
    return file.suffix == SUFFIX


def groups(file: Path) -> list[tuple[int, int]]:
    """Rows of each row group, and its bytes in the file. Raises DataError on a file that cannot be read."""
    with parquet_file(file, "texts") as table:
        metadata = table.metadata
        found = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return [(g.num_rows, sum(g.column(i).total_compressed_size for i in range(g.num_columns))) for g in found]


def rows(file: Path, fields: Sequence[str], group: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a row group, or of all, with those columns alone that are looked at.

    Raises:
        DataError: the file cannot be read, or has none of the columns.
    """
    with parquet_file(file, "texts") as table:
        names = table.schema_arrow.names
        columns = [name for name in (fields or NAMED) if name in names]
        if not columns:
            looked_for = ", ".join(fields or NAMED)
            raise DataError(
                f"{file}: no column to look at: it has {', '.join(names) or 'none'}; looked for: {looked_for}"
            )
        wanted = range(table.metadata.num_row_groups) if group is None else [group]
        batches = table.iter_batches(batch_size=BATCH_ROWS, row_groups=list(wanted), columns=columns)
        for batch in fetched(batches, str(file), "texts"):
            yield from batch.to_pylist()


class Filtered:
    """A parquet file in the making: the rows of another one without some, under its schema."""

    def __init__(self, source: Path, target: Path) -> None:
        """Raises DataError where `source` cannot be read."""
        from pyarrow import parquet

        self._source = source
        with parquet_file(source, "texts") as table:
            metadata, schema = table.metadata, table.schema_arrow
        of_column = metadata.row_group(0).column(0).compression if metadata.num_row_groups else "SNAPPY"
        compression = "NONE" if of_column == "UNCOMPRESSED" else of_column
        self._writer = parquet.ParquetWriter(target, schema, compression=compression)

    def write(self, group: int, without: Collection[int]) -> None:
        """A row group without the rows of these places in it. Raises DataError."""
        with parquet_file(self._source, "texts") as table:
            kept = table.read_row_group(group)
        if without:
            kept = kept.filter([place not in without for place in range(kept.num_rows)])
        if kept.num_rows:
            self._writer.write_table(kept)

    def close(self) -> None:
        self._writer.close()
