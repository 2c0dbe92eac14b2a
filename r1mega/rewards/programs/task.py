"""What a question of code says of itself: language, tests, checker, the program to mend, limits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega.rewards.programs.call import fault_of_call, told
from r1mega.rewards.programs.compare import is_literal
from r1mega.rewards.programs.harness import call_of

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:(?:(?:\(\))?\.|::)[A-Za-z_]\w*)*")
FIELDS = ("tests", "language", "checker", "program", "time_s", "memory_mib")


@dataclass(frozen=True)
class Case:
    """One test: what a program reads and should print, or what is called and should come of it."""

    stdin: str = ""
    expected: Any = ""
    call: str = ""


@dataclass(frozen=True)
class Checker:
    """A program that says whether an output is right, where several are: /code/input, /code/output and
    /code/expected are its arguments; it leaves with 0 where the output is right, with 1 or 2 where it is wrong."""

    language: str
    source: str


@dataclass(frozen=True)
class CodeTask:
    """A checked question."""

    language: str
    """python or cpp."""
    cases: tuple[Case, ...]
    calls: bool
    """Whether the tests call a function."""
    literal: bool = False
    """Whether every expected value is a text that is a literal: so written, they are what they say."""
    checker: Checker | None = None
    program: str = ""
    """With a fault, to mend; empty where the answer is a program of its own."""
    time_s: int | None = None
    memory_mib: int | None = None


def task_of(entry: Mapping[str, Any]) -> CodeTask:
    """A question's record as a task. Raises ValueError: what is wrong, with the name of the field."""
    language = entry.get("language", "python")
    if language not in ("python", "cpp"):
        raise ValueError(f"language should be python or cpp, and is {language!r}"[:120])
    tests = entry.get("tests")
    if not isinstance(tests, list) or not tests:
        raise ValueError("tests should be a list of at least one test")
    cases = tuple(_case(test, f"tests[{index}]", language) for index, test in enumerate(tests))
    calls = bool(cases[0].call)
    if any(bool(case.call) != calls for case in cases):
        raise ValueError("tests should all have stdin and stdout, or all call and expected")
    checker = checker_of(entry.get("checker"))
    if checker is not None and calls:
        raise ValueError("a checker reads outputs, and these tests call a function")
    program = entry.get("program", "")
    if not isinstance(program, str):
        raise ValueError("program should be a text: the file to mend")
    limits = {name: _limit(entry, name) for name in ("time_s", "memory_mib")}
    literal = calls and all(is_literal(case.expected) for case in cases)
    return CodeTask(language, cases, calls, literal, checker, program, limits["time_s"], limits["memory_mib"])


def _case(test: Any, where: str, language: str) -> Case:
    if not isinstance(test, dict):
        raise ValueError(f"{where} should be an object")
    if "call" in test:
        if "expected" not in test:
            raise ValueError(f"{where} has a call and no expected value")
        return Case(expected=test["expected"], call=_call(test, where, language))
    found = {name: test.get(name, None if name == "stdout" else "") for name in ("stdin", "stdout")}
    for name, text in found.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}.{name} should be a text; a test has stdin and stdout, or call and expected")
    return Case(stdin=found["stdin"], expected=found["stdout"])


def _call(test: Mapping[str, Any], where: str, language: str) -> str:
    """The expression that a test calls. Raises ValueError, also where more than the answer's function runs."""
    call = _expression(test, where, language)
    if (why := fault_of_call(call, language)) is not None:
        raise ValueError(told(where, call, why))
    return call


def _expression(test: Mapping[str, Any], where: str, language: str) -> str:
    call = test["call"]
    arguments, named = test.get("args", []), test.get("kwargs", {})
    if isinstance(call, dict):
        arguments, named = call.get("args", []), call.get("kwargs", {})
        call = call.get("function", call.get("name"))
    elif isinstance(call, list):
        call, arguments = (call[0] if call else None), call[1:]
    elif isinstance(call, str) and call.strip() and not (_IDENTIFIER.fullmatch(call.strip()) and "args" in test):
        return call.strip()
    if not isinstance(call, str) or not _IDENTIFIER.fullmatch(call.strip()):
        raise ValueError(f'{where}.call should be an expression such as "add(1, 2)", or a list ["add", 1, 2]')
    if not isinstance(arguments, list) or not isinstance(named, dict) or (named and language == "cpp"):
        raise ValueError(f"{where}.call: args should be a list, kwargs (Python alone) an object")
    try:
        return call_of(call.strip(), arguments, named, language)
    except ValueError as error:
        raise ValueError(f"{where}.call: {error}") from error


def checker_of(value: Any) -> Checker | None:
    """A question's checker, where it has one. Raises ValueError."""
    if value is None:
        return None
    found = {"source": value, "language": "python"} if isinstance(value, str) else value
    if not isinstance(found, dict) or not isinstance(found.get("source"), str) or not found["source"].strip():
        raise ValueError("checker should be the text of a Python program, or an object with language and source")
    if found.get("language", "python") not in ("python", "cpp"):
        raise ValueError(f"checker.language should be python or cpp, and is {found.get('language')!r}"[:120])
    return Checker(found.get("language", "python"), found["source"])


def _limit(entry: Mapping[str, Any], name: str) -> int | None:
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1 << 20:
        raise ValueError(f"{name} should be a number above 0, and is {value!r}"[:120])
    return max(1, -int(-value // 1))
