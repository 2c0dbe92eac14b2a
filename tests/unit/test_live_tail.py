"""Lines of a growing file: each once, whatever the writer does to the file meanwhile."""

import json
import os
from pathlib import Path

import pytest

from r1mega.report.live import tail as tails
from r1mega.report.live.tail import Tail, last_bytes, last_rows


def steps(tail: Tail) -> list[int]:
    return [row["step"] for _, row in tail.read()]


def line(step: int, **more: object) -> str:
    return json.dumps({"kind": "train", "step": step, **more}) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_file_that_is_not_there_yet_and_then_grows(file: Path):
    tail = Tail(file)
    assert steps(tail) == []
    file.write_text(line(1) + line(2))
    assert steps(tail) == [1, 2]
    assert steps(tail) == []
    with file.open("a") as opened:
        opened.write(line(3))
    assert steps(tail) == [3] and tail.generation == 0


def test_offsets_are_those_of_the_ends_of_lines(file: Path):
    file.write_text(line(1) + "\n" + line(2, text="é"))
    data = file.read_bytes()
    for end, row in Tail(file).read():
        assert json.loads(data[:end].splitlines()[-1])["step"] == row["step"]


def test_a_torn_last_line_is_left_for_later_and_one_in_the_middle_is_counted(file: Path):
    whole = line(1) + line(2)
    file.write_text(whole[:-9])
    tail = Tail(file)
    assert steps(tail) == [1] and tail.behind == len(line(2)) - 9
    file.write_text(whole)
    assert steps(tail) == [2] and tail.broken == 0
    with file.open("a") as opened:
        opened.write(line(3)[:-9] + "\n" + "[1, 2]\n" + line(4))
    assert steps(tail) == [4] and tail.broken == 2


def test_a_file_written_anew_begins_again(file: Path, tmp_path: Path):
    """As `RunDir.rewind` writes it: another file under the same name, here no shorter than the old one."""
    file.write_text(line(1) + line(2) + line(3))
    tail = Tail(file)
    assert steps(tail) == [1, 2, 3]
    new = tmp_path / "new"
    new.write_text(line(1) + line(2) + line(7) + line(8))
    new.replace(file)
    assert steps(tail) == [1, 2, 7, 8] and tail.generation == 1


def test_a_file_written_anew_in_place_begins_again(file: Path):
    """Same inode: shorter, or no shorter and of other content, as an inode that is used again shows."""
    file.write_text(line(1) + line(2))
    tail = Tail(file)
    assert steps(tail) == [1, 2]
    file.write_text(line(1))
    assert steps(tail) == [1] and tail.generation == 1
    file.write_text(line(5) + line(6))
    assert steps(tail) == [5, 6] and tail.generation == 2
    file.unlink()
    assert steps(tail) == [] and tail.generation == 3


def test_a_line_that_is_too_long_is_passed_over_and_counted(file: Path, monkeypatch):
    monkeypatch.setattr(tails, "CHUNK_BYTES", 256)
    file.write_text(line(1) + line(2, text="x" * 2000) + line(3))
    tail, seen = Tail(file), []
    for _ in range(40):
        seen += steps(tail)
    assert seen == [1, 3] and (tail.too_long, tail.broken, tail.behind) == (1, 0, 0)


def test_a_long_file_is_read_in_chunks(file: Path, monkeypatch):
    monkeypatch.setattr(tails, "CHUNK_BYTES", 100)
    file.write_text("".join(line(step) for step in range(1, 51)))
    tail = Tail(file)
    first = steps(tail)
    assert 0 < len(first) < 5 and tail.behind > 0
    seen = [*first]
    while tail.behind:
        seen += steps(tail)
    assert seen == list(range(1, 51))


def test_a_pipe_in_its_place_does_not_hang(file: Path):
    os.mkfifo(file)
    with pytest.raises(OSError):
        Tail(file).read()


def test_the_end_of_a_file(file: Path):
    assert last_rows(file) == [] and last_bytes(file, 10) == b""
    file.write_text(line(1) + line(2) + line(3) + '{"torn": ')
    assert [row["step"] for row in last_rows(file)] == [1, 2, 3]
    half = len(line(3)) + len('{"torn": ') + 3  # begins in the middle of line 2
    assert [row["step"] for row in last_rows(file, half)] == [3]
    exactly = len(line(3)) + len('{"torn": ')
    assert [row["step"] for row in last_rows(file, exactly)] == [3]
    assert last_bytes(file, 4) == b'n": '
