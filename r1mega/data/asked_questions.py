"""What of some sources' questions is asked: to train on, told apart by what they ask, held-out ones left out; and in
an evaluation, whole.

Imports no torch and no tokenizer, so that `r1mega check` reads them as `r1mega run` does.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from r1mega.config.load import nearest
from r1mega.data.question import Question
from r1mega.data.sources.registry import labels
from r1mega.data.sources.source import Located, QuestionSource
from r1mega.data.split import HELD_OUT, what_is_asked
from r1mega.errors import DataError, listed

log = logging.getLogger(__name__)

Counts = dict[str, int]
"""{"read", and of them "duplicates", "held_out", "in_evaluation", "not_drawn", "too_long"}: a source's questions, and
those that were left out."""
COUNTED = ("read", "duplicates", "held_out", "in_evaluation", "not_drawn", "too_long")


@dataclass(frozen=True)
class AskedQuestions:
    """What is asked, source by source in their order."""

    questions: list[Question]
    where: Mapping[str, str]
    """Id of a question -> where it stands, such as "own.jsonl, line 7"."""
    counts: Mapping[str, Counts]
    """Label of a source -> what became of its questions."""
    sources: Mapping[str, QuestionSource]
    """By their labels."""

    @property
    def doubtful(self) -> list[Question]:
        """Those of sources whose truths have to be asked whether they can be right."""
        return [q for q in self.questions if not self.sources[q.source].sound]


def training_questions(
    sources: Sequence[QuestionSource],
    seed: int,
    *,
    verifiers: Collection[str],
    evaluation: AskedQuestions | None = None,
    least: int = 1,
) -> AskedQuestions:
    """All sources' questions but those of the held-out side, which no stage trains on; what is left out is said.

    Args:
        seed: of sources that make theirs, and of draws.
        verifiers: names that a question may give.
        evaluation: whose questions are not trained on.
        least: how many must be left; a rollout's prompts.

    Raises:
        DataError: as the sources do; questions of an unknown verifier, asked twice or in the evaluation where their
            source does not drop these, or of one id; fewer than `least` left.
        ConfigError: as the sources do.
    """
    by_label = dict(zip(labels(sources), sources, strict=True))
    read = list(_read(by_label, seed, verifiers, held_out=False))
    counts = _counts(by_label, read)
    once = _without_doubles(by_label, read, counts)
    _refuse_common_ids(once)
    kept: list[Located] = []
    for place, question in once:
        if question.text in HELD_OUT:
            counts[question.source]["held_out"] += 1
        else:
            kept.append((place, question))
    if held_out := len(once) - len(kept):
        log.warning("%d questions are of the held-out side, which no stage trains on: left out", held_out)
    if evaluation is not None:
        kept = _not_evaluated(by_label, kept, evaluation, counts)
    kept = _drawn(by_label, kept, seed, counts)
    asked = AskedQuestions([q for _, q in kept], {q.id: place for place, q in kept}, counts, by_label)
    refuse_too_few(len(kept), asked, least)
    return asked


def evaluation_questions(
    sources: Sequence[QuestionSource], seed: int, *, verifiers: Collection[str]
) -> AskedQuestions:
    """The questions of an evaluation: those of files whole, made ones of the held-out side.

    Raises: as `training_questions`, which has its arguments.
    """
    by_label = dict(zip(labels(sources), sources, strict=True))
    read = list(_read(by_label, seed, verifiers, held_out=True))
    counts = _counts(by_label, read)
    once = _without_doubles(by_label, read, counts)
    _refuse_common_ids(once)
    kept = _drawn(by_label, once, seed, counts)
    return AskedQuestions([q for _, q in kept], {q.id: place for place, q in kept}, counts, by_label)


def refuse_too_few(left: int, asked: AskedQuestions, least: int) -> None:
    """Raises DataError where fewer than `least` questions are left; says what became of the others."""
    if left < least:
        total = {what: sum(some[what] for some in asked.counts.values()) for what in COUNTED}
        titles = ", ".join(source.title for source in asked.sources.values())
        gone = [f"{num} {what.replace('_', ' ')}" for what, num in total.items() if what != "read" and num]
        but = f" of {total['read']} ({', '.join(gone)})" if gone else ""
        if least == 1:
            raise DataError(f"{titles}: no question{but} is left to be asked: add some")
        raise DataError(
            f"{titles}: {left} questions{but} to train on, fewer than a rollout's rollout.num_prompts = {least}: "
            "add some, or lower it"
        )


# ---- one after the other -----------------------------------------------------------------------------------------


def _read(
    sources: Mapping[str, QuestionSource], seed: int, verifiers: Collection[str], *, held_out: bool
) -> Iterator[Located]:
    for label, source in sources.items():
        located = source.read_held_out(seed) if held_out else source.read(seed)
        strange = [f"{place}: {q.verifier!r}" for place, q in located if q.verifier not in verifiers]
        if strange:
            close = next((nearest(q.verifier, verifiers) for _, q in located if q.verifier not in verifiers), "")
            some = f"{source.title}: {len(strange)} question(s) of a verifier that there is not{close}"
            raise DataError(listed(some, strange))
        for place, question in located:
            yield f"{source.title}, {place}", dataclasses.replace(question, source=label)


def _counts(sources: Mapping[str, QuestionSource], read: Sequence[Located]) -> dict[str, Counts]:
    counts: dict[str, Counts] = {label: dict[str, int].fromkeys(COUNTED, 0) for label in sources}
    for _, question in read:
        counts[question.source]["read"] += 1
    return counts


def _without_doubles(
    sources: Mapping[str, QuestionSource], read: Sequence[Located], counts: Mapping[str, Counts]
) -> list[Located]:
    """The first of each that asks the same. Raises DataError where a later one's source does not drop it."""
    first: dict[str, Located] = {}
    kept: list[Located] = []
    doubles: list[tuple[Located, Located]] = []
    for one in read:
        before = first.setdefault(what_is_asked(one[1].text), one)
        if before is one:
            kept.append(one)
        else:
            doubles.append((one, before))
            counts[one[1].source]["duplicates"] += 1
    _refuse_unless_dropped(sources, doubles, "asked more than once", "asks what {} asks")
    if doubles:
        others = sum(one.truth != before.truth for (_, one), (_, before) in doubles)
        contrary = f", {others} of them with another truth" if others else ""
        told = _told(doubles, "asks what {} asks")
        log.warning(listed(f"{len(doubles)} duplicates dropped{contrary}; the first stands", told))
    return kept


