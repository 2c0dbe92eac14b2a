"""Which rows of a mixture are kept, and in which order: of what the first pass knows of them, without their texts.

Every row has one outcome, the first of these that is true of it:

    rejected       people rejected it
    undecided      it was to be decided on, and was not
    held_out       it asks a question of the held-out side, which no stage trains on
    control_token  a turn of it spells a token that steers conversations (`data.special_tokens`)
    contaminated   it shares words with an evaluation
    double         an earlier row says the same
    enough         its question has as many other answers as are wanted
    not_drawn      its table has more rows than it is to give
    kept

Draws and the order follow from the seed and a row's own sha256, so that a row more moves no other one.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from r1mega.errors import DataError
from r1mega.recipe.mixture import MakeMixture, MixedData
from r1mega.stages.mixture_reading import REVIEWED, Rows

OUTCOMES = (
    "kept",
    "rejected",
    "undecided",
    "held_out",
    "control_token",
    "contaminated",
    "double",
    "enough",
    "not_drawn",
)
TOLD = {
    "rejected": "were rejected by people", "undecided": "were not decided on",
    "held_out": "ask a question of the held-out side", "control_token": "spell a token that steers conversations",
    "contaminated": "share words with an evaluation",
    "double": "say what an earlier row says", "enough": "are one answer too many to their question",
    "not_drawn": "were not drawn",
}  # fmt: skip
"""What is said of rows that are left out, for people."""

Places = NDArray[np.int64]
Outcomes = NDArray[np.uint8]
"""[rows]: a place in `OUTCOMES` each."""


def choose(config: MakeMixture, rows: Rows) -> tuple[Outcomes, Places]:
    """The outcome of every row; and the places of the rows that are kept, in the set's order.

    Raises:
        DataError: a table has fewer rows than it is to give; nothing is left.
    """
    outcomes = np.zeros(len(rows), np.uint8)
    outcomes[rows["contaminated"]] = OUTCOMES.index("contaminated")
    outcomes[rows["control"]] = OUTCOMES.index("control_token")
    outcomes[rows["held_out"]] = OUTCOMES.index("held_out")
    for number, name in enumerate(REVIEWED):
        if name:
            outcomes[rows["left_out"] == number] = OUTCOMES.index(name)
    left = np.flatnonzero(outcomes == 0)
    first = np.unique(rows["pair"][left], return_index=True)[1]
    outcomes[np.delete(left, first)] = OUTCOMES.index("double")
    if config.max_per_question:
        left = np.flatnonzero(outcomes == 0)
        outcomes[left[_past(rows[left], config.max_per_question)]] = OUTCOMES.index("enough")
    left = np.flatnonzero(outcomes == 0)
    if not len(left):
        raise DataError(f"data: no row is left of {len(rows):,} ({told(counts(outcomes))})")
    of_table = [left[rows["table"][left] == i] for i in range(len(config.data))]
    by_table = [counts(outcomes[rows["table"] == i]) for i in range(len(config.data))]
    for places, num in zip(of_table, wanted(config.data, by_table), strict=True):
        drawn = np.argsort(rows["draw"][places], kind="stable")
        outcomes[places[drawn[num:]]] = OUTCOMES.index("not_drawn")
    kept = np.flatnonzero(outcomes == 0)
    return outcomes, kept[np.argsort(rows["order"][kept], kind="stable")]


def counts(outcomes: Outcomes) -> dict[str, int]:
    """How many rows had each outcome; all of them are in it."""
    found = np.bincount(outcomes, minlength=len(OUTCOMES)).tolist()
    return dict(zip(OUTCOMES, found, strict=True))


def told(found: Mapping[str, int]) -> str:
    """The rows that are left out, for people."""
    return ", ".join(f"{found[name]:,} {words}" for name, words in TOLD.items() if found.get(name)) or "none left out"


def wanted(tables: Sequence[MixedData], by_table: Sequence[Mapping[str, int]]) -> list[int]:
    """How many rows each table gives.

    Args:
        by_table: the rows of each by outcome, before any is drawn.

    Raises:
        DataError: it has fewer.
    """
    has = [found["kept"] for found in by_table]
    shares = [None if table.share is None else Fraction(str(table.share)) for table in tables]
    whole = sum((share for share in shares if share is not None), Fraction(0))
    if whole == 1:
        size = min(num / share for num, share in zip(has, shares, strict=True) if share is not None)
    else:
        rest = (n if t.num is None else t.num for n, t, s in zip(has, tables, shares, strict=True) if s is None)
        size = sum(rest) / (1 - whole)
    asked: list[int] = []
    for i, (table, share) in enumerate(zip(tables, shares, strict=True)):
        num = has[i] if table.num is None else table.num
        num = num if share is None else round(size * share)
        if num > has[i] or (not num and share is not None):
            of_set = f" ({table.share:g} of a set of {int(size):,})" if share is not None else ""
            raise DataError(
                f"data.{i}.{'num' if share is None else 'share'}: {num:,} rows are asked for{of_set}, and of the "
                f"{sum(by_table[i].values()):,} that were read {has[i]:,} are left ({told(by_table[i])}): ask for "
                "others, or add files"
            )
        asked.append(num)
    return asked


def _past(rows: Rows, most: int) -> Places:
    """Places of rows that are one too many among those of their question."""
    order = np.lexsort((rows["pick"], rows["question"]))
    question = rows["question"][order]
    begins = np.flatnonzero(np.r_[True, question[1:] != question[:-1]])
    lengths = np.diff(np.r_[begins, len(order)])
    rank = np.arange(len(order)) - np.repeat(begins, lengths)
    return order[rank >= most]
