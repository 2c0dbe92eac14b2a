"""What W&B gets of a run directory beside the rows of metrics.jsonl: read from the folder, in W&B's own process.

Transcripts become tables, checkpoints and exported models artifacts that say where they lie, events that somebody
should know of alerts, and at the end the summary, data card and judged answers. All of it is in the folder in any
case; what cannot be shown is said, and the rows go on. Each table is bounded, and says of how many rows it has some.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from r1mega.runtime import events
from r1mega.runtime.digests import digest_of
from r1mega.runtime.provenance import RUN, Lineage
from r1mega.runtime.run_dir import STEP
from r1mega.runtime.wandb_parts import PartsState

CHARACTERS = 4000
"""Of a text in a table."""
RARER = 100
"""Tables of transcripts are no closer than the steps taken over this, so that their number grows as a logarithm."""
MOST_ALERTS = 100
"""Of a run; later ones stand in events.jsonl alone."""
MOST_FIGURES = 500
"""Of a summary."""
MOST_EVENTS = 200
FILES = 100_000
"""In a folder that is referenced; one that has more is not."""
TRANSCRIPT = ("step", "question", "truth", "text", "status", "reward", "parts", "reason", "tokens", "finish_reason")
SUMMARY, CARD, RESULTS = "summary.json", "card.json", "results.jsonl"
LEVELS: Mapping[str, str] = {"warning": "WARN", "alert": "ERROR"}
"""Level of an event -> W&B's of its alert; those of other levels raise none."""


