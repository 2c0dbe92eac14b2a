"""Which questions are held out: decided by a hash of what is asked, so that every stage agrees.

A question is held out in every stage of every run or in none; no list has to travel from stage to stage, and a
question asked again elsewhere, in other spaces or another Unicode form, falls on the same side.
"""

import hashlib
import re
import unicodedata

ONE_IN = 8
"""One question in eight is held out."""

INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
"""Soft hyphen, zero-width space, word joiner, byte order mark: they ask nothing."""


def what_is_asked(text: str) -> str:
    """A question's text by which it is told from others: NFC, spaces made one, invisible characters left out.

    Case and everything that is seen count. The texts that tasks make are this already.
    """
    return " ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split())


class Split:
    """One side of the split; `text in split` says whether the question belongs to it."""

    def __init__(self, *, held_out: bool) -> None:
        self.held_out = held_out

    def __contains__(self, text: object) -> bool:
        digest = hashlib.sha256(what_is_asked(str(text)).encode("utf-8", "surrogatepass")).digest()
        return (int.from_bytes(digest[:8], "big") % ONE_IN == 0) == self.held_out


TRAINED_ON = Split(held_out=False)
HELD_OUT = Split(held_out=True)
