"""Recipe of putting a set of conversations together; the stage is `r1mega.stages.mixture`."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.inputs import Input
from r1mega.config.section import AnchoredPath, OnResume, Section
from r1mega.data.question import Domain
from r1mega.data.review import Undecided
from r1mega.data.row_source import JSONL, PARQUET
from r1mega.recipe.recipe import Recipe


class MixedData(Section):
    """Rows that go into the set: of files that stages wrote, or of plain conversations."""

    files: tuple[AnchoredPath, ...] = Field(min_length=1)
    """*.jsonl and *.parquet: rows.jsonl of a rejection stage, what `r1mega review import` wrote, or conversations as
    SFT reads them (`messages`, or `prompt` and `response`)."""
    domain: Domain | None = None
    """Of rows without provenance, which say none; rows with provenance have their own."""
    num: int | None = Field(default=None, gt=0)
    """Take so many of its rows, drawn by the seed, of those that nothing else leaves out; left out: all."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Or take as many as make this share of the whole set. Where all tables have a share, the set is the largest that
    their rows allow."""


class Decontamination(Section):
    """Rows that share words with an evaluation are left out, as `r1mega decontaminate` finds them (report 2.4)."""

    files: tuple[AnchoredPath, ...] = Field(min_length=1)
    """Questions and answers of the evaluations: *.jsonl and *.parquet."""
    words: int = Field(default=10, ge=2)
    """Words in a row that make a hit (report: 10)."""
    boilerplate: int | None = Field(default=None, gt=0)
    """Pass over words that more texts of the evaluations than this have; left out: none."""


class MakeMixture(Recipe):
    """A set of conversations for SFT, put together of several stages' rows and of files (report 2.3.3), with a card
    that says what is in it. It trains nothing and asks nobody."""

    runs = "r1mega.stages.mixture:run"
    script = "rejection_stage"
    checks_data = "r1mega.preflight.mixture:check_mixture"
    learns_from = "nothing"

    stage: Literal["mixture"]
    data: tuple[MixedData, ...] = Field(min_length=1)
    """Tables [[data]]. Of two rows that say the same, that of the earlier table is kept."""
    max_per_question: int = Field(default=0, ge=0)
    """Different answers to one question that are kept at most, drawn by the seed; 0: no bound."""
    review: tuple[AnchoredPath, ...] = ()
    """Queues of `r1mega review export` with people's decisions, which are applied to the rows that they are about: an
    edited row is a new one, a rejected one is left out."""
    undecided: Undecided = "refuse"
    """What becomes of lines of a queue without a decision. refuse: the stage stops and names them; keep: the row
    stays as it is; drop: it is left out."""
    decontaminate: Decontamination | None = None
    processes: Annotated[int, OnResume.FREE] = Field(default=0, ge=0)
    """That read and look at rows; 0: one a core."""

    def faults(self) -> list[str]:
        faults, shares = super().faults(), [Fraction(str(d.share)) for d in self.data if d.share is not None]
        if sum(shares) > 1:
            faults.append(f"data: the shares sum to {float(sum(shares)):g}, and a set has no more than 1 of itself")
        elif len(shares) == len(self.data) and sum(shares) != 1:
            faults.append(
                f"data: every table has a share, and they sum to {float(sum(shares)):g}: make it 1, or leave one out"
            )
        elif sum(shares) == 1 and len(shares) < len(self.data):
            faults.append("data: the shares sum to 1, which leaves nothing for the tables without one: lower them")
        faults += [
            f"data.{i}: give num (so many rows) or share (of the whole set), not both"
            for i, table in enumerate(self.data)
            if table.num is not None and table.share is not None
        ]
        if self.undecided != "refuse" and not self.review:
            faults.append("undecided: has no effect without review (queues with people's decisions): take it out")
        return faults + self._file_faults()

    def _file_faults(self) -> list[str]:
        named = [(f"data.{i}.files", file) for i, table in enumerate(self.data) for file in table.files]
        named += [("decontaminate.files", file) for file in self.decontaminate.files] if self.decontaminate else []
        faults = [
            f"{setting}: {file}: rows are read from *{JSONL} and *{PARQUET} files"
            for setting, file in named
            if file.suffix not in (JSONL, PARQUET)
        ]
        faults += [f"{setting}: {file} is a folder: name the files in it" for setting, file in named if file.is_dir()]
        times = Counter(file.resolve() for _, file in named)
        for twice in (file for file, num in times.items() if num > 1):
            settings = [setting for setting, file in named if file.resolve() == twice]
            why = (
                "is searched, and searched for: nothing would be left of it"
                if "decontaminate.files" in settings
                else "its rows would all be doubles: leave it out of one"
            )
            faults.append(f"{' and '.join(dict.fromkeys(settings))}: {twice} is named {times[twice]} times; {why}")
        return faults

    def inputs(self) -> Sequence[Input]:
        named = [(f"data.{i}.files", file) for i, table in enumerate(self.data) for file in table.files]
        named += [("decontaminate.files", file) for file in self.decontaminate.files] if self.decontaminate else []
        named += [("review", file) for file in self.review]
        return [Input(setting, file) for setting, file in named]

    def leaves(self) -> Sequence[str]:
        return ("conversations.jsonl",)
