"""Which rows of a block share n words in a row with an evaluation's prompts and answers."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r1mega.data.lines import rows
from r1mega.errors import DataError
from r1mega.evaluation import parquet_rows
from r1mega.evaluation.ngrams import Index
from r1mega.evaluation.normalise import all_words, normalise
from r1mega.evaluation.row_texts import is_prompt, texts_of


@dataclass(frozen=True)
class Place:
    """Where a text stands."""

    file: str
    line: int
    """Of a parquet file the row, counted from 1."""
    field: str

    def __str__(self) -> str:
        what = "row" if parquet_rows.is_parquet(Path(self.file)) else "line"
        return f"{self.file}, {what} {self.line}, {self.field}"


@dataclass(frozen=True)
class Hit:
    """A text that shares words with one of an evaluation."""

    place: Place
    against: Place
    """Where those words stand first in the evaluation."""
    words: str
    """The first that are shared, normalised."""
    sequences: int
    """How many sequences of n words are shared with that text; 0: it is shorter, and the same as a whole."""
    num_against: int
    """How many texts of the evaluation have the words."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Evaluations:
    """What must not be found: sequences of n words, and prompts that are shorter than that as a whole."""

    places: Sequence[Place]
    index: Index
    short_prompts: dict[str, int]
    """Words of a prompt -> the first text that is it."""
    too_short: int
    """Answers of fewer than n words, which are not looked for: 42 is no contamination."""
    boilerplate: int | None
    """A sequence that more texts of the evaluation have is no hit; None: all are."""

    @classmethod
    def read(cls, files: Sequence[Path], fields: Sequence[str], n: int, boilerplate: int | None) -> "Evaluations":
        """
        Raises:
            DataError: a file cannot be read, a line is not JSON, or a row has none of the fields; there is nothing to
                look for.
        """
        places, texts = list[Place](), list[str]()
        for file in files:
            for row, where in _rows(file, fields):
                try:
                    found = texts_of(row, fields)
                except ValueError as error:
                    raise DataError(f"{where}: {error}") from error
                line = int(where.rpartition(" ")[2])
                places += [Place(str(file), line, field) for field, _ in found]
                texts += [normalise(text) for _, text in found]
        short: dict[str, int] = {}
        too_short = 0
        for number, (place, text) in enumerate(zip(places, texts, strict=True)):
            words = all_words(text, n)
            if words and is_prompt(place.field):
                short.setdefault(words, number)
            elif words is not None:
                too_short += 1
        index = Index.of(texts, n)
        if not len(index.hashes) and not short:
            raise DataError(
                f"{', '.join(map(str, files))}: no prompt, and no answer of {n} words: nothing to look for"
            )
        return cls(places, index, short, too_short, boilerplate)

    def hits(self, places: Sequence[Place], texts: Sequence[str]) -> list[Hit]:
        """What the texts share with the evaluation, a hit for each of its texts, in the order of `places`.

        Args:
            texts: normalised.
        """
        found: dict[tuple[int, int], Hit] = {}
        for one in self.index.find(texts):
            if self.boilerplate is not None and one.num_against > self.boilerplate:
                continue
            key = one.text, one.against
            before = found.get(key)
            words, num_against = (before.words, before.num_against) if before else (one.words, one.num_against)
            num = 1 + (before.sequences if before else 0)
            found[key] = Hit(places[one.text], self.places[one.against], words, num, num_against)
        if self.short_prompts:
            for number, (place, text) in enumerate(zip(places, texts, strict=True)):
                words = all_words(text, self.index.n) if is_prompt(place.field) else None
                if words and (against := self.short_prompts.get(words)) is not None:
                    found[number, against] = Hit(place, self.places[against], words, 0, 1)
        return [found[key] for key in sorted(found)]


def _rows(file: Path, fields: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """The rows of an evaluation's file, and where each stands."""
    if not parquet_rows.is_parquet(file):
        yield from rows(file, "an evaluation's questions")
        return
    for number, row in enumerate(parquet_rows.rows(file, fields), 1):
        yield row, f"{file}, row {number}"
