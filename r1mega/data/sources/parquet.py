"""Questions of one's own in a parquet file."""

from collections.abc import Iterator
from typing import Any, Literal

from r1mega.config.section import AnchoredPath
from r1mega.data.sources.rows import Row, RowSource
from r1mega.data.sources.source import Located
from r1mega.data.tables import fetched, parquet_file

AT_ONCE = 1024
"""Rows that are decoded together."""


class Parquet(RowSource):
    """A table of questions. The columns that are named alone are read."""

    kind: Literal["parquet"] = "parquet"
    path: AnchoredPath

    def faults(self) -> list[str]:
        folder = [f"path: {self.path} is a folder; name a parquet file"] if self.path.is_dir() else []
        return folder + super().faults()

    def read(self, seed: int) -> list[Located]:
        """The rows, counted from 1. Raises DataError as `JSONL.read` does."""
        with parquet_file(self.path, "questions") as table:
            return self.located(self._rows(table, self.columns_of(table.schema_arrow.names)), "row")

    def _rows(self, table: Any, columns: list[str]) -> Iterator[Row]:
        number = 0
        batches = table.iter_batches(batch_size=AT_ONCE, columns=columns)
        for batch in fetched(batches, str(self.path), "questions"):
            for row in _decoded(batch):
                number += 1
                yield f"row {number}", row


def _decoded(batch: Any) -> Iterator[dict[str, Any] | ValueError]:
    """A batch's rows, one by one where one of them holds what is no text."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield ValueError(f"holds what is not UTF-8: {error}")
