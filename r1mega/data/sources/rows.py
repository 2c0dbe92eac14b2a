"""Questions of one's own that stand in rows: which column is what, whatever kind of file or dataset has them."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from r1mega.config.load import nearest
from r1mega.data.question import NO_VERIFIER, Question, question_id
from r1mega.data.sources import cells
from r1mega.data.sources.source import NOTHING, Located, QuestionSource
from r1mega.errors import DataError, listed

TESTED = ("code", "code_fix")
"""Verifiers whose truth is the tests of an entry."""
Row = tuple[str, Mapping[str, Any] | ValueError]
"""Where it stands ("line 7"), and the row, or why it cannot be read."""


class RowSource(QuestionSource):
    """Settings of sources that read rows. Columns that none of them names are passed over."""

    question: str = "question"
    """Column with what is asked: text."""
    truth: str = "truth"
    """Column with the right answer: text, or a number, which is taken in decimal digits ("3" for 3.0). Questions of
    code need none: their tests stand in the entry; nor do those of verifier = "none"."""
    verifier: str = ""
    """Who tells right answers from wrong: a name of `rewards.verifiers`, such as math, choice, or a family of
    reasoning-gym; "none" where no rule does, as of general prompts, which reward models judge."""
    verifier_column: str = ""
    """Instead of it, the column that names each question's verifier."""
    id: str = ""
    """Column with a name of each question's own (text or a whole number); unset, or null in a row: by its text."""
    entry: str = ""
    """Column with an object, or the JSON of one, that the verifier is given, as reasoning-gym's have one; may be
    null."""
    options: str = ""
    """Column with a list of options, or null where a question has none. They are put behind the question, lettered A,
    B, ...; a truth that is the text of one becomes its letter."""

    def faults(self) -> list[str]:
        faults: list[str] = []
        if not self.verifier and not self.verifier_column:
            faults.append(
                'verifier: missing: name who judges the answers (verifier = "math"), or the column that does'
            )
        if self.verifier and self.verifier_column:
            faults.append("verifier_column: verifier names one for all rows; leave one of the two out")
        named = Counter(column for column in self._named().values() if column)
        for column in (c for c, times in named.items() if times > 1):
            settings = " and ".join(name for name, value in self._named().items() if value == column)
            faults.append(f"{settings.split(' ')[0]}: {settings} both name the column {column!r}")
        return faults

    def verifiers(self) -> Collection[str]:
        return [self.verifier] if self.verifier else []

    def columns_of(self, names: Collection[str]) -> list[str]:
        """Those of a table's columns that are read: another one, an image say, may take long.

        Raises DataError where it has none of a name that a setting gives.
        """
        wanted = [column for column in self._named().values() if column]
        if self._may_lack_truth(self.verifier) and self.truth not in names:
            wanted.remove(self.truth)
        if absent := [f"{column!r}{nearest(column, names)}" for column in wanted if column not in names]:
            has = ", ".join(map(repr, names)) or "none"
            raise DataError(f"{self.title}: no column {', no column '.join(absent)}: its columns are {has}")
        return wanted

    def _may_lack_truth(self, verifier: str) -> bool:
        """Whether a row need not have one; that a setting names its column asks for one where there is no rule."""
        return verifier in TESTED or (verifier == NO_VERIFIER and "truth" not in self.model_fields_set)

    def _named(self) -> dict[str, str]:
        names = ("question", "truth", "verifier_column", "id", "entry", "options")
        return {name: getattr(self, name) for name in names}

    def located(self, rows: Iterable[Row], one: str) -> list[Located]:
        """The questions of some rows.

        Args:
            one: what a row is called where it stands, "line" or "row", for messages.

        Raises:
            DataError: rows that are wrong, all of them; none at all.
        """
        found: list[Located] = []
        faults: list[tuple[str, str]] = []
        first: dict[str, str] = {}
        total, absent = 0, {column for column in (self.id, self.entry, self.options) if column}
        for place, row in rows:
            total += 1
            absent.difference_update(row if isinstance(row, Mapping) else ())
            try:
                question = self._question(row)
            except ValueError as error:
                faults.append((place, str(error)))
                continue
            by_text = question.id == question_id(question.verifier, question.text)
            if question.id in first and not by_text:
                faults.append((place, f"id {question.id!r} already stands in {first[question.id]}"))
            first.setdefault(question.id, place)
            found.append((place, question))
        if faults:
            raise DataError("\n".join(self._told(faults, total, one)))
        if not found:
            raise DataError(f"{self.title} holds no questions")
        if absent:
            raise DataError(
                f"{self.title}: no {one} has a column {min(absent)!r}: leave the setting out that names it"
            )
        return found

    def _told(self, faults: list[tuple[str, str]], total: int, one: str) -> Iterator[str]:
        """One line where there is one fault, or where all rows have the same."""
        place, said = faults[0]
        if len(faults) == total > 1 and len({text for _, text in faults}) == 1:
            yield f"{self.title}: {said} (all {total} {one}s, the first {place})"
        elif len(faults) == 1:
            yield f"{self.title}, {place}: {said}"
        else:
            lines = [f"{place}: {said}" for place, said in faults]
            yield listed(f"{self.title}: {len(faults)} {one}s are wrong", lines)

    def _question(self, row: Mapping[str, Any] | ValueError) -> Question:
        """Raises ValueError with what is wrong with the row."""
        if isinstance(row, ValueError):
            raise row
        text = cells.text(row, self.question)
        verifier = self.verifier or cells.text(row, self.verifier_column)
        without = self._may_lack_truth(verifier) and row.get(self.truth) is None
        truth = "" if without else cells.text_or_number(row, self.truth)
        entry = self._entry(row)
        if self.options and row.get(self.options) is not None:
            options = cells.options(row, self.options)
            lettered = [f"{letter}. {option}" for letter, option in zip(cells.LETTERS, options, strict=False)]
            text = "\n".join([text, *lettered])
            other = cells.LETTERS[: len(options)].find(truth) if len(truth) == 1 else -1
            if truth in options and other >= 0 and options[other] != truth:
                raise ValueError(
                    f"truth {truth!r} is the text of one option and the letter of another: which is meant?"
                )
            if options.count(truth) == 1:
                truth = cells.LETTERS[options.index(truth)]
            entry = {**entry, "options": options}
        id = cells.text_or_number(row, self.id) if self.id and row.get(self.id) is not None else ""
        return self.asked(verifier, text, truth, entry, id=id)

    def _entry(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        value = row.get(self.entry) if self.entry else None
        if isinstance(value, str):  # as tables keep what has no one shape
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"column {self.entry!r} is text, and not JSON: {error}") from None
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"column {self.entry!r} should be an object, and is {cells.kind_of(value)}")
        return value or NOTHING