class ShownFolder:
    """A run directory, looked at again and again by the one process that tells W&B of it."""

    def __init__(
        self, run_dir: Path, run: Any, state: PartsState, settings: Mapping[str, Any], number: Callable[[], int]
    ):
        """
        Args:
            run: W&B's.
            settings: `config.watching.Wandb`'s.
            number: of the next row.
        """
        self._dir, self._run, self._state, self._settings, self._number = run_dir, run, state, settings, number
        self.step = -1
        """The newest step whose row has come."""
        self._failed: dict[str, str] = {}

    def look(self, *, last: bool = False) -> list[str]:
        """Show what is new; returns what is to be said of what could not be shown, each fault once.

        Args:
            last: the run is over, so that all of its files are whole.
        """
        tasks: dict[str, Callable[[], None]] = {
            "alerts": self._alert,
            "transcripts": lambda: self._show_samples(last),
        }
        tasks |= {"references": lambda: self._refer(last)}
        tasks |= {"summary": self._summarise, "tables": self._show_tables} if last else {}
        tasks |= {"state": lambda: self._state.save(self._dir)}
        said: list[str] = []
        for what, task in tasks.items():
            try:
                task()
            except Exception as error:  # wandb's, of any kind, or a file's
                fault = f"{what}: {type(error).__name__}: {error}"
                if self._failed.get(what) != fault:
                    self._failed[what] = fault
                    said.append(fault)
        return said

    # ---- alerts -----------------------------------------------------------------------------------------

    def _alert(self) -> None:
        """Raise one for each cause among the events since the last look."""
        state, new = self._state, self._new_events()
        for event in new:
            level, cause = LEVELS.get(event.level, ""), cause_of(event)
            if not self._settings["alerts"] or not level or cause in state.alerted:
                continue
            if len(state.alerted) >= MOST_ALERTS:
                break
            state.alerted.append(cause)
            where = "" if event.step is None else f", step {event.step}"
            more = "" if len(state.alerted) < MOST_ALERTS else f" (the last alert of {MOST_ALERTS}; see events.jsonl)"
            # W&B holds back an alert whose title it had in the last minute.
            title = f"{event.kind}{where}: {_cut(event.text, 60)}"
            self._run.alert(title=title, text=_cut(event.text) + more, level=level, wait_duration=0)

    def _new_events(self) -> list[events.Event]:
        file = self._dir / events.FILE
        if not file.is_file() or file.stat().st_size <= self._state.events:
            return []
        with file.open("rb") as lines:
            lines.seek(self._state.events)
            data = lines.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._state.events += len(whole)
        return events.parse(whole)

    # ---- transcripts ------------------------------------------------------------------------------------

    def _show_samples(self, last: bool) -> None:
        """Tables of the rollouts that are due and whole: one is, once a row of a later step has come."""
        if not self._settings["transcripts"]:
            return
        steps = sorted(
            int(of[1]) for file in (self._dir / "samples").glob("step_*.jsonl") if (of := STEP.fullmatch(file.stem))
        )
        for step in steps:
            before = self._state.table
            due = before < 0 or step >= before + max(self._settings["transcripts_every"], before // RARER)
            if step > before and due and (last or step < self.step):
                self._state.table = step
                shown, of = _spread(self._dir / f"samples/step_{step}.jsonl", self._settings["transcripts"])
                self._log_table("transcripts", shown, of, step, TRANSCRIPT)

    def _log_table(
        self, name: str, shown: Sequence[Mapping[str, Any]], of: int, step: int | None, columns: Sequence[str] = ()
    ) -> None:
        """A row with a table of some rows, and of how many they are."""
        import wandb

        columns = columns or list(dict.fromkeys(chain.from_iterable(shown)))
        table = wandb.Table(
            columns=list(columns),
            data=[[_cell(row.get(c)) for c in columns] for row in shown],
            allow_mixed_types=True,
        )
        counts = {f"{name}/shown": len(shown), f"{name}/of": of}
        self._run.log(
            {name: table, **counts, "kind": name, "step": max(self.step, 0) if step is None else step},
            step=self._number(), commit=True,
        )  # fmt: skip

    # ---- references -------------------------------------------------------------------------------------

    def _refer(self, last: bool) -> None:
        """List the checkpoints and models that have come, by where they lie and whose policy they are."""
        if not self._settings["references"]:
            return
        found = chain(
            (("checkpoint", folder) for folder in _steps(self._dir / "checkpoints")),
            (("model", folder) for folder in _steps(self._dir / "hf_steps")),
            (("model", folder) for folder in [self._dir / "hf"] if last and folder.is_dir()),
        )
        lineage = Lineage.read(json.loads((self._dir / RUN).read_text())) if (self._dir / RUN).is_file() else None
        for kind, folder in found:
            step = int(of[1]) if (of := STEP.fullmatch(folder.name)) else max(self.step, 0)
            identity: dict[str, Any] = {"step": step, "path": str(folder.resolve())}
            if lineage:
                identity |= {"policy": lineage.policy(step), "digest": lineage.policies(step)[0]}
            if (manifest := folder / "policy.json").is_file():
                identity["crc32"] = json.loads(manifest.read_text(encoding="utf-8")).get("crc32")
            known = f"{folder.relative_to(self._dir)} {digest_of(identity)}"
            if known not in self._state.referenced:
                self._log_reference(kind, folder, identity)
                self._state.referenced.append(known)

    def _log_reference(self, kind: str, folder: Path, identity: Mapping[str, Any]) -> None:
        import wandb

        described = f"Lies at {identity['path']}; nothing of it but identity.json is uploaded."
        artifact = wandb.Artifact(
            f"{self._state.id}-{kind}", type=kind, description=described, metadata=dict(identity)
        )
        # References without checksums count by their paths alone; this file makes another policy another version.
        with artifact.new_file("identity.json", mode="w") as file:
            json.dump(identity, file, indent=2)
        # Without checksums nothing of the weights is read.
        artifact.add_reference(f"file://{identity['path']}", name=folder.name, checksum=False, max_objects=FILES)
        self._run.log_artifact(artifact, aliases=[f"step_{identity['step']}"])

    # ---- the end ----------------------------------------------------------------------------------------

    def _summarise(self) -> None:
        if (file := self._dir / SUMMARY).is_file():
            figures = dict(islice(_flat("final", json.loads(file.read_text(encoding="utf-8"))), MOST_FIGURES))
            self._run.summary.update(figures)

    def _show_tables(self) -> None:
        """What a stage that makes data or evaluates has made, and the run's latest events."""
        most = max(self._settings["transcripts"], 1)
        if (file := self._dir / CARD).is_file():
            card = json.loads(file.read_text(encoding="utf-8"))
            domains = [{"domain": name, **_numbers(of)} for name, of in card.get("domains", {}).items()]
            self._log_table("data_card", domains, len(domains), None)
        for results in (self._dir / RESULTS, *sorted(self._dir.glob(f"*/{RESULTS}"))):
            if self._settings["transcripts"] and results.is_file():
                model = "" if results.parent == self._dir else f"/{results.parent.name}"
                shown, of = _spread(results, most)
                self._log_table(f"judged_answers{model}", list(_judged(shown)), of, None)
        rows = [
            {"time": e.time, "kind": e.kind, "level": e.level, "step": e.step, "text": e.text}
            for e in events.read(self._dir)
        ]
        if rows:
            self._log_table("events", rows[-MOST_EVENTS:], len(rows), None)


def cause_of(event: events.Event) -> str:
    """What two events have in common of which one alert is enough: the kind, and the words but for the numbers."""
    return f"{event.kind}: {event.figures.get('cause') or re.sub(r'[0-9][0-9.,:e+-]*', '#', event.text)}"[:200]


def _judged(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each question, with the first of its answers."""
    for row in results:
        samples = row.get("samples") or [{}]
        values = [s["value"] for s in samples if s.get("status") == "scored"]
        mean = sum(values) / len(values) if values else None
        first = {name: samples[0].get(name) for name in ("answer", "status", "tokens", "finish", "reason")}
        yield {name: row.get(name) for name in ("id", "domain", "source")} | {"mean": mean, **first}


def _steps(folder: Path) -> list[Path]:
    found = [(int(of[1]), path) for path in folder.glob("step_*") if (of := STEP.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _spread(file: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """At most `most` rows of a JSONL file, spread evenly over it, and how many it has. A rollout's file may be larger
    than the memory that training leaves, so no other row is held, or read as JSON."""
    with file.open("rb") as lines:
        of = sum(1 for _ in lines)
        lines.seek(0)
        wanted = {i * of // most for i in range(most)} if of > most else range(of)
        return [json.loads(line) for i, line in enumerate(lines) if i in wanted], of


def _cell(value: Any) -> Any:
    """Text as text, numbers as numbers, whatever else as JSON."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _cut(text: str, most: int = CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}… [{len(text) - most:,} more characters]"


def _flat(name: str, value: Any) -> Iterator[tuple[str, float | str]]:
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
        for key, of in items:
            yield from _flat(f"{name}/{key}", of)
    elif isinstance(value, int | float | str):
        yield name, value


def _numbers(of: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in of.items() if isinstance(value, int | float)}
