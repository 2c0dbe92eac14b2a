"""What steps learn from, by name: documents of epochs, and the questions that a rollout asked (`health.Taught`)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r1mega.data.batches import Texts
from r1mega.data.epochs import Epochs
from r1mega.data.token_store import place_of
from r1mega.data.tokenizer import load_tokenizer
from r1mega.rollout.collect import GroupSource, NoGroups
from r1mega.samples import Prompt, Sample
from r1mega.trainer.mesh import Mesh

MOST_CHARS = 20_000
"""Of a text that people are shown; a longer one is cut, and the tokens say how long it was."""


class LearntDocuments:
    """Those of `Epochs`, named by their numbers. Every rank knows all of them."""

    what = "documents"

    def __init__(self, epochs: Epochs, texts: Texts, tokenizer: Path, mesh: Mesh, store: Path | None = None) -> None:
        """
        Args:
            tokenizer: the folder of the one that reads them.
            store: the folder of the tokens, where that says which rows they were made of.
        """
        self._epochs, self._texts, self._tokenizer, self._mesh, self._store = epochs, texts, tokenizer, mesh, store

    def names(self, step: int) -> list[str]:
        return [str(i) for i in self._epochs.batch(step)]

    def texts(self, step: int) -> list[dict[str, Any]]:
        """{"document", "row" where it is known, "tokens", "text"} each."""
        if not self._mesh.first:
            return []
        tokenizer, rows = load_tokenizer(self._tokenizer), list[dict[str, Any]]()
        for i in self._epochs.batch(step):
            ids = self._texts.document(i, 1.0).token_ids
            row = {"row": place} if self._store and (place := place_of(self._store, i)) else {}
            rows.append({"document": i, **row, "tokens": len(ids), "text": _decoded(tokenizer, ids)})
        return rows

    def leave_out(self, names: Sequence[str]) -> None:
        self._epochs.leave_out(int(name) for name in names)

    def pass_over(self, since: int, steps: int) -> None:
        self._epochs.pass_over(since, steps)

    def undo(self, to: int) -> None: ...


class LearntQuestions:
    """Those whose answers a mini-batch has, named by their ids. Other answers to them, which the same rollout has in
    later mini-batches, are still learnt from; the question is not asked again.
    """

    what = "questions"

    def __init__(
        self,
        asked: Sequence[Prompt],
        source: GroupSource | NoGroups,
        tokenizer: Path,
        mesh: Mesh,
        learning: Callable[[], Sequence[Sample]],
        *,
        each: int,
    ) -> None:
        """
        Args:
            asked: on rank 0, all that may be asked.
            learning: this rank's share of what the step learns from.
            each: mini-batches, and so steps, of a rollout.
        """
        self._asked, self._source, self._tokenizer, self._mesh, self._each = asked, source, tokenizer, mesh, each
        self._learning = learning

    def names(self, step: int) -> list[str]:
        prompts = {tuple(s.prompt_ids) for s in self._learning()}
        found = {ids for of in self._mesh.gather_over_data(prompts) for ids in of}
        return [prompt.id for prompt in self._asked if tuple(prompt.token_ids) in found]

    def texts(self, step: int) -> list[dict[str, Any]]:
        """{"question", its id, "asked", "answer", "tokens", "advantage"} of each answer."""
        mine = [(tuple(s.prompt_ids), s.completion_ids, s.adv) for s in self._learning()]
        everyones = [one for of in self._mesh.gather_over_data(mine) for one in of]
        if not self._mesh.first:
            return []
        tokenizer = load_tokenizer(self._tokenizer)
        by_tokens = {tuple(prompt.token_ids): prompt for prompt in self._asked}
        rows: list[dict[str, Any]] = []
        for ids, answer, advantage in everyones:
            prompt = by_tokens.get(ids)
            told = {"question": prompt.id} if prompt else {}
            told |= {"asked": prompt.question if prompt else _decoded(tokenizer, ids)}
            told |= {"answer": _decoded(tokenizer, answer), "tokens": len(answer), "advantage": advantage}
            rows.append(told)
        return rows

    def leave_out(self, names: Sequence[str]) -> None:
        self._source.leave_out(names)

    def pass_over(self, since: int, steps: int) -> None:
        """As many prompts as the rollouts of these steps ask."""
        self._source.pass_over(since, -(-steps // self._each))

    def undo(self, to: int) -> None:
        self._source.forget_after(to)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """With special tokens, which are often what is wrong."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)[:MOST_CHARS]
