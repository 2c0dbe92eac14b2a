"""How answers that are programs are judged; a table `code` of the accuracy reward."""

from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.section import OnResume, Section
from r1mega.rewards.sandbox.bounds import Bounds


class CodeSettings(Section):
    """What a program has to pass, and what it may use."""

    counts: Literal["all", "share"] = "all"
    """all: 1 where every test passes, else 0. share: the share of the tests that pass."""
    run: Bounds = Bounds()
    """Of one run on one test. A question's `time_s` and `memory_mib` go before."""
    compiler: Bounds = Bounds(
        cpu_s=30, wall_s=60.0, memory_mib=1024, processes=32, file_mib=64, scratch_mib=256, output_bytes=64 * 2**20
    )
    """Of the compilation of a C++ program."""
    answer_s: float = Field(default=90.0, gt=0)
    """For all tests of one answer together; then it is too slow."""
    slots: Annotated[int | None, OnResume.FREE] = Field(default=None, ge=1)
    """Programs at once on this machine; none named: one a core."""
    lanes: Annotated[int, OnResume.FREE] = Field(default=4, ge=1)
    """Tests of one answer at once, where slots are free."""
    cache_mib: Annotated[int, OnResume.FREE] = Field(default=512, ge=1)
    """Of compiled programs, kept by content."""
