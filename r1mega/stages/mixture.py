"""A set of conversations put together of several stages' rows and of files (report 2.3.3), and its card.

    read     every row once: checked, looked at, and forgotten but for its place, its hashes and its lengths
    choose   held-out side, decontamination, doubles, answers to one question, tables' shares; one outcome a row
    write    conversations.jsonl, row by row in the set's order, each read again where it stands
    card     card.json and card.md: what is in the set, what is not, and what nobody knows

The same settings and files give the same bytes. A run that was broken off is simply run again with --resume.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.data.mixed_rows import DOMAINS
from r1mega.errors import DataError
from r1mega.recipe.mixture import MakeMixture
from r1mega.runtime import files
from r1mega.runtime.digests import Digests
from r1mega.runtime.interrupt import Interrupt, Interrupted, StopNow
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.provenance import RUN, inputs_of
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir
from r1mega.stages.mixture_card import DECISIONS, as_markdown, card_of, earlier_stages
from r1mega.stages.mixture_choice import OUTCOMES, Outcomes, choose, counts, told
from r1mega.stages.mixture_reading import Seen, see
from r1mega.stages.mixture_writing import write

log = logging.getLogger(__name__)

SUMMED_UP = ("rows", "questions", "domains", "report", "lengths", "thinking", "outcomes")
"""Parts of the card that summary.json has as well."""
WORK = ".mixture.tmp"
"""A folder of the run directory that is there while the stage runs."""


def run(config: MakeMixture, cluster: Cluster, run_dir: RunDir) -> None:
    """Write conversations.jsonl, card.json and card.md, decisions.jsonl, contaminated.jsonl and
    rejected.jsonl, and summary.json.

    Raises:
        DataError: a file that cannot be read, or changed while it was read; a row that is refused; a table that is to
            give more rows than it has; nothing is left.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; what was there before is untouched.
    """
    work = run_dir.path / WORK
    with Interrupt() as interrupt, Stopwatch() as watch:
        files.remove(work)  # of a run that was killed
        work.mkdir()
        try:
            with interrupt.at_once():
                made = _mix(config, run_dir, work)
        except StopNow:
            assert interrupt.received is not None
            raise Interrupted(interrupt.received, "nothing is kept of it; --resume reads the files again") from None
        finally:
            files.remove(work)
    summary = {
        "stage": config.stage,
        "seconds": watch.seconds,
        "steps": 0,
        "peak_rss_gib": {"stage": peak_rss_gib()},
        "conversation_set": made,
    }
    files.write_json(run_dir.path / "summary.json", summary)


def _mix(config: MakeMixture, run_dir: RunDir, work: Path) -> dict[str, Any]:
    spool, made = work / "spool.jsonl", work / "conversations.jsonl"
    earlier = earlier_stages([file for table in config.data for file in table.files])
    look, seen = see(config, spool)
    outcomes, order = choose(config, seen.rows)
    left_out = told(counts(outcomes))
    log.info("%s rows read, %s go into the set; left out: %s", f"{len(outcomes):,}", f"{len(order):,}", left_out)
    write(look, seen, order, spool, made)
    _refuse_changed(config, run_dir)
    told_of = card_of(config, look, seen, outcomes, order, earlier)
    folder = run_dir.path
    made.replace(folder / made.name)
    files.sync(folder)
    files.write_jsonl(folder / "rejected.jsonl", seen.rejected)
    files.write_jsonl(folder / "contaminated.jsonl", (hit.to_json() for hit in seen.hits))
    _write_decisions(seen, outcomes, folder)
    files.write_json(folder / "card.json", told_of)
    files.write_text(folder / "card.md", as_markdown(told_of))
    log.info("%s: %s, what is in it", folder / made.name, folder / "card.md")
    return {name: told_of[name] for name in SUMMED_UP}


def _refuse_changed(config: MakeMixture, run_dir: RunDir) -> None:
    """Raises DataError where a file is not what it was when the run began, by content."""
    begun = json.loads((run_dir.path / RUN).read_text())["inputs"]
    for setting, places in inputs_of(config, run_dir.path, Digests(run_dir.path)).items():
        for place, before in zip(places, begun[setting], strict=True):
            if place["digest"] != before["digest"]:
                raise DataError(
                    f"{setting}: {place['path']}: changed while the stage ran; wait for what writes it, and start "
                    "again with another --run-dir"
                )


def _write_decisions(seen: Seen, outcomes: Outcomes, folder: Path) -> None:
    """decisions.jsonl: a line for every row that was read."""
    temporary = folder / WORK / DECISIONS
    with temporary.open("w", encoding="utf-8") as file:
        for row, outcome in zip(seen.rows, outcomes.tolist(), strict=True):
            told_of = {
                "sha256": row["sha256"].ljust(32, b"\0").hex(),
                "domain": DOMAINS[row["domain"]],
                "source": seen.names[row["source"]],
                "file": str(seen.files[row["file"]]),
                "line": int(row["line"]),
                "outcome": OUTCOMES[outcome],
            }
            file.write(json.dumps(told_of) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / DECISIONS)
