"""Programs with their verdicts, by hand (data/programs: right, other and hostile ones), and what they are tested on.

A line `## name | language | problem | verdict | reason` stands before each: right, wrong (no test need pass) or
`partly 2/4` (that many tests pass); the reason, or one of two
with "or" between, stands in that of the first failing test.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data/programs"


@dataclass(frozen=True)
class Row:
    """A program and what is to become of it."""

    name: str
    language: str
    problem: str
    verdict: str
    reason: str
    source: str

    def __str__(self) -> str:
        return self.name

    @property
    def response(self) -> str:
        return f"<think>How?</think>\nSo:\n```{self.language}\n{self.source}```\n"

    def gives(self, reason: str) -> bool:
        """Whether a reason is the expected one, or one of them."""
        return any(part in reason for part in self.reason.split(" or "))

    @property
    def entry(self) -> dict[str, Any]:
        return {"language": self.language, "tests": PROBLEMS[self.problem]}


def rows(name: str) -> list[Row]:
    """The programs of one file."""
    found = []
    for part in ("\n" + (FOLDER / name).read_text(encoding="utf-8")).split("\n## ")[1:]:
        head, _, source = part.partition("\n")
        fields = [field.strip() for field in head.split(" | ")]
        found.append(Row(*fields, *[""] * (5 - len(fields)), source=source + "\n"))  # pyright: ignore[reportArgumentType]
    assert len({row.name for row in found}) == len(found)
    return found


def _fib(n: int) -> int:
    """By powers of a matrix, as ints of this process: another way than the programs' loops."""
    result, power = (1, 0, 0, 1), (1, 1, 1, 0)
    while n:
        if n % 2:
            result = _product(result, power)
        power, n = _product(power, power), n // 2
    return result[1]


def _product(p: tuple[int, ...], q: tuple[int, ...]) -> tuple[int, ...]:
    m = 10**9 + 7
    return (
        (p[0] * q[0] + p[1] * q[2]) % m, (p[0] * q[1] + p[1] * q[3]) % m,
        (p[2] * q[0] + p[3] * q[2]) % m, (p[2] * q[1] + p[3] * q[3]) % m,
    )  # fmt: skip


_MANY = random.Random(0).sample(range(-(10**9), 10**9), 20_000)


def _outputs(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"stdin": given + "\n", "stdout": wanted + "\n"} for given, wanted in pairs]


def _calls(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"call": call, "expected": wanted} for call, wanted in pairs]


PROBLEMS: dict[str, list[dict[str, Any]]] = {
    "sum": _outputs(
        ("2 3", "5"), ("-4 9", "5"), ("1000000000 1000000000", "2000000000"), ("4000000000000 1", "4000000000001")
    ),
    "sort": _outputs(
        ("3\n3 1 2", "1 2 3"), ("1\n7", "7"), ("4\n10 9 9 -1", "-1 9 9 10"),
        (f"{len(_MANY)}\n{' '.join(map(str, _MANY))}", " ".join(map(str, sorted(_MANY)))),
    ),
    "primes": _outputs(("1", "0"), ("2", "1"), ("10", "4"), ("100", "25"), ("2000000", "148933")),
    "fib": _outputs(("0", "0"), ("1", "1"), ("10", "55"), (str(10**18), str(_fib(10**18)))),
    "words": _outputs(("b a b\na b", "a 2\nb 3"), ("Ann ann zed", "Ann 1\nann 1\nzed 1")),
    "paren": _outputs(("([]{})", "YES"), ("(]", "NO"), (")(", "NO"), ("(((", "NO")),
    "depth": _outputs(("10", "10"), ("100000", "100000")),
    "big": _outputs(("10", "1024"), ("14000", str(1 << 14_000))),
    "echo": _outputs(("héllo  wörld", "héllo  wörld"), ("日本 語\n\nend", "日本 語\n\nend")),
    "wait": _outputs(("1", "1")),
    "add": _calls(("add(2, 3)", 5), (["add", -4, 9], 5), ("add(1000000, 1)", 1000001)),
    "uniq": _calls((["uniq", [3, 1, 3, 2]], [3, 1, 2]), (["uniq", []], []), (["uniq", [1, 2, 3]], [1, 2, 3])),
    "median": _calls(("median([1, 3, 2])", 2), ("median([1, 2, 3, 4])", 2.5)),
    "counts": _calls((["counts", "aab"], {"a": 2, "b": 1}), (["counts", ""], {})),
    "palindrome": _calls(
        (["palindrome", "A man, a plan, a canal: Panama"], True), (["palindrome", "abc"], False),
        (["palindrome", "aba"], True),
    ),
    "two_sum": _calls(("Solution().twoSum([2, 7, 11, 15], 9)", [0, 1]), ("Solution().twoSum([3, 3], 6)", [0, 1])),
}  # fmt: skip
