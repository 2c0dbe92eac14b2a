"""`r1mega make-tests`: test cases for one's own problems, in the report's two phases (v2 B.3).

A problem's generator is run in the sandbox, once for each number from 0, and prints an input. First phase: an input
is kept where the known right programs end as they should and agree; what they print is the expected output. Second
phase: of those, the ones that a known wrong program fails.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from r1mega.data import lines
from r1mega.errors import DataError, RewardError
from r1mega.rewards.programs.build import DoesNotCompile, Program, cpp_program, python_program
from r1mega.rewards.programs.compare import same_output
from r1mega.rewards.programs.judge import check, checker_program, fault_of
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.programs.task import Case, Checker, checker_of
from r1mega.rewards.sandbox.slots import slot
from r1mega.rewards.sandbox.sound import fault_of_this_machine, sound_run
from r1mega.runtime.files import write_json

OWN_FIELDS = ("generator", "right", "wrong")
"""What a problem has for its tests alone, and the written row has no more."""
MAX_INPUT_BYTES = 2**20
SETTINGS = CodeSettings()
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Problem:
    """A checked row."""

    id: str
    language: str
    generator: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    checker: Checker | None
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Made:
    """The tests of a problem, and what became of its inputs."""

    tests: tuple[Case, ...]
    generated: int
    """Different inputs."""
    unfit: int
    """Runs of the generator that gave none: it failed, or printed what is no text, or too much."""
    agreed: int
    """Inputs on which the right programs agree."""
    telling: int
    """Of those, inputs that a wrong program fails."""
    caught: int
    """Wrong programs that a kept test fails."""
    wrong: int

    def told(self, id: str) -> str:
        """One line for people."""
        said = (
            f"{id}: {self.generated} different inputs, {self.agreed} on which the right programs agree, "
            f"{self.telling} that a wrong one fails, {len(self.tests)} kept; "
            f"{self.caught} of {self.wrong} wrong programs caught"
        )
        return said + (f"; {self.unfit} runs of the generator gave no input" if self.unfit else "")


def make_tests(file: Path, out: Path, *, num_inputs: int, keep: int, say: Callable[[str], None]) -> None:
    """Write each problem of `file` with its tests to `out`. Ended on the way, the same call goes on.

    Raises:
        DataError: a problem is malformed; `out` is of something else.
        RewardError: this machine has no sandbox, or it fails.
    """
    problems = read_problems(file)
    if (fault := fault_of_this_machine(cpp=any(p.language == "cpp" for p in problems))) is not None:
        raise RewardError(fault)
    note = out.with_name(f".{out.name}.unfinished")
    digest = hashlib.sha256(file.read_bytes() + repr((num_inputs, keep)).encode()).hexdigest()
    done, dropped, position = _begun(note, out, digest)
    with out.open("r+b" if out.exists() else "w+b") as written:
        written.truncate(position)
        written.seek(position)
        for number, problem in enumerate(problems[done:], done + 1):
            made = tests_of(problem, num_inputs, keep)
            say(made.told(problem.id))
            if made.tests:
                tests = [{"stdin": case.stdin, "stdout": case.expected} for case in made.tests]
                row = {name: value for name, value in problem.row.items() if name not in OWN_FIELDS} | {
                    "tests": tests
                }
                written.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
                written.flush()
                os.fsync(written.fileno())
            dropped += not made.tests
            write_json(note, {"of": digest, "done": number, "dropped": dropped, "bytes": written.tell()})
    note.unlink()
    say(f"{len(problems) - dropped} of {len(problems)} problems written to {out}; {dropped} without a test left out")


def _begun(note: Path, out: Path, digest: str) -> tuple[int, int, int]:
    """Problems done, those left out, and where the output goes on."""
    if note.exists():
        said = json.loads(note.read_text(encoding="utf-8"))
        if said["of"] == digest and out.exists() and out.stat().st_size >= said["bytes"]:
            return said["done"], said["dropped"], said["bytes"]
    elif not out.exists():
        write_json(note, {"of": digest, "done": 0, "dropped": 0, "bytes": 0})
        return 0, 0, 0
    raise DataError(f"{out} holds tests of something else, or is finished: move it, or write to another -o")


def read_problems(file: Path) -> list[Problem]:
    """All problems of a file, checked before any program runs. Raises DataError."""
    found: list[Problem] = []
    for value, where in lines.rows(file, "problems"):
        try:
            found.append(_problem(value))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
    if not found:
        raise DataError(f"{file}: there is no problem in it")
    return found


def _problem(value: Any) -> Problem:
    if not isinstance(value, dict):
        raise ValueError("a problem is an object")
    if not isinstance(value.get("id"), str | int) or isinstance(value["id"], bool):
        raise ValueError("id should be a text or a whole number")
    language = value.get("language", "python")
    if language not in ("python", "cpp"):
        raise ValueError(f"language should be python or cpp, and is {language!r}"[:120])
    if not isinstance(value.get("generator"), str) or not value["generator"].strip():
        raise ValueError("generator should be a Python program that prints the input of the number it is given")
    right, wrong = (_sources(value, name) for name in ("right", "wrong"))
    if not right:
        raise ValueError("right should have at least one program that is known to be right")
    checker = checker_of(value.get("checker"))
    return Problem(str(value["id"]), language, value["generator"], right, wrong, checker, value)


def _sources(value: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(source, str) and source.strip() for source in found):
        raise ValueError(f"{name} should be a list of programs, each a text")
    return tuple(found)


def tests_of(problem: Problem, num_inputs: int, keep: int) -> Made:
    """The tests of a problem, from `num_inputs` runs of its generator; at most `keep` of them.

    Raises RewardError: the sandbox fails, or a program that is known does not compile.
    """
    generator = python_program(problem.generator)
    right = [_program(problem, source, f"right[{i}]") for i, source in enumerate(problem.right)]
    wrong = [_program(problem, source, f"wrong[{i}]") for i, source in enumerate(problem.wrong)]
    checker = None if problem.checker is None else checker_program(problem.checker, SETTINGS)
    printed = _each(lambda seed: _input(generator, seed), range(num_inputs))
    inputs = list(dict.fromkeys(text for text in printed if text is not None))
    agreed = [case for case in _each(lambda text: _agreed(right, checker, text), inputs) if case is not None]
    failing = _each(lambda case: frozenset(i for i, p in enumerate(wrong) if not _passes(p, checker, case)), agreed)
    kept = _chosen(failing, keep) if wrong else list(range(min(keep, len(agreed))))
    caught = frozenset[int]().union(*(failing[i] for i in kept))
    return Made(
        tuple(agreed[i] for i in kept), len(inputs), printed.count(None), len(agreed), sum(map(bool, failing)),
        len(caught), len(wrong),
    )  # fmt: skip


def _each(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """In order, on as many slots as there are."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(function, items))


