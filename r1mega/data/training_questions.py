"""What of some sources' questions may be trained on: told apart by what they ask, held-out ones left out.

Imports no torch and no tokenizer, so that `r1mega check` reads them as `r1mega run` does.
"""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from r1mega.data.question import Question
from r1mega.data.sources.source import Located, QuestionSource
from r1mega.data.split import HELD_OUT, what_is_asked
from r1mega.errors import DataError, listed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingQuestions:
    """What may be trained on, source by source in their order."""

    title: str
    """What messages call the sources: the one, or all of them."""
    questions: list[Question]
    where: Mapping[str, str]
    """Id of a question -> where it stands, such as "own.jsonl, line 7"."""
    counts: Mapping[str, int]
    """{"read", "duplicates", "held_out"}: questions of the sources, and those that were left out; "read" alone where
    all sources are sound."""


def training_questions(
    sources: Sequence[QuestionSource],
    seed: int,
    *,
    verifiers: Collection[str],
    duplicates: Literal["error", "drop"],
    least: int = 1,
) -> TrainingQuestions:
    """All sources' questions but those of the held-out side, which no stage trains on; what is left out is said.

    Args:
        seed: of sources that make theirs.
        verifiers: names that a question may give.
        duplicates: what happens to a question that an earlier one asks already (`split.what_is_asked`): "error" lists
            all of them, "drop" keeps the first of each.
        least: how many must be left; a rollout's prompts.

    Raises:
        DataError: as the sources do; questions of an unknown verifier, asked twice, or of one id; fewer than
            `least` left.
        ConfigError: as the sources do.
    """
    several = len(sources) > 1
    title = "questions" if several else sources[0].title
    read = [
        (f"{source.title}, {place}" if several else place, question)
        for source in sources
        for place, question in source.read(seed)
    ]
    if strange := [f"{place}: {q.verifier!r}" for place, q in read if q.verifier not in verifiers]:
        some = f"{title}: {len(strange)} question(s) of a task that is unknown; known: {', '.join(verifiers)}"
        raise DataError(listed(some, strange))
    doubles = list(_doubles(read))
    if doubles and duplicates == "error":
        some = f"{title}: {len(doubles)} question(s) asked more than once"
        raise DataError(listed(f'{some}; take them out, or set duplicates = "drop"', _told(doubles)))
    again = {place for place, *_ in doubles}
    once = [(place, question) for place, question in read if place not in again]
    _refuse_common_ids(title, once)
    kept = [(place, question) for place, question in once if question.text not in HELD_OUT]
    if doubles:
        others = sum(truth != first for _, truth, _, first in doubles)
        contrary = f", {others} of them with another truth" if others else ""
        log.warning(listed(f"{title}: {len(doubles)} duplicates dropped{contrary}; the first stands", _told(doubles)))
    if held_out := len(once) - len(kept):
        log.warning("%s: %d questions are of the held-out side, which no stage trains on: left out", title, held_out)
    counts = {"read": len(read)}
    if not all(source.sound for source in sources):
        counts |= {"duplicates": len(doubles), "held_out": held_out}
    refuse_too_few(title, len(kept), counts, least)
    plain = several or sources[0].sound
    where = {q.id: place if plain else f"{title}, {place}" for place, q in kept}
    return TrainingQuestions(title, [q for _, q in kept], where, counts)


def refuse_too_few(title: str, left: int, counts: Mapping[str, int], least: int) -> None:
    """Raises DataError where fewer than `least` questions are left; says what became of the others."""
    if left < least:
        gone = [f"{num} {what.replace('_', ' ')}" for what, num in counts.items() if what != "read" and num]
        but = f" of {counts['read']} ({', '.join(gone)})" if gone else ""
        raise DataError(
            f"{title}: {left} questions{but} to train on, fewer than a rollout's rollout.num_prompts = {least}: add "
            "questions, or lower it"
        )


def _refuse_common_ids(title: str, read: Sequence[Located]) -> None:
    first: dict[str, str] = {}
    faults: list[str] = []
    for place, question in read:
        if question.id in first:
            faults.append(f"{place}: id {question.id!r} already stands in {first[question.id]}")
        first.setdefault(question.id, place)
    if faults:
        raise DataError(listed(f"{title}: {len(faults)} question(s) with the id of another one", faults))


Double = tuple[str, str, str, str]
"""Place and truth of a question that was asked before, place and truth of the one before."""


def _doubles(read: Sequence[Located]) -> Iterator[Double]:
    first: dict[str, tuple[str, str]] = {}
    for place, question in read:
        asked = what_is_asked(question.text)
        if asked in first:
            yield place, question.truth, *first[asked]
        else:
            first[asked] = place, question.truth


def _told(doubles: Sequence[Double]) -> list[str]:
    return [
        f"{place} asks what {before} asks" + (f", with truth {truth!r} for {first!r}" if truth != first else "")
        for place, truth, before, first in doubles
    ]
