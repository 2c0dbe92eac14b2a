"""Lines of a user's JSONL file, each placed by its number whatever is wrong with it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1mega.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACES, SPACES_AND_COMMAS = re.compile("[ \t\r\n]*"), re.compile("[ \t\r\n,]*")
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
                    yield parsed(line, where), where
    except OSError as error:
        raise DataError(f"cannot read {what} from {file}: {error}") from error


def values(file: Path, what: str) -> Iterator[tuple[Any, str]]:
    """The JSON values of a file that an editor or a spreadsheet may have written anew: one after the other or in one
    list, each over as many lines as it takes; and where each begins, "FILE, line N".

    Args:
        what: the file is read for, for messages.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or not JSON.
    """
    try:
        content = file.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise DataError(f"cannot read {what} from {file}: {error}") from error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(_not_utf8(f"{file}, line {line}", content, error.start)) from error
    decoder, number, read_to = json.JSONDecoder(object_pairs_hook=_once), 1, 0
    begin = _past(SPACES, text, 0)
    in_list = text.startswith("[", begin)
    try:
        if in_list:
            decoder.decode(text)  # so that commas need not be looked at below
        at, between = (begin + 1, SPACES_AND_COMMAS) if in_list else (0, SPACES)
        while True:
            start = _past(between, text, at)
            number, read_to = number + text.count("\n", read_to, start), start
            if start == len(text) or (in_list and text[start] == "]"):
                return
            value, at = decoder.raw_decode(text, start)
            yield value, f"{file}, line {number}"
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: not JSON: {error.msg}, at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}, line {number}: {error}") from error


def _past(between: re.Pattern[str], text: str, at: int) -> int:
    found = between.match(text, at)
    return found.end() if found else at


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


def parsed(line: bytes, where: str) -> Any:
    """The JSON value of a line that stands at `where`. Raises DataError, as `rows` does."""
    try:
        return value_of(line)
    except UnicodeDecodeError as error:
        raise DataError(_not_utf8(where, line, error.start)) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _not_utf8(where: str, content: bytes, at: int) -> str:
    return (
        f"{where}: byte {at + 1}, 0x{content[at]:02x}, is not UTF-8: write the file in UTF-8, as with "
        "`iconv -f LATIN1 -t UTF-8` where that is what it is in"
    )
