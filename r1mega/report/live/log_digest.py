"""The logs of a run in a few lines: which warnings and errors, how often, and when last."""

import datetime
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from r1mega.report.live.tail import last_bytes

JOBS = ".jobs"
"""What a launched chain's jobs write."""
READ_BYTES = 512 * 2**10
"""The end of each log that is read."""
MAX_LOGS = 64
"""The newest ones; a run of a thousand ranks has a thousand."""
MAX_CHARS = 300
"""Of a line that is shown."""

ERROR = re.compile(
    r"\b(?:ERROR|CRITICAL|FATAL)\b|^Traceback \(most recent|\bout of memory\b|No space left on device"
    r"|\b(?:oom-kill|Segmentation fault|core dumped)\b|^(?:[\w.]+\.)?\w+(?:Error|Exception)\b(?::|$)"
)
PREFIX = re.compile(r"^(?:\([^()]{1,60}\) )?(?:ERROR|WARNING) [-\d]+ [:\d]+ \[[^\]]{1,80}\] ?")
"""What vLLM writes before each line, those of a traceback as well."""
TRACEBACK = "Traceback (most recent call last)"
WARNING = re.compile(r"\bWARN(?:ING)?\b|\w+Warning:")
OF_LIBRARIES = re.compile(r"\b(?:Deprecation|PendingDeprecation|Future)Warning:")
"""What libraries tell their users' programmers."""
OF_EVERY_SERVER = re.compile(
    r"\b(?:RotaryEmbedding|ParallelLMHead): Failed to load weights"  # tables, and tied heads: none is sent
    r"|SECURITY WARNING: Development endpoints are enabled"  # how weights come
    r"|Enforce eager set|Inductor compilation was disabled|Triton is not installed|Model Runner V2 requires Triton"
    r"|libtcmalloc is not found|libiomp5?\S* is not found"
    r"|The global random seed is set to|does not officially support disabling chunked prefill|Reset SSM cache type"
    r"|The chat template requires system-first ordering"
    r"|\[shutdown\] Process manager: force killing|resource_tracker: There appear to be"  # at its end
)
"""What vLLM warns of in every run as it is started here, and nobody has to mend. That weights arrive is proven."""
NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
FULL_TIME = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)")
SHORT_TIME = re.compile(r"\b(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)\b")
"""As vLLM writes it: no year."""


@dataclass(frozen=True)
class LogLine:
    """Lines of a log that say the same but for numbers."""

    file: Path
    level: str
    """alert or warning, as of events."""
    count: int
    last: float
    """When the last one was, seconds since 1970: by itself where it says so, otherwise when its file was written."""
    text: str
    """The last one."""


@dataclass(frozen=True)
class LogFile:
    """A log that is there."""

    path: Path
    size: int
    written: float


def logs_of(stage: Path) -> list[LogFile]:
    """The logs of a stage or a chain that have anything in them, the newest first."""
    found: list[LogFile] = []
    for folder in (stage / "logs", stage / ".server", stage / JOBS):
        try:
            files = [path for path in folder.iterdir() if path.suffix in (".log", ".out") and path.is_file()]
        except OSError:
            continue
        for path in files:
            try:
                status = path.stat()
            except OSError:
                continue  # gone since it was listed
            if status.st_size:
                found.append(LogFile(path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda log: -log.written)


def digest_logs(logs: Iterable[LogFile]) -> list[LogLine]:
    """What the ends of the newest logs warn of, errors first, then the newest first."""
    found = [line for log in list(logs)[:MAX_LOGS] for line in _digest_file(log)]
    return sorted(found, key=lambda line: (line.level != "alert", -line.last))


@functools.lru_cache(maxsize=2 * MAX_LOGS)
def _digest_file(log: LogFile) -> tuple[LogLine, ...]:
    try:
        data = last_bytes(log.path, READ_BYTES)
    except OSError:
        return ()
    return tuple(digest_text(data.decode(errors="replace"), log))


def digest_text(text: str, log: LogFile) -> list[LogLine]:
    """Of the end of one log. Lines that differ by numbers alone count as one; a traceback is its last line."""
    seen: dict[str, LogLine] = {}
    for line in _without_frames(text.splitlines()):
        level = "alert" if ERROR.search(line) else "warning" if WARNING.search(line) else None
        if level is None or OF_LIBRARIES.search(line) or OF_EVERY_SERVER.search(line):
            continue
        said = PREFIX.sub("", line).strip() or line.strip()
        what = NUMBERS.sub("#", said)
        before = seen.get(what)
        when = time_of(line, log.written) or log.written
        seen[what] = LogLine(log.path, level, (before.count if before else 0) + 1, when, said)
    return list(seen.values())


def _without_frames(lines: Iterable[str]) -> Iterator[str]:
    """The beginnings of lines; of a traceback the line that names the exception, the first without an indent."""
    within = False
    for line in lines:
        head = line[:MAX_CHARS]
        said = PREFIX.sub("", head)
        if said.startswith(TRACEBACK):
            within = True
        elif within and (said[:1].isspace() or not said):
            continue
        else:
            within = False
            yield head


def time_of(line: str, written: float) -> float | None:
    """When a line was written, by itself; its clock is taken for this machine's. None where it does not say.

    Args:
        written: when its file was written last, which tells the year.
    """
    try:
        if full := FULL_TIME.search(line):
            year, month, day, hour, minute, second = map(int, full.groups())
        elif short := SHORT_TIME.search(line):
            month, day, hour, minute, second = map(int, short.groups())
            year = datetime.datetime.fromtimestamp(written).year
            if datetime.datetime(year, month, day, hour, minute, second).timestamp() > written + 86400:
                year -= 1  # written before the turn of the year
        else:
            return None
        return datetime.datetime(year, month, day, hour, minute, second).timestamp()
    except ValueError:
        return None  # digits that are no date
