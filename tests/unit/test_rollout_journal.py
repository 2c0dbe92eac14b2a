"""What was journalled is there again, bit for bit, whenever and however the process died."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journal_data import PARAMS, bits, completions, counted, entry, key, reopened

from r1mega.buffers import Float32s
from r1mega.errors import CheckpointError, RunDirError
from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.journal import Journal
from r1mega.rollout.segment import Key


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal") as journal:
        yield journal


# ---- the file -----------------------------------------------------------------------------------------------


def test_entries_come_back_bit_for_bit(journal: Journal) -> None:
    for i in range(5):
        journal.add(key(i), completions(i))
    journal.add(key(1, 4), completions(1, 4))
    with reopened(journal) as again:
        for i in range(5):
            assert entry(again, i) == completions(i)
            assert bits(entry(again, i)) == bits(completions(i))
        assert entry(again, 1, 4) == completions(1, 4)
        assert entry(again, 2, 4) is None and entry(again, 1, 5) is None
        assert again.state() == counted(v3=5, v4=1)


@settings(max_examples=200)
@given(st.floats(max_value=0.0, allow_nan=False, allow_infinity=False))
def test_any_float_round_trips(value: float) -> None:
    assert json.loads(json.dumps(value)).hex() == value.hex()


@pytest.mark.parametrize(
    "changed",
    [
        {"weight_version": 4},
        {"policy": "another run's"},
        {"prompt": "p2"},
        {"seed": 11},
        {"n": 3},
        {"sampling": dataclasses.replace(PARAMS, temperature=0.8)},
        {"sampling": dataclasses.replace(PARAMS, max_new_tokens=5)},
        {"sampling": dataclasses.replace(PARAMS, top_p=0.9)},
        {"sampling": dataclasses.replace(PARAMS, stop=("4",))},
    ],
)
def test_every_part_of_the_key_counts(journal: Journal, changed: dict[str, Any]) -> None:
    journal.add(key(1), completions(1))
    assert journal.get(key(1)._replace(**changed), "p1") is None


def test_the_later_of_two_entries_counts(journal: Journal) -> None:
    journal.add(key(1), completions(1))
    journal.add(key(1), completions(1, salt=9))
    with reopened(journal) as again:
        assert entry(again, 1) == completions(1, salt=9)
        assert again.state() == counted(v3=1)


def test_a_torn_tail_of_any_length_is_dropped_and_cut_off(journal: Journal) -> None:
    for i in range(3):
        journal.add(key(i), completions(i))
    journal.close()
    file = journal.folder / "version_3.jsonl"
    whole = file.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in [*range(start, len(whole) - 3, 11), *range(len(whole) - 3, len(whole))]:
        file.write_bytes(whole[:end])
        with Journal(journal.folder) as torn:
            assert entry(torn, 1) == completions(1) and entry(torn, 2) is None
            torn.add(key(7), completions(7))
            assert entry(torn, 7) == completions(7)
        with Journal(journal.folder) as again:
            assert again.state() == counted(v3=3)
            assert [entry(again, i) for i in (0, 1, 7)] == [completions(i) for i in (0, 1, 7)]


def test_nothing_of_a_torn_tail_stays_behind_a_shorter_line(journal: Journal) -> None:
    """Whoever else reads the file finds whole lines."""
    journal.add(key(0), completions(0))
    journal.close()
    file = journal.folder / "version_3.jsonl"
    file.write_bytes(file.read_bytes() + b'{"ids": [' + b"1, " * 10_000)
    with Journal(journal.folder) as torn:
        torn.add(key(1), completions(1))
    assert [json.loads(line)["prompt_id"] for line in file.read_text().splitlines()] == ["p0", "p1"]


def test_reading_alone_changes_nothing(journal: Journal) -> None:
    journal.add(key(1), completions(1))
    file = journal.folder / "version_3.jsonl"
    file.write_bytes(file.read_bytes() + b'{"weight_version": 3, "pro')
    before = file.read_bytes()
    with reopened(journal) as again:
        assert entry(again, 1) == completions(1)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-20] + b"\n",
        lambda line: b"\0" * len(line) + b"\n",
        lambda line: b"\n",
        lambda line: line.replace(b'"n": 2', b'"n": 3'),
        lambda line: line.replace(b'"seed"', b'"sede"'),
        lambda line: line.replace(b'"ids": [', b'"ids": [1, '),
        lambda line: line.replace(b'"weight_version": 3', b'"weight_version": 4'),
        lambda line: line.replace(b'"text"', b'"test"'),
        lambda line: line.replace(b'"stop"', b'"stopped"'),
        lambda line: b"[" + line.strip() + b"]\n",
        lambda line: b"\xff" + line,
    ],
)
def test_damage_in_the_middle_is_named(journal: Journal, damage: Any) -> None:
    for i in range(3):
        journal.add(key(i), completions(i))
    file = journal.folder / "version_3.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + damage(lines[1]) + lines[2])
    with reopened(journal) as again, pytest.raises(CheckpointError, match=r"version_3\.jsonl:2: "):
        entry(again, 0)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_no_torn_line(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    journal.add(key(0), completions(0))
    write = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if len(data) < 50:
            raise error
        return write(file, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(type(error)):
        journal.add(key(1), completions(1))
    assert entry(journal, 1) is None
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:7], offset))  # short writes
    shorter = tuple(dataclasses.replace(c, text="") for c in completions(2))
    journal.add(key(2), shorter)
    with reopened(journal) as again:
        assert [entry(again, i) for i in range(3)] == [completions(0), None, shorter]


def test_two_processes_never_append_at_once(journal: Journal) -> None:
    with pytest.raises(RunDirError, match="another process writes this journal"):
        Journal(journal.folder)
    program = (
        "import sys; from pathlib import Path; from r1mega.rollout.journal import Journal; Journal(Path(sys.argv[1]))"
    )
    other = subprocess.run([sys.executable, "-c", program, str(journal.folder)], capture_output=True, text=True)
    assert other.returncode and "another process writes this journal" in other.stderr
    journal.close()
    Journal(journal.folder).close()


def test_what_could_not_be_read_is_never_written(journal: Journal) -> None:
    (one, two) = completions(1)
    with pytest.raises(ValueError, match="JSON"):
        journal.add(key(1), (one, dataclasses.replace(two, logp=Float32s.repeated(float("nan"), 4))))
    with pytest.raises(ValueError, match="1 completions"):
        journal.add(key(1), (one,))
    assert entry(journal, 1) is None


# ---- the checkpoint -----------------------------------------------------------------------------------------


def test_a_checkpoint_notices_what_is_missing(journal: Journal) -> None:
    for i in range(4):
        journal.add(key(i), completions(i))
    state = json.loads(json.dumps(journal.state()))
    journal.check(state)
    journal.add(key(5, 4), completions(5, 4))
    journal.check(state)  # more is fine
    file = journal.folder / "version_3.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    with (
        reopened(journal) as again,
        pytest.raises(CheckpointError, match=r"version_3\.jsonl: holds 3 .* counts 4"),
    ):
        again.check(state)
    file.unlink()
    with Journal(journal.folder) as empty, pytest.raises(CheckpointError, match="holds 0"):
        empty.check(state)


def test_pruning_is_no_loss(journal: Journal) -> None:
    for version in (3, 4, 5, 12):
        journal.add(key(1, version), completions(1, version))
    state = journal.state()
    journal.prune(5)
    assert sorted(p.name for p in journal.folder.glob("version_*")) == ["version_12.jsonl", "version_5.jsonl"]
    assert entry(journal, 1, 3) is None and entry(journal, 1, 5) == completions(1, 5)
    journal.prune(4)  # what is gone stays known to be gone
    with reopened(journal) as again:
        again.check(state)
        assert again.state() == counted(v5=1, v12=1)
        (again.folder / "version_12.jsonl").unlink()
    with Journal(journal.folder) as again, pytest.raises(CheckpointError, match="version_12"):
        again.check(state)


# ---- killed while it writes ---------------------------------------------------------------------------------

WRITER = """
import resource, signal, sys
from pathlib import Path
from r1mega.rollout.engine import SamplingParams
from r1mega.buffers import Float32s, Int32s
from r1mega.rollout.journal import Journal
from r1mega.rollout.segment import Key
from r1mega.samples import Completion, FinishReason
folder, start, length, limit = Path(sys.argv[1]), *map(int, sys.argv[2:])
if limit:  # the kernel kills the write that would go past it, there
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
journal = Journal(folder)
for i in range(start, 10**6):
    done = Completion("p", 0, Int32s([i]), Float32s([-1 / (3 + i)]), str(i % 10) * length, FinishReason.STOP, 0, i)
    print(f"{i} begins", flush=True)
    journal.add(Key(0, "w", "p", i, 1, SamplingParams(1.0, 1)), (done,))
    print(f"{i} done", flush=True)
