"""`r1mega make-tests`: which inputs are kept, what is said of the others, and going on where it was ended.

Programs are stood in for by functions of their input here; tests/unit/test_guide_code.py runs real ones.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1mega.errors import DataError, RewardError
from r1mega.rewards import make_tests as making
from r1mega.rewards.programs.build import Program

PROGRAMS: dict[str, Callable[[int], object]] = {
    "square": lambda n: n * n,
    "square but for 3": lambda n: None if n == 3 else n * n,  # crashes
    "square, signed at 4": lambda n: -16 if n == 4 else n * n,
    "double": lambda n: 2 * n,
    "1": lambda n: 1,
    "no text": lambda n: b"\xff" if n == 5 else n * n,
}
GENERATORS: dict[str, Callable[[int], object]] = {
    "count": lambda seed: seed,
    "few": lambda seed: seed % 2,
    "fails": lambda seed: None if seed > 2 else seed,
    "long": lambda seed: b"1" + b" " * (2**20 - 1 + seed),
}


@pytest.fixture(autouse=True)
def _stood_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def output(program: Program, stdin: str) -> bytes | None:
        name, *seed = program.argv
        found = GENERATORS[name](int(seed[0])) if seed else PROGRAMS[name](int(stdin))
        return found if isinstance(found, bytes | None) else str(found).encode()

    monkeypatch.setattr(making, "python_program", lambda source: Program((source,), {}))
    monkeypatch.setattr(making, "_output", output)
    monkeypatch.setattr(making, "fault_of_this_machine", lambda **_: None)


def problem(generator: str = "count", **more: Any) -> dict[str, Any]:
    return {"id": "p", "note": "kept", "generator": generator, "right": ["square"], "wrong": [], **more}


def made(row: dict[str, Any], num_inputs: int = 8, keep: int = 20) -> making.Made:
    return making.tests_of(making._problem(row), num_inputs, keep)  # pyright: ignore[reportPrivateUsage]


def inputs(of: making.Made) -> list[int]:
    return [int(case.stdin) for case in of.tests]


def test_inputs_are_kept_where_right_programs_agree_and_a_wrong_one_fails():
    found = made(problem(right=["square", "square but for 3"], wrong=["double", "1"]))
    # 3 is no test: a right program crashes. Doubles are squares at 0 and 2, and 1 is right at 1: all others tell.
    assert inputs(found) == [0, 1, 2, 4, 5, 6, 7] and [case.expected for case in found.tests][3] == "16"
    assert (found.generated, found.agreed, found.telling, found.caught, found.wrong) == (8, 7, 7, 2, 2)
    found = made(problem(right=["square"], wrong=["double"]))
    assert inputs(found) == [1, 3, 4, 5, 6, 7] and found.telling == 6
    assert inputs(made(problem(right=["square", "square, signed at 4"], wrong=["1"]))) == [0, 2, 3, 5, 6, 7]


def test_few_tests_still_catch_every_wrong_program_that_any_does():
    found = made(problem(wrong=["square, signed at 4", "double"]), keep=2)
    assert 4 in inputs(found) and len(found.tests) == 2 and found.caught == 2
    assert inputs(made(problem(wrong=["square, signed at 4"]))) == [4]
    never = made(problem(wrong=["square"]))
    assert never.tests == () and never.caught == 0 and "0 of 1 wrong programs caught" in never.told("p")


def test_without_wrong_programs_the_second_phase_is_left_out():
    assert inputs(made(problem(), keep=3)) == [0, 1, 2]


def test_what_gives_no_input_or_no_output_is_counted():
    found = made(problem("fails"))
    assert (found.generated, found.unfit) == (3, 5) and "5 runs of the generator gave no input" in found.told("p")
    assert made(problem("few")).generated == 2
    assert 5 not in inputs(made(problem(right=["no text"])))


def test_the_input_that_catches_most_is_kept_first():
    found = made(problem(wrong=["1", "square, signed at 4"]), keep=1)
    assert inputs(found) == [4] and found.caught == 2


def test_more_than_a_mebibyte_is_no_input():
    found = made(problem("long"), num_inputs=3)
    assert (found.generated, found.agreed) == (1, 1)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_keep_what_else_they_hold_and_problems_without_tests_are_left_out_and_said(tmp_path: Path):
    said: list[str] = []
    file = write(tmp_path / "in.jsonl", problem(), problem(id="none", wrong=["square"]), problem(id=3))
    making.make_tests(file, tmp_path / "out.jsonl", num_inputs=2, keep=9, say=said.append)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["p", 3]
    tests = [{"stdin": "0", "stdout": "0"}, {"stdin": "1", "stdout": "1"}]
    assert rows[0] == {"id": "p", "note": "kept", "tests": tests}
    assert len(said) == 4 and "2 of 3 problems written" in said[-1] and "1 without a test left out" in said[-1]


def test_ended_on_the_way_the_same_call_goes_on_and_another_is_refused(tmp_path: Path, monkeypatch):
    file = write(tmp_path / "in.jsonl", *(problem(id=n) for n in range(4)))
    whole = tmp_path / "whole.jsonl"
    making.make_tests(file, whole, num_inputs=3, keep=9, say=lambda _: None)
    out, asked = tmp_path / "out.jsonl", list[str]()
    real = making.tests_of

    def interrupted(problem: making.Problem, num_inputs: int, keep: int) -> making.Made:
        asked.append(problem.id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(problem, num_inputs, keep)

    monkeypatch.setattr(making, "tests_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        making.make_tests(file, out, num_inputs=3, keep=9, say=lambda _: None)
    with out.open("a") as torn:
        torn.write('{"id": 2, "te')
    with pytest.raises(DataError, match="holds tests of something else"):
        making.make_tests(file, out, num_inputs=4, keep=9, say=lambda _: None)
    making.make_tests(file, out, num_inputs=3, keep=9, say=lambda _: None)
    assert out.read_bytes() == whole.read_bytes() and asked == ["0", "1", "2", "2", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ([], "a problem is an object"),
        (problem(id=None), "id should be"),
        (problem(generator=" "), "generator should be a Python program"),
        (problem(right=[]), "right should have at least one program"),
        (problem(wrong="square"), "wrong should be a list of programs"),
        (problem(language="java"), "language should be python or cpp"),
    ],
)
def test_a_malformed_problem_is_refused_with_its_place_before_anything_runs(row, fault, tmp_path: Path):
    file = write(tmp_path / "in.jsonl", problem(), row)
    with pytest.raises(DataError, match=f"line 2: {fault}"):
        making.make_tests(file, tmp_path / "out.jsonl", num_inputs=2, keep=9, say=lambda _: None)
    assert not (tmp_path / "out.jsonl").exists()


def test_without_a_sandbox_nothing_is_made(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(making, "fault_of_this_machine", lambda **_: "no bwrap")
    with pytest.raises(RewardError, match="no bwrap"):
        making.make_tests(write(tmp_path / "in.jsonl", problem()), tmp_path / "o", num_inputs=2, keep=9, say=print)
