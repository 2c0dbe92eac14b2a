"""Completions on disk as they arrive: an interrupted rollout is answered again bit for bit, and at no cost.

One file a weight version, `version_N.jsonl`, one line a request, and `about.json`, which says whose answers they are.
An entry is found by what was asked of which weights (`segment.Key`), never by a name alone. A line is in the kernel's
hands when `add` returns, so it survives a killed process; `sync` makes it survive the machine. What a process was
writing when it died is a torn last line: it is dropped on reading and cut off before the next line is written.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from r1mega.buffers import Float32s, Int32s
from r1mega.errors import CheckpointError, RunDirError
from r1mega.rollout.segment import Key, Segment
from r1mega.runtime import files, locks
from r1mega.runtime.provenance import Lineage
from r1mega.samples import Completion, FinishReason

log = logging.getLogger(__name__)

FORMAT = 3
"""Of entries. Those of form 1 named a prompt by its id and did not say whose weights answered; those of form 2 knew
temperature and length alone of the sampling settings."""

VERSION = re.compile(r"version_(0|[1-9][0-9]*)\.jsonl", re.ASCII)


class Journal:
    """The answered requests of a run; of two entries with one key the later counts."""

    def __init__(self, folder: Path, *, set_older_aside: bool = False) -> None:
        """Open or create; held by one process at a time.

        Args:
            set_older_aside: what becomes of a journal of an older form, whose entries do not say all of what was
                asked: it is moved to a folder beside, and its answers are sampled anew; otherwise it is refused.

        Raises:
            RunDirError: another process has it open, the folder cannot be written, or another version wrote it.
        """
        self.folder = folder
        try:
            files.make_folder(folder)
            self._lock = (folder / ".lock").open("w")
        except OSError as error:
            raise RunDirError(f"{folder}: cannot be written as a journal: {error.strerror}") from None
        if not locks.take(self._lock):
            self._lock.close()
            raise RunDirError(f"{folder}: another process writes this journal; wait for it or stop it")
        self._segments: dict[int, Segment] = {}
        self._pruned_file, self._about_file = folder / "pruned.json", folder / "about.json"
        try:
            self._about = self._read_about(set_older_aside=set_older_aside)
        except RunDirError:
            self._lock.close()
            raise

    @property
    def lineage(self) -> Lineage | None:
        """Whose answers these are; None where nobody has said so."""
        return Lineage.read(self._about) if "run" in self._about else None

    def belong_to(self, lineage: Lineage) -> None:
        """Say whose answers these are from now on."""
        if lineage != self.lineage:
            self._about |= lineage.record()
            files.write_json(self._about_file, self._about)

    def get(self, key: Key, prompt_id: str) -> tuple[Completion, ...] | None:
        """The n completions journalled under a key, equal in every bit to those added; None where there are none.

        Args:
            prompt_id: of the prompt that is asked now; the same tokens may have had another id.

        Raises:
            CheckpointError: a line that is not the last one of its file cannot be read.
        """
        segment = self._segment(key.weight_version)
        return _completions(key, segment.read(key), prompt_id) if key in segment.index else None

    def holds_another(self, key: Key) -> bool:
        """Whether what the key asks was asked with the same seed and settings of another prompt, or other weights."""
        segment = self._segment(key.weight_version)
        return key not in segment.index and key.slot in segment.slots

    def add(self, key: Key, completions: tuple[Completion, ...]) -> None:
        """Write an entry of n completions; it survives the death of this process from here on."""
        if len(completions) != key.n:
            raise ValueError(f"{len(completions)} completions for {key}")
        answers = [
            {"ids": c.token_ids.tolist(), "logp": c.logp.tolist(), "finish": c.finish_reason, "text": c.text}
            | ({} if c.counted is None else {"tokens": c.counted})
            for c in completions
        ]
        # repr of a float, which json uses, reads back as the same float: a float32 as itself.
        names = {"prompt_id": completions[0].prompt_id} if completions else {}
        line = json.dumps({**key.to_json(), **names, "answers": answers}, allow_nan=False)
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

    def drop_after(self, version: int) -> int:
        """Remove the entries of later weights; returns how many there were."""
        later = [v for v in self._versions() if v > version]
        num = sum(len(self._segment(v).index) for v in later)
        for v in later:
            self._segments.pop(v).close()
            self._path(v).unlink()
        return num

    def resampled(self, version: int | None) -> None:
        """Note that entries up to a version were replaced by other answers, those after it not; None: none were."""
        if self._about.get("resampled") != version:
            self._about["resampled"] = version
            files.write_json(self._about_file, self._about)

    def drop_what_was_not_resampled(self) -> int:
        """Remove entries of the weights that answers replaced since would have made; returns how many there were."""
        version = self._about.get("resampled")
        if version is None:
            return 0
        num = self.drop_after(version)
        self.resampled(None)
        return num

    def newest_version(self) -> int:
        """The newest weight version that something is journalled of; -1 in an empty journal."""
        return max(self._versions(), default=-1)

    def state(self, through: int | None = None) -> dict[str, Any]:
        """How much is journalled, for a checkpoint: {"format", "entries": {version: number}}, up to a version."""
        versions = [v for v in self._versions() if through is None or v <= through]
        return {"format": FORMAT, "entries": {str(v): len(self._segment(v).index) for v in versions}}

    def check(self, state: Mapping[str, Any]) -> None:
        """Hold the journal against the `state` that a checkpoint carries.

        Raises:
            CheckpointError: it lacks entries that the checkpoint counted and `prune` did not remove.
        """
        if state.get("format") != FORMAT:
            return  # of an older version, whose journal is set aside
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

    def _read_about(self, *, set_older_aside: bool) -> dict[str, Any]:
        """about.json, of this form; written where there was none or an older one."""
        entries = [self._path(v) for v in self._versions()]
        about = json.loads(self._about_file.read_text()) if self._about_file.exists() else None
        form = about["format"] if about is not None else 1  # which had no such file
        if about is not None and form == FORMAT:
            return about
        if form > FORMAT or (entries and not set_older_aside):
            aside = "; or sample its answers anew with --set 'rollout.replay=\"live\"'" if form < FORMAT else ""
            raise RunDirError(
                f"{self.folder}: a journal of form {form}, this version reads form {FORMAT}: continue with the "
                f"version that wrote it, or choose another --run-dir{aside}"
            )
        if entries:
            self._set_aside(form, entries)
        about = {"format": FORMAT}
        files.write_json(self._about_file, about)
        return about

    def _set_aside(self, form: int, entries: Sequence[Path]) -> None:
        """Move what an older version journalled out of the way."""
        num = sum(file.read_bytes().count(b"\n") for file in entries)
        aside = self.folder / f"form_{form}"
        aside.mkdir(exist_ok=True)
        others = [self._pruned_file, self.folder / "model.json"]
        for file in (*entries, *(f for f in others if f.exists())):
            file.rename(aside / file.name)
        log.warning(
            "%s: %d answers journalled by an older version do not say all of what was asked: set aside in %s, and "
            "sampled anew where they are needed", self.folder, num, aside.name,
        )  # fmt: skip

    def _path(self, version: int) -> Path:
        return self.folder / f"version_{version}.jsonl"

    def _segment(self, version: int) -> Segment:
        """The file of a version, read at its first use."""
        if version not in self._segments:
            self._segments[version] = Segment(self._path(version), version)
        return self._segments[version]

    def _versions(self) -> list[int]:
        """Those that have a file; whatever else lies in the folder is a user's own, and left alone."""
        names = (VERSION.fullmatch(path.name) for path in self.folder.glob("version_*.jsonl"))
        return sorted(int(name[1]) for name in names if name)

    def _pruned_before(self) -> int:
        return json.loads(self._pruned_file.read_text())["before_version"] if self._pruned_file.exists() else 0


def _completions(key: Key, row: dict[str, Any], prompt_id: str) -> tuple[Completion, ...]:
    return tuple(
        Completion(
            prompt_id=prompt_id,
            index=index,
            token_ids=Int32s(answer["ids"]),
            logp=Float32s(answer["logp"]),
            text=answer["text"],
            finish_reason=FinishReason(answer["finish"]),
            weight_version=key.weight_version,
            seed=key.seed + index,
            counted=answer.get("tokens"),
        )
        for index, answer in enumerate(row["answers"])
    )
