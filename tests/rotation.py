"""Long series run in part: some rows always, and a share of the others that rotates with the commit.

    MOMENTS = rotation.rows("kills at random moments", always=range(4), rotating=range(4, 20), take=4)

The commit's hash chooses the share, so that a run can be repeated and many commits meet all rows; without git it is
the first one. What was chosen is printed at the end of the tests. `make test-soak` sets R1MEGA_SOAK and runs all.
"""

import functools
import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

Row = TypeVar("Row")

chosen: dict[str, str] = {}
"""What was chosen for each series, in words, for the summary."""


def rows(series: str, *, always: Iterable[Row] = (), rotating: Iterable[Row], take: int) -> list[Row]:
    """The rows of a series that are to run now: all of `always`, then `take` of `rotating`, in their order.

    Rows that stand beside each other are in different shares, which differ in size by at most one.
    """
    fixed, others = list(always), list(rotating)
    assert 0 < take <= len(others), (series, take, len(others))
    shares = -(-len(others) // take)
    if os.environ.get("R1MEGA_SOAK"):
        share, taken = "all", others
    else:
        number = _share(commit(), series, shares)
        share, taken = f"share {number + 1} of {shares}", others[number::shares]
    chosen[series] = f"{share}: {len(fixed)} always, and {', '.join(map(str, taken))}"
    return [*fixed, *taken]


def _share(commit_hash: str, series: str, shares: int) -> int:
    if not commit_hash:
        return 0
    return int.from_bytes(hashlib.sha256(f"{series} {commit_hash}".encode()).digest()[:8]) % shares


@functools.cache
def commit() -> str:
    """The commit's hash; empty without git."""
    asked = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