def _chosen(failing: Sequence[frozenset[int]], keep: int) -> list[int]:
    """Places of the inputs to keep: first those that catch a wrong program that none before does, then others."""
    caught = set[int]()
    first: list[int] = []
    for place in sorted(range(len(failing)), key=lambda place: -len(failing[place])):
        if failing[place] - caught:
            caught |= failing[place]
            first.append(place)
    others = [place for place, some in enumerate(failing) if some and place not in first]
    return sorted([*first, *others][:keep])


def _program(problem: Problem, source: str, name: str) -> Program:
    if problem.language == "python":
        return python_program(source)
    try:
        with slot() as number:
            assert number is not None
            return cpp_program(source, SETTINGS, number)
    except DoesNotCompile as error:
        raise RewardError(f"problem {problem.id}: {name} does not compile: {error}") from error


def _input(generator: Program, seed: int) -> str | None:
    """What the generator prints for a number; None where that is no input."""
    output = _output(Program((*generator.argv, str(seed)), generator.files), "")
    if output is None or len(output) > MAX_INPUT_BYTES:
        return None
    try:
        return output.decode()
    except UnicodeDecodeError:
        return None


def _agreed(right: Sequence[Program], checker: Program | None, text: str) -> Case | None:
    """The test of an input, where all right programs agree on it."""
    outputs = [_output(program, text) for program in right]
    if outputs[0] is None:
        return None
    try:
        case = Case(stdin=text, expected=outputs[0].decode())
    except UnicodeDecodeError:
        return None
    return case if all(_is_right(output, checker, case) for output in outputs) else None


def _passes(program: Program, checker: Program | None, case: Case) -> bool:
    return _is_right(_output(program, case.stdin), checker, case)


def _is_right(output: bytes | None, checker: Program | None, case: Case) -> bool:
    if output is None or checker is None:
        return output is not None and same_output(output, case.expected)
    with slot() as number:
        assert number is not None
        return check(checker, case, output, SETTINGS.run, number) is None


def _output(program: Program, stdin: str) -> bytes | None:
    """What a program prints; None where it does not end as it should."""
    with slot() as number:
        assert number is not None
        ran = sound_run(program.argv, program.files, stdin.encode(), SETTINGS.run, number)
    return ran.output if fault_of(ran, SETTINGS.run) is None else None
