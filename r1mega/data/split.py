"""Which questions are held out: decided by a hash of the question's text, so that every stage agrees.

A question is held out in every stage of every run or in none; no list has to travel from stage to stage, and a
question asked again elsewhere falls on the same side.
"""

import hashlib

ONE_IN = 8
"""One question in eight is held out."""


class Split:
    """One side of the split; `text in split` says whether the question belongs to it."""

    def __init__(self, *, held_out: bool) -> None:
        self.held_out = held_out

    def __contains__(self, text: object) -> bool:
        digest = hashlib.sha256(str(text).encode()).digest()
        return (int.from_bytes(digest[:8], "big") % ONE_IN == 0) == self.held_out


TRAINED_ON = Split(held_out=False)
HELD_OUT = Split(held_out=True)