def _not_evaluated(
    sources: Mapping[str, QuestionSource],
    read: Sequence[Located],
    evaluation: AskedQuestions,
    counts: Mapping[str, Counts],
) -> list[Located]:
    """Those that the evaluation does not ask. Raises DataError where a source does not drop the others."""
    evaluated = {what_is_asked(q.text): (evaluation.where[q.id], q) for q in evaluation.questions}
    common = [(one, evaluated[key]) for one in read if (key := what_is_asked(one[1].text)) in evaluated]
    said = "asks what the evaluation asks in {}"
    _refuse_unless_dropped(sources, common, "asked in the evaluation too", said)
    for (_, question), _ in common:
        counts[question.source]["in_evaluation"] += 1
    if common:
        log.warning(listed(f"{len(common)} question(s) dropped that the evaluation asks", _told(common, said)))
    gone = {question.id for (_, question), _ in common}
    return [(place, question) for place, question in read if question.id not in gone]


def _refuse_unless_dropped(
    sources: Mapping[str, QuestionSource], doubles: Sequence[tuple[Located, Located]], what: str, said: str
) -> None:
    wrong = [double for double in doubles if sources[double[0][1].source].duplicates == "error"]
    if wrong:
        titles = ", ".join(dict.fromkeys(sources[one.source].title for (_, one), _ in wrong))
        some = f'{titles}: {len(wrong)} question(s) {what}; take them out, or set duplicates = "drop" in that table'
        raise DataError(listed(some, _told(wrong, said)))


def _told(doubles: Sequence[tuple[Located, Located]], said: str) -> list[str]:
    def other(one: Question, first: Question) -> str:
        return f", with truth {one.truth!r} for {first.truth!r}" if one.truth != first.truth else ""

    return [f"{place} {said.format(before)}{other(one, first)}" for (place, one), (before, first) in doubles]


def _refuse_common_ids(read: Sequence[Located]) -> None:
    first: dict[str, str] = {}
    faults: list[str] = []
    for place, question in read:
        if question.id in first:
            faults.append(f"{place}: id {question.id!r} already stands in {first[question.id]}")
        first.setdefault(question.id, place)
    if faults:
        raise DataError(listed(f"{len(faults)} question(s) with the id of another one", faults))


def _drawn(
    sources: Mapping[str, QuestionSource], read: Sequence[Located], seed: int, counts: Mapping[str, Counts]
) -> list[Located]:
    """At most `num` of each source, those of the least hashes of seed and question; in their order."""
    kept: set[str] = set()
    for label, source in sources.items():
        mine = [question for _, question in read if question.source == label]
        if source.num is not None and len(mine) > source.num:
            mine = sorted(mine, key=lambda q: hashlib.sha256(f"{seed}/{what_is_asked(q.text)}".encode()).digest())
            counts[label]["not_drawn"] = len(mine) - source.num
            log.info("%s: %d of %d questions drawn", source.title, source.num, len(mine))
            mine = mine[: source.num]
        kept.update(question.id for question in mine)
    return [(place, question) for place, question in read if question.id in kept]
