"""An engine over another one and a journal: what was asked before is answered from disk, everything else anew."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from r1mega.rollout.engine import Engine, OnAnswer, Request, SamplingParams
from r1mega.rollout.journal import Journal
from r1mega.rollout.segment import Key
from r1mega.runtime.provenance import Lineage
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion

log = logging.getLogger(__name__)

Replay = Literal["journal", "live"]


@dataclass
class Comparison:
    """Answers that were sampled again, against those that the journal held for the same requests."""

    answers: int = 0
    identical_answers: int = 0
    """Of them, those with the same tokens from first to last."""
    tokens: int = 0
    """Of the journalled answers."""
    equal_tokens: int = 0
    """Of them, those before the first difference."""

    def add(self, before: Completion, again: Completion) -> None:
        shorter = min(len(before.token_ids), len(again.token_ids))
        old, new = (np.asarray(ids)[:shorter] for ids in (before.token_ids, again.token_ids))
        self.answers += 1
        self.identical_answers += before.token_ids == again.token_ids
        self.tokens += len(before.token_ids)
        self.equal_tokens += int((old != new).argmax()) if (old != new).any() else shorter


def open_journal(run_dir: RunDir, replay: Replay, *, folder: Path | None = None, start: str = "") -> Journal:
    """The run's journal, or that of one of several models that it asks; close it.

    What is in it of a run that began alike and did the same, this one repeats; any other answers in it are never
    used, whatever they are called. Whoever asks for everything anew needs nothing of an older form.

    Args:
        folder: where it stands, if not in the run directory itself.
        start: digest of the weights that answer, if they are not those that the run began as.

    Raises: as `Journal`.
    """
    journal = Journal((folder or run_dir.path) / "journal", set_older_aside=replay == "live")

    def own() -> Lineage:
        return dataclasses.replace(run_dir.lineage, start=start) if start else run_dir.lineage

    found, mine = journal.lineage, own()
    if found is not None and not mine.repeats(found):
        num = sum(journal.state()["entries"].values())
        kinds = (("model", found.start, mine.start), ("config", found.recipe, mine.recipe))
        other = " and ".join(what for what, theirs, ours in kinds if theirs != ours)
        log.warning(
            "%s: holds %d answers of a run of another %s: used are those to the very same prompts of the model as "
            "it was before training, if any; all else is sampled anew", journal.folder, num, other,
        )  # fmt: skip
    elif found is not None:
        run_dir.repeat(found)
    journal.belong_to(own())
    return journal


class JournalledEngine:
    """An `Engine` over another one and a journal. The other is asked for what the journal lacks and for nothing else:
    a rollout that is all in the journal needs no server."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        *,
        policies: Callable[[int], tuple[str, ...]],
        replay: Replay,
    ) -> None:
        """Nothing is asked of either yet.

        Args:
            policies: weight version -> whose answers count: under the first new ones are journalled, under the others
                those of the runs that this one repeats.
            replay: "journal" asks the inner engine only for what the journal lacks; "live" asks it for everything
                and compares. New answers replace journalled ones.
        """
        self._engine, self._journal, self._policies, self._replay = engine, journal, policies, replay
        self.replayed = self.sampled = 0
        """Requests of the last `generate` that the journal answered, and that the inner engine did."""
        self.stale = 0
        """Of those that the inner engine answered: how many had a journalled answer of another prompt or other
        weights under the same seed and settings, which was not used."""
        self.comparison = Comparison()
        """Of the last `generate`; all 0 where nothing was sampled again."""
        if replay == "journal" and (num := journal.drop_what_was_not_resampled()):
            log.warning("journal: %d answers dropped: the ones before them have been sampled again and differ", num)

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`; answers from the journal arrive before all others."""
        keys, *earlier = (
            [Key.of(request, params, version=version, policy=policy) for request in requests]
            for policy in self._policies(version)
        )

        def journalled(index: int) -> tuple[Completion, ...] | None:
            tried = (self._journal.get(of[index], requests[index].prompt.id) for of in (keys, *earlier))
            return next((known for known in tried if known is not None), None)

        on_answer = on_answer or (lambda *_: None)
        self.comparison = Comparison()
        answers: dict[int, tuple[Completion, ...]] = {}
        if self._replay == "journal":
            for index in range(len(requests)):
                if (known := journalled(index)) is not None:
                    answers[index] = known
                    on_answer(index, known)
        missing = [index for index in range(len(requests)) if index not in answers]
        self.replayed, self.sampled = len(answers), len(missing)
        self.stale = sum(self._journal.holds_another(keys[i]) and journalled(i) is None for i in missing)
        if self.stale:
            log.warning(
                "step %d: %d journalled answers are of other prompts or weights than are asked now: sampled anew",
                version, self.stale,
            )  # fmt: skip
        if not missing:
            return [answers[index] for index in range(len(requests))]

        def record(position: int, completions: tuple[Completion, ...]) -> None:
            index = missing[position]
            if self._replay == "live" and (before := journalled(index)) is not None:
                for pair in zip(before, completions, strict=True):
                    self.comparison.add(*pair)
            self._journal.add(keys[index], completions)
            answers[index] = completions
            on_answer(index, completions)

        if self._replay == "journal" and (num := self._journal.drop_after(version)):
            log.warning(
                "journal: %d answers of the weights after step %d dropped: some of this step's are missing, and "
                "what is sampled now may lead to other weights", num, version,
            )  # fmt: skip
        try:
            asked = [requests[index] for index in missing]
            self._engine.generate(asked, params, version=version, on_answer=record)
        finally:
            if self.comparison.identical_answers < self.comparison.answers:
                self._journal.resampled(version)
            self._journal.sync()
        return [answers[index] for index in range(len(requests))]
