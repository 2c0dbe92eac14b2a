"""A unified diff applied to one file, exactly: every line it quotes has to be there."""

import re

_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@.*")
MAX_HUNKS = 1_000


class PatchFault(Exception):
    """A text that is no patch of this file."""


def apply(patch: str, text: str) -> str:
    """`text` with all hunks of `patch` applied.

    A hunk stands where its header says, or else at the one place behind the previous hunk where its lines are; the
    counts of its header may be wrong, as those that models write often are, its lines may not.

    Raises PatchFault: no hunk, several files, lines that are not there, or that are there more than once.
    """
    lines = text.splitlines()
    hunks = _hunks(patch)
    result: list[str] = []
    done = 0
    for start, old, new in hunks:
        place = _place(lines, old, start, done)
        result += lines[done:place] + new
        done = place + len(old)
    return "\n".join([*result, *lines[done:]]) + "\n"


def _hunks(patch: str) -> list[tuple[int, list[str], list[str]]]:
    """Line number (from 0), old lines and new lines of each hunk."""
    found: list[tuple[int, list[str], list[str]]] = []
    files = 0
    lines = patch.splitlines()
    for index, line in enumerate(lines):
        if line.startswith("--- ") and index + 1 < len(lines) and lines[index + 1].startswith("+++ "):
            files += 1
            if files > 1:
                raise PatchFault("a patch of several files")
            continue
        if line.startswith("+++ ") and index and lines[index - 1].startswith("--- "):
            continue
        header = _HUNK.fullmatch(line)
        if header is not None:
            if len(found) == MAX_HUNKS:
                raise PatchFault(f"more than {MAX_HUNKS:,} hunks")
            found.append((max(0, int(header[1]) - (header[2] != "0")), [], []))
        elif not found or line.startswith("\\"):
            continue  # what stands before the first hunk; "\ No newline at end of file"
        elif line.startswith("-"):
            found[-1][1].append(line[1:])
        elif line.startswith("+"):
            found[-1][2].append(line[1:])
        elif line.startswith(" ") or not line:
            found[-1][1].append(line[1:])
            found[-1][2].append(line[1:])
        else:
            raise PatchFault(f"a line of the patch begins with none of ' ', '-', '+': {line[:60]!r}")
    if not any(old != new for _, old, new in found):
        raise PatchFault("no hunk that changes anything")
    return found


def _place(lines: list[str], old: list[str], start: int, done: int) -> int:
    if done <= start <= len(lines) and lines[start : start + len(old)] == old:
        return start
    if not old:
        raise PatchFault("a hunk that quotes no line, at a line that is not there")
    places = [
        i for i in range(done, len(lines) - len(old) + 1) if lines[i] == old[0] and lines[i : i + len(old)] == old
    ]
    if len(places) != 1:
        raise PatchFault(
            f"the lines of a hunk stand {'nowhere' if not places else 'in several places'} in the program"
        )
    return places[0]
