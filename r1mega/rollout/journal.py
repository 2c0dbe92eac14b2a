"""Completions on disk as they arrive: an interrupted rollout is answered again bit for bit, and at no cost.

One file a weight version, `version_N.jsonl`, one line a request. A line is in the kernel's hands when `add`
returns, so it survives a killed process; `sync` makes it survive the machine. What a process was writing when
it died is a torn last line: it is dropped on reading and cut off before the next line is written.
"""

import fcntl
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from r1mega.errors import CheckpointError, RunDirError
from r1mega.rollout.engine import Engine, OnAnswer, Request
from r1mega.rollout.segment import Key, Segment
from r1mega.runtime import files
from r1mega.samples import Completion, FinishReason


class Journal:
    """The answered requests of a run; of two entries with one key the later counts."""

    def __init__(self, folder: Path) -> None:
        """Open or create; held by one process at a time.

        Raises:
            RunDirError: another process has it open, or the folder cannot be written.
        """
        self.folder = folder
        try:
            files.make_folder(folder)
            self._lock = (folder / ".lock").open("w")
        except OSError as error:
            raise RunDirError(f"{folder}: cannot be written as a journal: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunDirError(f"{folder}: another process writes this journal; wait for it or stop it") from None
        self._segments: dict[int, Segment] = {}
        self._pruned_file = folder / "pruned.json"

    def get(self, key: Key) -> tuple[Completion, ...] | None:
        """The n completions journalled under a key, equal in every bit to those added; None where there are none.

        Raises:
            CheckpointError: a line that is not the last one of its file cannot be read.
        """
        segment = self._segment(key.weight_version)
        return _completions(key, segment.read(key)) if key in segment.index else None

    def add(self, key: Key, completions: tuple[Completion, ...]) -> None:
        """Write an entry of n completions; it survives the death of this process from here on."""
        if len(completions) != key.n:
            raise ValueError(f"{len(completions)} completions for {key}")
        answers = [
            {"ids": c.token_ids, "logp": c.logp, "finish": c.finish_reason, "text": c.text} for c in completions
        ]
        # repr of a float, which json uses, reads back as the same float.
        line = json.dumps({**key._asdict(), "answers": answers}, allow_nan=False)
        for version, segment in self._segments.items():
            if version != key.weight_version and segment.is_open:  # or a long run keeps a file open for every version
                segment.sync()
                segment.close()
        self._segment(key.weight_version).append(key, line.encode() + b"\n")

    def sync(self) -> None:
        """Make what was added survive the machine."""
        for segment in self._segments.values():
            segment.sync()
        files.sync(self.folder)

    def prune(self, before_version: int) -> None:
        """Remove the entries of older weights; no checkpoint that is kept may need them."""
        if before_version <= self._pruned_before():
            return
        files.write_json(self._pruned_file, {"before_version": before_version})
        for version in self._versions():
            if version < before_version:
                if (segment := self._segments.pop(version, None)) is not None:
                    segment.close()
                self._path(version).unlink()

    def newest_version(self) -> int:
        """The newest weight version that something is journalled of; -1 in an empty journal."""
        return max(self._versions(), default=-1)

    def state(self) -> dict[str, Any]:
        """How much is journalled, for a checkpoint: {"entries": {version: number}}."""
        return {"entries": {str(v): len(self._segment(v).index) for v in self._versions()}}

    def check(self, state: Mapping[str, Any]) -> None:
        """Hold the journal against the `state` that a checkpoint carries.

        Raises:
            CheckpointError: it lacks entries that the checkpoint counted and `prune` did not remove.
        """
        pruned_before = self._pruned_before()
        for text, counted in state["entries"].items():
            version = int(text)
            if version >= pruned_before and (found := len(self._segment(version).index)) < counted:
                raise CheckpointError(
                    f"{self._path(version)}: holds {found} answered requests of weights {text}, but the "
                    f"checkpoint counts {counted}: restore {self.folder} from where the run was, or start anew"
                )

    def close(self) -> None:
        """Sync and let another process have it."""
        self.sync()
        for segment in self._segments.values():
            segment.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, version: int) -> Path:
        return self.folder / f"version_{version}.jsonl"

    def _segment(self, version: int) -> Segment:
        """The file of a version, read at its first use."""
        if version not in self._segments:
            self._segments[version] = Segment(self._path(version), version)
        return self._segments[version]

    def _versions(self) -> list[int]:
        names = (path.stem.removeprefix("version_") for path in self.folder.glob("version_*.jsonl"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _pruned_before(self) -> int:
        return json.loads(self._pruned_file.read_text())["before_version"] if self._pruned_file.exists() else 0


def _completions(key: Key, row: dict[str, Any]) -> tuple[Completion, ...]:
    return tuple(
        Completion(
            prompt_id=key.prompt,
            index=index,
            token_ids=tuple(answer["ids"]),
            logp=tuple(answer["logp"]),
            text=answer["text"],
            finish_reason=FinishReason(answer["finish"]),
            weight_version=key.weight_version,
            seed=key.seed + index,
        )
        for index, answer in enumerate(row["answers"])
    )


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
        pairs = zip(before.token_ids, again.token_ids, strict=False)
        self.answers += 1
        self.identical_answers += before.token_ids == again.token_ids
        self.tokens += len(before.token_ids)
        self.equal_tokens += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


class JournalledEngine:
    """An `Engine` over another one and a journal."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        *,
        replay: Literal["journal", "live"],
        before_sampling: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Nothing is asked of either yet.

        Args:
            replay: "journal" asks the inner engine only for what the journal lacks; "live" asks it for everything
                and compares. New answers replace journalled ones.
            before_sampling: called with the weight version before the inner engine is asked for anything: the
                place to push the weights, since a rollout that is all in the journal needs no server.
        """
        self._engine, self._journal, self._replay = engine, journal, replay
        self._before_sampling = before_sampling
        self.replayed = self.sampled = 0
        """Requests of the last `generate` that the journal answered, and that the inner engine did."""
        self.comparison = Comparison()
        """Of the last `generate`; all 0 where nothing was sampled again."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`; answers from the journal arrive before all others."""
        keys = [
            Key.of(request, temperature=temperature, max_new_tokens=max_new_tokens, version=version)
            for request in requests
        ]
        on_answer = on_answer or (lambda *_: None)
        self.comparison = Comparison()
        answers: dict[int, tuple[Completion, ...]] = {}
        if self._replay == "journal":
            for index, key in enumerate(keys):
                if (known := self._journal.get(key)) is not None:
                    answers[index] = known
                    on_answer(index, known)
        missing = [index for index in range(len(requests)) if index not in answers]
        self.replayed, self.sampled = len(answers), len(missing)
        if not missing:
            return [answers[index] for index in range(len(requests))]

        def record(position: int, completions: tuple[Completion, ...]) -> None:
            index = missing[position]
            if self._replay == "live" and (before := self._journal.get(keys[index])) is not None:
                for pair in zip(before, completions, strict=True):
                    self.comparison.add(*pair)
            self._journal.add(keys[index], completions)
            answers[index] = completions
            on_answer(index, completions)

        self._before_sampling(version)
        try:
            self._engine.generate(
                [requests[index] for index in missing],
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                version=version,
                on_answer=record,
            )
        finally:
            self._journal.sync()
        return [answers[index] for index in range(len(requests))]
