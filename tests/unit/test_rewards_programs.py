"""Programs that are right, wrong, slow, crash, or pass a part of their tests: what the reward says of each."""

import pytest
import rotation
from code_programs import Row, rows

from r1mega.rewards.code import Code
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.sandbox.bounds import Bounds

pytest_plugins = ["sandbox_here"]
pytestmark = pytest.mark.usefixtures("sandbox")

RIGHT, OTHER = rows("right.txt"), rows("other.txt")
BOUNDS = Bounds(cpu_s=2, wall_s=3.0)
ALWAYS = (
    "sum_map",
    "sum_exit_code",
    "sum_cin",
    "add_plain",
    "uniq_cpp",
    "sum_minus",
    "crash_null_cpp",
    "slow_spin",
    "syntax_paren",
)
NAMED = [row for row in RIGHT + OTHER if row.name in ALWAYS]
REST = [row for row in RIGHT + OTHER if row.name not in ALWAYS]


def test_there_are_as_many_as_are_promised():
    assert len(RIGHT) >= 50 and len(RIGHT) + len(OTHER) >= 120 and len(NAMED) == len(ALWAYS)


@pytest.mark.parametrize("row", rotation.rows("programs", always=NAMED, rotating=REST, take=16), ids=str)
def test_a_program_gets_what_it_deserves(row: Row):
    share = row.verdict.startswith("partly")
    settings = CodeSettings(counts="share" if share else "all", run=BOUNDS)
    passed = Code().judge(Code().find_answer(row.response), row.entry, settings)
    if row.verdict == "right":
        assert (passed.value(settings), passed.reason) == (1.0, "")
    elif share:
        assert f"partly {passed.passed}/{passed.total}" == row.verdict
        assert row.gives(passed.reason)
    else:
        assert passed.value(settings) == 0.0 and passed.passed < passed.total
        assert row.gives(passed.reason)
