import hashlib
import subprocess
from pathlib import Path

import pytest
import rotation


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch):
    """Without leaving a trace in this session's own summary."""
    monkeypatch.setattr(rotation, "chosen", {})
    monkeypatch.delenv("R1MEGA_SOAK", raising=False)


def at(monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    monkeypatch.setattr(rotation, "commit", lambda: commit)


def test_the_same_commit_chooses_the_same_rows_and_many_commits_meet_all(monkeypatch: pytest.MonkeyPatch):
    met = []
    for number in range(40):
        at(monkeypatch, hashlib.sha1(str(number).encode()).hexdigest())
        taken = rotation.rows("kills", always=[100], rotating=range(10), take=3)
        assert taken == rotation.rows("kills", always=[100], rotating=range(10), take=3)
        assert taken[0] == 100 and len(taken) in (3, 4) and taken[1:] == sorted(taken[1:])
        met += taken[1:]
    assert set(met) == set(range(10))


def test_series_of_one_commit_take_shares_of_their_own(monkeypatch: pytest.MonkeyPatch):
    at(monkeypatch, "a" * 40)
    assert len({tuple(rotation.rows(f"series {i}", rotating=range(10), take=1)) for i in range(40)}) == 10


def test_without_git_the_first_share_runs(monkeypatch: pytest.MonkeyPatch):
    at(monkeypatch, "")
    assert rotation.rows("kills", rotating=range(10), take=4) == [0, 3, 6, 9]


def test_a_soak_runs_all(monkeypatch: pytest.MonkeyPatch):
    at(monkeypatch, "a" * 40)
    monkeypatch.setenv("R1MEGA_SOAK", "1")
    assert rotation.rows("kills", always=[100], rotating=range(10), take=2) == [100, *range(10)]


def test_what_was_chosen_is_told(monkeypatch: pytest.MonkeyPatch):
    at(monkeypatch, "")
    rotation.rows("kills", always=[7], rotating=range(4), take=2)
    assert rotation.chosen == {"kills": "share 1 of 2: 1 always, and 0, 2"}


def test_the_commit_is_gits():
    top = Path(__file__).parent
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=top)
    assert rotation.commit() == (asked.stdout.strip() if asked.returncode == 0 else "")
