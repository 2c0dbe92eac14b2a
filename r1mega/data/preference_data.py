"""Preferences tokenised once into folders of a run directory, and what became of those that teach nothing.

A pair is one document of two texts, the chosen one first; a labelled answer one of one text. Every text is what a
reward model reads (`preference_text`). Rows that could only mislead are left out and counted, by these names:

empty         an answer is blank
no_summary    an answer ends before its thought does, or nothing stands behind it, and the summary is what counts
equal         of a pair both answers are read alike
doubles       the same as an earlier row
too_long      a text has more than max_tokens tokens; nothing is truncated

contradicted counts rows that an earlier one contradicts (the same two answers the other way round, the same answer
with the other label); they are learnt, as judges that disagree.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from r1mega.buffers import Int32s
from r1mega.data.preference_text import Asked, readings
from r1mega.data.preferences import Example, Reading, source
from r1mega.data.row_source import CheckedRows
from r1mega.data.scope import scoped
from r1mega.data.settings import Conversations, Objective
from r1mega.data.token_store import Stored
from r1mega.data.tokenised import AT_ONCE, tokenizer_key
from r1mega.errors import DataError

LEFT_OUT = ("empty", "no_summary", "equal", "doubles", "too_long")
"""What is counted of rows that are left out."""
LABELS = ("safe", "unsafe")


class Sifted:
    """Rows as they are kept: what is read of their answers, and counts of those that are left out."""

    def __init__(self, reading: Reading, counts: dict[str, int]) -> None:
        """counts: "rows", `LEFT_OUT` and "contradicted" are counted in it; of labelled answers also those that are
        kept, by their `LABELS`."""
        self._reading, self._counts = reading, counts
        labels = LABELS if reading.objective == "pointwise" else ()
        counts |= dict.fromkeys(("rows", *LEFT_OUT, "contradicted", *labels), 0)
        self._seen: dict[bytes, bytes] = {}

    def read(self, row: Example) -> tuple[str, ...] | None:
        """The texts of a row's answers, the part that the scope names; None where it is left out.

        Raises DataError where a pair has no gap and needs one.
        """
        self._counts["rows"] += 1
        if self._reading.gaps and row.value is None:
            raise DataError(
                f'{row.where}: has no gap, which margin = "gap" needs of every pair: give `gap`, or `chosen_score` '
                'and `rejected_score`, or set margin = "none"'
            )
        said: list[str] = []
        for answer in row.answers:
            text = scoped(answer, self._reading.scope, self._reading.marks)
            if text is None:
                return self._left_out("no_summary" if answer.strip() else "empty")
            said.append(text)
        if len(said) == 2 and said[0] == said[1]:
            return self._left_out("equal")
        asked = json.dumps([[m["role"], m["content"]] for m in row.asked])
        # Both ways round have one key, and differ in what is said of it.
        key, verdict = _digest([asked, *sorted(said)]), _digest(said if len(said) == 2 else [str(row.value)])
        before = self._seen.setdefault(key, verdict)
        if before is not verdict:
            if before == verdict:
                return self._left_out("doubles")
            self._counts["contradicted"] += 1
        return tuple(said)

    def fits(self, row: Example, texts: Sequence[Int32s]) -> bool:
        """Whether a row is kept by its answers' tokens, so far as they are known.

        Raises DataError where one has more than `data.max_tokens` and that is an error.
        """
        data, longest = self._reading.data, max(map(len, texts), default=0)
        if len(texts) == 2 and texts[0].tolist() == texts[1].tolist():  # a template may strip what tells them apart
            self._left_out("equal")
            return False
        if longest <= data.max_tokens:
            if self._reading.objective == "pointwise":
                self._counts[LABELS[not row.value]] += 1
            return True
        if data.too_long == "error":
            raise DataError(
                f"{row.where}: an answer is read in {longest} tokens, more than data.max_tokens = {data.max_tokens}: "
                'raise it, or set data.too_long to "drop"'
            )
        self._left_out("too_long")
        return False

    def _left_out(self, why: str) -> None:
        self._counts[why] += 1


class Preferences:
    """How preferences become tokens (`tokenised.Tokenising`)."""

    def __init__(self, reading: Reading, tokenizer: Any) -> None:
        """tokenizer: with the chat template in which the reward model reads."""
        self._reading, self._tokenizer = reading, tokenizer
        self.what = kind(reading.objective)

    def source(self, of: Conversations) -> CheckedRows[Example]:
        return source_of(self._reading, of)

    def key(self) -> list[Any]:
        reading = self._reading
        data = [reading.data.max_tokens, reading.data.too_long, reading.data.label]
        how = [reading.objective, reading.scope, reading.marks, reading.gaps]
        return [*data, *how, self._tokenizer.chat_template, *tokenizer_key(self._tokenizer)]

    def documents(self, rows: Iterator[Example], counts: dict[str, int]) -> Iterator[Stored]:
        """Counts as `Sifted`."""
        valued = self._reading.gaps or self._reading.objective == "pointwise"
        for row, texts in read(rows, Sifted(self._reading, counts), self._tokenizer):
            ends = list(itertools.accumulate(len(text) for text in texts))
            spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
            ids = [i for text in texts for i in text.tolist()]
            yield Stored(ids, spans, row.value if valued else None, (row.digest, row.where))

    def refuse_nothing_left(self, what: str, counts: Mapping[str, int], *, validates: bool) -> None:
        refuse_nothing_left(what, counts, validates=validates)


def kind(objective: Objective) -> str:
    """What a row is, for messages."""
    return "pair" if objective == "pairwise" else "answer"


def source_of(reading: Reading, of: Conversations) -> CheckedRows[Example]:
    """What a table of settings names, to be read as `reading` says."""
    return source(reading.objective, reading.data.label, of.files, of.dataset, of.split, of.dataset_config)


def read(
    rows: Iterator[Example], sifted: Sifted, tokenizer: Any | None
) -> Iterator[tuple[Example, Sequence[Int32s]]]:
    """The rows that are kept, and the tokens of each of their answers; of no answer where there is no tokenizer.

    Raises:
        DataError: as `Sifted.read` and `preference_text.readings`; a text is too long, and that is an error.
    """
    while some := list(islice(rows, AT_ONCE)):
        kept = [(row, said) for row in some if (said := sifted.read(row)) is not None]
        asked = [(row.asked, text) for row, said in kept for text in said] if tokenizer is not None else []
        found = iter(_read(tokenizer, asked, [row.where for row, said in kept for _ in said]))
        for row, said in kept:
            texts = [next(found) for _ in said] if tokenizer is not None else []
            if sifted.fits(row, texts):
                yield row, texts


def _read(tokenizer: Any, asked: Sequence[tuple[Asked, str]], where: Sequence[str]) -> list[Int32s]:
    """`readings`; the error of a template that takes no such turns, a system turn say, names the first such row."""
    try:
        return readings(tokenizer, asked) if asked else []
    except DataError as error:
        for one, place in zip(asked, where, strict=False):
            try:
                readings(tokenizer, [one])
            except DataError as of_one:
                raise DataError(f"{place}: {of_one}") from error
        raise


def refuse_nothing_left(what: str, counts: Mapping[str, int], *, validates: bool) -> None:
    """Raises DataError where no row is left to learn from or to validate on.

    Args:
        what: "train" or "validation".
        counts: of `Sifted`.
        validates: whether some rows are validated on.
    """
    if kept := counts["rows"] - sum(counts[name] for name in LEFT_OUT):
        if what == "train" and kept in (counts.get("safe"), counts.get("unsafe")):
            raise DataError(
                f"train: all {kept} answers are {'safe' if counts['safe'] else 'unsafe'}: a model that tells the "
                "safe from the unsafe learns from both (data.label names the column that says which is which)"
            )
        return
    if not counts["rows"] and (asked := counts.get("held_out", 0)):
        raise DataError(
            f"{what}: all {asked} rows ask questions of the held-out side, which no stage trains on: name files that "
            "have others"
        )
    told = ", ".join(f"{counts[name]} {name}" for name in LEFT_OUT if counts[name])
    raise DataError(
        f"{what}: nothing to learn from or to validate on; of the {counts['rows']} rows that were read all are left "
        f"out: {told}"
        if counts["rows"]
        else f"{what}: no rows in data.files or data.dataset"
        f"{', or none on its side of validation.share' if validates else ''}: name some that have them"
    )


def _digest(parts: Sequence[str]) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:16]
