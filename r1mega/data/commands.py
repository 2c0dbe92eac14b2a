"""`r1mega review export` and `r1mega review import`: what the command line shows of this room."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer

from r1mega.data.lines import rows as lines
from r1mega.data.review import OUTCOMES, Review, Undecided, queue_lines, read_queue
from r1mega.data.signed_rows import Row
from r1mega.errors import DataError
from r1mega.runtime.files import write_jsonl, write_parts

app = typer.Typer(no_args_is_help=True, help="Have people look at rows: out into a file that they edit, and back.")


@app.command("export")
def export_queue(
    rows: Annotated[Path, typer.Argument(help="Rows that have a sha256 each: rows.jsonl of a rejection stage.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The queue; refused where it is there already.")],
    num: Annotated[int | None, typer.Option("--num", min=1, help="Draw so many rows; default: all.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of --num: another one draws other rows.")] = 0,
    reviewer: Annotated[str, typer.Option("--reviewer", help="Write this name into each line.")] = "",
) -> None:
    """Write a queue, a JSON line a row, where people set `decision` to accept, edit or reject, and edit `answer`."""
    _refuse_place(out)
    if out.exists():
        raise DataError(f"{out} is there already, and may hold somebody's decisions: give another name, or move it")
    written = 0

    def texts() -> Iterator[str]:
        nonlocal written
        for line in queue_lines(lines(rows, "rows"), num=num, seed=seed, reviewer=reviewer):
            written += 1
            yield json.dumps(line.to_json(), ensure_ascii=False) + "\n"  # as people read it

    write_parts(out, texts())
    fewer = f"; {rows} has no more, of {num} asked for" if num is not None and written < num else ""
    print(f"{out}: {written} rows to decide on{fewer}")


@app.command("import")
def import_queue(
    queue: Annotated[list[Path], typer.Argument(help="Queues with decisions.")],
    rows: Annotated[Path, typer.Option("--rows", help="The rows that were exported.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The rows after review, for SFT or a mixture.")],
    undecided: Annotated[
        Undecided, typer.Option("--undecided", help="What becomes of lines without a decision, or of their rows.")
    ] = "refuse",
) -> None:
    """Apply decisions. Rejected rows are kept beside OUT, in .rejected.jsonl; edited ones hold what stood there."""
    _refuse_place(out)
    left_out = out.with_suffix(".rejected.jsonl")
    for one in (*queue, rows):
        if one.resolve() in (out.resolve(), left_out.resolve()):
            raise DataError(f"{one} is read, and would be written over: give --out another name")
    review = Review(read_queue(*queue), undecided)

    def reviewed() -> Iterator[Row]:
        for row, where in lines(rows, "rows"):
            if (after := review.of(row, where)) is not None:
                yield after
        review.finish()
        write_jsonl(left_out, review.rejected)  # before the others get their name

    write_jsonl(out, reviewed())
    print("\n".join(_told(review, out, left_out)))


def _refuse_place(out: Path) -> None:
    """Before anything is read: a file cannot be written there."""
    if out.is_dir():
        raise DataError(f"--out {out}: is a folder; give the name of a file in it")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}; make it first")


def _told(review: Review, out: Path, left_out: Path) -> list[str]:
    counts, kept = review.counts, ("accepted", "edited", "undecided_kept", "not_in_queue")
    found = [
        f"{out}: {sum(counts[name] for name in kept)} rows ({_listed(counts, kept)})",
        f"{left_out}: {len(review.rejected)} rows left out ({_listed(counts, ('rejected', 'undecided_dropped'))})",
    ]
    for name, of in sorted(review.reviewers.items()):
        found.append(f"  {name or '(no name)'}: {_listed(of, OUTCOMES.values())}")
    if num := counts["line_ends"]:
        found.append(f"note: an editor had changed the line ends of {num} answers; they are read as they were")
    return found


def _listed(counts: Mapping[str, int], names: Iterable[str]) -> str:
    return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in names)
