"""slurm/rank.sh by itself: what it leaves of a rank that ends, for the job that asks which one failed first."""

import os
import subprocess
from pathlib import Path

import pytest

RANK = Path(__file__).parents[2] / "slurm/rank.sh"
PLACE = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    ("code", "record"),
    [(0, None), (1, "first_failure"), (2, "first_failure"), (75, "first_loss"), (134, "first_loss")],
)
def test_a_rank_that_only_lost_another_one_is_not_blamed(code: int, record: str | None, tmp_path: Path):
    """75: it says so itself; 134: gloo's threads aborted it."""
    command = [str(RANK), str(tmp_path), "bash", "-c", f"exit {code}"]
    done = subprocess.run(command, env={**os.environ, **PLACE}, check=False)
    assert done.returncode == code
    found = {file.name: file.read_text() for file in tmp_path.iterdir() if file.name.startswith("first_")}
    assert found == ({record: f"0 {code}\n"} if record else {})
