"""Questions of one's own in a file of JSON objects, one a line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from r1mega.config.section import AnchoredPath
from r1mega.data.lines import BYTE_ORDER_MARK, value_of
from r1mega.data.sources.cells import kind_of
from r1mega.data.sources.rows import Row, RowSource
from r1mega.data.sources.source import Located
from r1mega.errors import DataError


class JSONL(RowSource):
    """A file of questions."""

    kind: Literal["jsonl"] = "jsonl"
    path: AnchoredPath

    def faults(self) -> list[str]:
        folder = [f"path: {self.path} is a folder; name a JSONL file"] if self.path.is_dir() else []
        return folder + super().faults()

    def read(self, seed: int) -> list[Located]:
        """The rows; blank lines are passed over.

        Raises DataError on a missing or unreadable file and an empty one, and where rows are malformed, or have an id
        that occurs twice: lists all of them by line and column.
        """
        try:
            return self.located(self._rows(), "line")
        except OSError as error:
            raise DataError(f"cannot read questions from {self.path}: {error.strerror}") from error

    def _rows(self) -> Iterator[Row]:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if line.strip():
                    yield f"line {number}", _row(line)


def _row(line: bytes) -> Mapping[str, Any] | ValueError:
    try:
        row = value_of(line)
    except UnicodeDecodeError as error:
        return ValueError(f"byte {error.start + 1} is not UTF-8")
    except (json.JSONDecodeError, RecursionError) as error:
        return ValueError(f"not JSON: {error}")
    except ValueError as error:
        return error
    return row if isinstance(row, dict) else ValueError(f"a row is a JSON object, and this is {kind_of(row)}")
