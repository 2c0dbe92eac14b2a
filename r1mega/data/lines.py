"""Lines of a user's JSONL file, each placed by its number whatever is wrong with it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1mega.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can spell and no tokenizer takes."""


def rows(file: Path, what: str) -> Iterator[tuple[Any, str]]:
    """The JSON values of a file's lines, and where each stands, "FILE, line N"; blank lines are passed over.

    Args:
        what: the file is read for, for messages: "conversations".

    Raises:
        DataError: the file cannot be read; a line is not UTF-8 or not JSON.
    """
    try:
        with file.open("rb") as lines:  # by bytes: a decoder reads ahead, and would place a fault in its block
            for number, line in enumerate(lines, 1):
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                if line.strip():
                    where = f"{file}, line {number}"
                    yield _parsed(line, where), where
    except OSError as error:
        raise DataError(f"cannot read {what} from {file}: {error}") from error


def half_a_character(text: str) -> str | None:
    """What is wrong with text that no tokenizer takes, and where in it; None: nothing."""
    broken = HALF.search(text)
    return broken and (
        f"half a character, {broken[0]!r}, at {broken.start()}: text cut inside a surrogate pair, which no tokenizer "
        "takes; drop it"
    )


def value_of(line: bytes) -> Any:
    """The JSON value of a line.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        ValueError: it is not JSON, or an object of it gives a field twice, of which a reader would drop one.
        RecursionError: it is nested too deeply.
    """
    return json.loads(line.decode("utf-8"), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is given twice in one object: leave one out")
    return found


def _parsed(line: bytes, where: str) -> Any:
    try:
        return value_of(line)
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise DataError(
            f"{where}: byte {error.start + 1}, 0x{byte:02x}, is not UTF-8: write the file in UTF-8, as with "
            "`iconv -f LATIN1 -t UTF-8` where that is what it is in"
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