"""


def test_killed_while_it_writes(tmp_path: Path) -> None:
    """Every entry whose `add` returned is there after SIGKILL; the one being written is there whole or not at all.

    Kills at random may all miss the writing itself: in the last round the kernel is made to hit it.
    """
    length, start, torn = 4_000_000, 0, 0  # long, so that writing takes a while
    for round in range(13):
        limit = total(tmp_path) + length // 2 if round == 12 else 0
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(start), str(length), str(limit)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            lines = [writer.stdout.readline() for _ in range(2 * (round % 3) + 1)]
            if round % 2:  # and the file shows that a line is being written
                size = total(tmp_path)
                while total(tmp_path) == size:
                    pass
            if not limit:
                writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.readlines()
        done = [int(line.split()[0]) for line in lines if line.endswith("done\n")]
        torn += any(not file.read_bytes().endswith(b"\n") for file in tmp_path.glob("version_*"))
        with Journal(tmp_path) as journal:
            held = journal.state()["entries"].get("0", 0)
            assert held >= start + len(done)
            assert held <= start + len(done) + 1
            for i in range(start, held):
                (found,) = journal.get(Key(0, "w", "p", i, 1, SamplingParams(1.0, 1)), "p") or (None,)
                assert found and found.logp == Float32s([-1 / (3 + i)]) and found.text == str(i % 10) * length
        start = held
    print(f"{start} entries, {torn} torn tails")
    assert start >= 6 and torn


def total(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("version_*"))
