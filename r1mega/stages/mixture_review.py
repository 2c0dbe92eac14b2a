"""What people decided on rows, applied to a mixture while it is read for the first time (`data.review`)."""

import json
from collections.abc import Callable
from typing import Any

from r1mega.data.mixed_rows import PROVENANCE, MixedRow
from r1mega.data.review import Review, read_queue
from r1mega.data.signed_rows import Row
from r1mega.data.turns import conversation
from r1mega.recipe.mixture import MakeMixture

Remade = Callable[[MixedRow, bytes], None]
"""Takes a row in another's place, and its line."""


class Reviewing:
    """Decisions of queues, asked for the rows that these are about."""

    def __init__(self, config: MakeMixture) -> None:
        """Raises DataError where a queue cannot be read, or lines of it cannot be used."""
        queue = read_queue(*config.review)
        self.about = frozenset(line.sha256 for line in queue)
        """The rows, by their sha256."""
        self._review = Review(queue, config.undecided) if config.review else None

    def decide(self, row: Row, where: str, remade: Remade) -> str:
        """Why a row is left out: "rejected" or "undecided"; "" where it stays, or another stands in its place."""
        assert self._review is not None
        made = self._review.of(row, where)
        if made is None:
            left_out = self._review.rejected[-1:]  # none where the line has a fault, which `finish` tells
            return left_out[0][PROVENANCE]["review"]["decision"] if left_out else "rejected"
        if made is not row:
            line = json.dumps(made, ensure_ascii=False).encode() + b"\n"
            remade(MixedRow(made, conversation(made, where), unchanged=True), line)
        return ""

    def finish(self) -> tuple[list[Row], dict[str, Any]]:
        """After the last row: those left out, and what to say of the decisions.

        Raises:
            DataError: lines and rows do not fit each other; every fault with its place.
        """
        if self._review is None:
            return [], {}
        self._review.finish()
        reviewers = {name: dict(of) for name, of in sorted(self._review.reviewers.items())}
        return self._review.rejected, {"decisions": dict(self._review.counts), "reviewers": reviewers}
