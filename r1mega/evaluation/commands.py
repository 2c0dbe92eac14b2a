"""`r1mega compare` and `r1mega decontaminate`: what the command line shows of this room."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from r1mega.errors import DataError

if TYPE_CHECKING:
    from r1mega.evaluation.compare import PairedComparison
    from r1mega.evaluation.decontaminate import Report
    from r1mega.evaluation.overlap import Evaluations

FOUND = 1
"""Exit code where B is worse than A, or data shares words with an evaluation: for CI, which has to tell it from 2."""


def compare(
    run_a: Annotated[Path, typer.Argument(help="Run directory of an evaluation: what B is held against.")],
    run_b: Annotated[Path, typer.Argument(help="Another, of the same questions, prompt and sampling.")],
    margin: Annotated[
        float, typer.Option("--margin", help="Let B be worse by this share: 0.02 lets two points pass.")
    ] = 0.0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the comparison as JSON.")] = None,
) -> None:
    """Say whether checkpoint B is better or worse than A. Exit code 0, 1 where it is worse, 2 for what is no pair."""
    from r1mega.evaluation import compare as paired
    from r1mega.evaluation.results import read
    from r1mega.runtime.files import write_json

    (record_a, results_a), (record_b, results_b) = read(run_a), read(run_b)
    paired.refuse_different(record_a, record_b, str(run_a), str(run_b))
    comparison = paired.compare(results_a, results_b, margin=margin)
    if out is not None:
        write_json(out, comparison.to_json())
    print("\n".join(_shown(comparison)))
    if record_a.digests["weights"] == record_b.digests["weights"]:
        print("note: both are of the same weights")
    if comparison.outcome is paired.Outcome.WORSE:
        raise typer.Exit(FOUND)


def _shown(found: "PairedComparison") -> list[str]:
    table, difference = found.mcnemar, found.difference
    lines = [
        f"pass@1 of A {found.mean_a:.4f}, of B {found.mean_b:.4f}, on {found.num_questions} questions",
        f"B - A = {difference.mean:+.4f}, 95% interval {difference.low:+.4f} to {difference.high:+.4f} (paired "
        f"bootstrap over questions), standard error {difference.se:.4f}",
        f"solved by both {table.both}, by A alone {table.only_a}, by B alone {table.only_b}, by neither "
        f"{table.neither}: McNemar's exact p = {table.p:.3g}",
    ]
    if found.left_out:
        lines.append(f"left out: {found.left_out} questions without a scored answer in both")
    beyond = f", beyond the margin of {found.margin:g}" if found.margin else ""
    words = {"better": f"B is better than A{beyond}", "worse": f"B is worse than A{beyond}"}
    return [*lines, words.get(found.outcome, "no difference can be told")]


def decontaminate(
    data: Annotated[list[Path], typer.Argument(help="Files of JSONL, and *.parquet files.")],
    against: Annotated[
        list[Path],
        typer.Option("--against", help="An evaluation's questions and answers, in either form; may be repeated."),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A new folder for the rows that are left, and the hits.")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--field", help="Look at this field or column of a row, and at no others but those given."),
    ] = None,
    against_fields: Annotated[
        list[str] | None, typer.Option("--against-field", help="The same, of the evaluation's rows.")
    ] = None,
    n: Annotated[int, typer.Option("--words", min=2, help="Words in a row that make a hit; the report's 10.")] = 10,
    boilerplate: Annotated[
        int | None,
        typer.Option(
            "--boilerplate", min=1, help="Pass over words that more texts of the evaluation than this have."
        ),
    ] = None,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="Default: one for each core.")] = None,
) -> None:
    """List the rows of DATA that share ten words in a row with an evaluation, and write the others into OUT.

    Without OUT nothing is written, and the exit code is 1 where there is a hit.
    """
    from r1mega.evaluation.decontaminate import decontaminate as search
    from r1mega.evaluation.overlap import Evaluations
    from r1mega.evaluation.search_files import Data

    if both := {path.resolve() for path in data} & {path.resolve() for path in against}:
        raise DataError(f"{min(both)}: is searched, and searched for: nothing would be left of it")
    wanted = Data(data, fields or (), processes or len(os.sched_getaffinity(0)))
    with _leaving_cleanly():
        evaluations = Evaluations.read(against, against_fields or (), n, boilerplate)
        report = search(wanted, evaluations, out)
    print("\n".join(_told(report, evaluations, out)))
    if report.hits and out is None:
        raise typer.Exit(FOUND)


@contextmanager
def _leaving_cleanly() -> Iterator[None]:
    """Within, a SIGTERM ends the program as Ctrl-C does, so that nothing half-written stays behind."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(report: "Report", evaluations: "Evaluations", out: Path | None) -> list[str]:
    lines = []
    for hit in report.shown:
        what = f"{hit.sequences} times {report.n} words of" if hit.sequences else "the whole of"
        lines.append(f"{hit.place}: {what} {hit.against}: {hit.words!r}")
    if report.hits > len(report.shown):
        where = f"all are in {out}/hits.jsonl" if out else "--out lists all"
        lines.append(f"and {report.hits - len(report.shown)} more; {where}")
    for name, num in report.rows.items():
        hit = report.hit_rows[name]
        left = f", {num - hit:,} left" if out else ""
        lines.append(f"{name}: {num:,} rows, {hit:,} with a hit{left}")
    if evaluations.too_short:
        lines.append(
            f"not looked for: {evaluations.too_short} answers of the evaluation, shorter than {report.n} words"
        )
    if evaluations.boilerplate is not None:
        num = int((evaluations.index.num_texts > evaluations.boilerplate).sum())
        lines.append(f"passed over: {num} runs of words that more than {evaluations.boilerplate} texts of it have")
    widest = report.widest
    if widest is not None and widest.num_against > 1:
        lines.append(
            f"note: {widest.num_against} texts of the evaluation have {widest.words!r}; where that is the wording of "
            "its prompts and no question, --boilerplate passes over it"
        )
    return lines
