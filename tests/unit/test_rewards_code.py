"""Where a program stands in a response, what its question says, how outputs and values are compared, and mending."""

import json

import pytest

from r1mega.buffers import Int32s
from r1mega.data.question import Question
from r1mega.errors import RewardError
from r1mega.rewards.accuracy import Accuracy, can_be_right
from r1mega.rewards.code import Code
from r1mega.rewards.programs.answer import find_answer, program_in
from r1mega.rewards.programs.compare import same_output, same_value
from r1mega.rewards.programs.patch import PatchFault, apply
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.programs.task import task_of
from r1mega.rewards.reward import Answer
from r1mega.rewards.sandbox.bounds import Bounds
from r1mega.samples import Prompt, VerdictStatus

pytest_plugins = ["sandbox_here"]


def fenced(source: str, language: str = "python") -> str:
    return f"<think>hm</think>\n```{language}\n{source}\n```\n"


@pytest.mark.parametrize(
    ("response", "source"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```py\nprint(1)\n```\nor better\n```Python3\nprint(2)\n```\nwhich prints\n```\n2\n```", "print(2)\n"),
        ("<think>\n```python\nprint(1)\n```\n</think>done", None),
        ("<think>\n```python\nprint(1)\n```\n", None),
        ("<think>a</think><answer>\n```python\nprint(3)\n```\n</answer> ```python\nprint(4)\n```", "print(3)\n"),
        ("<answer>\n```python\n1\n```\n</answer><answer>\n```python\n2\n```\n</answer>", None),
        ("```python\nprint(1)\n```\n```python\nprint(2)", None),
        ("print(1)", None),
        ("<answer>print(1)</answer>", None),
        ("```\nprint(1)\n```", None),
        ("```cpp\nint main(){}\n```", None),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''\n"),
        ("```python\nprint(1)\n```\n```cpp\nint main(){}\n```", "print(1)\n"),
    ],
)
def test_the_program_is_the_last_block_of_its_language_after_the_thinking(response, source):
    answer = find_answer(response)
    found = None if answer is None else program_in(answer, "python")
    assert found == (None if source is None else ("python", source))


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        (b"1 2  \r\n3\t\n\n\n", "1 2\n3", True),
        (b"1 2\n3", "1 2\n3\n", True),
        (b" 1", "1", False),
        (b"1\n\n2", "1\n2", False),
        (b"1  2", "1 2", False),
        (b"", "", True),
        (b"\xff", "\u00ff", False),
        ("é".encode(), "é", True),
        (b"1\x00", "1", False),
    ],
)
def test_outputs_are_equal_but_for_white_space_at_the_ends_of_lines_and_of_the_whole(output, expected, same):
    assert same_output(output, expected) is same


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (5, 5, True),
        (5.0, 5, True),
        ("5", 5, False),
        (True, 1, False),
        (1, True, False),
        (None, False, False),
        (0.1 + 0.2, 0.3, True),
        (0.3001, 0.3, False),
        (5.0000000001, 5, False),
        (0.9999999999999999, 1.0, True),
        (1.000001, 1.0, False),
        (10**18 + 1, 1e18, False),
        (["list", 1, 2], [1, 2], True),
        (["tuple", 1, ["list"]], [1, []], True),
        (["list", 2, 1], [1, 2], False),
        (["set", 2, 1], [1, 2], True),
        (["set", 2, True], [1, 2], False),
        (["set", ["tuple", 1, 2]], [[1, 2]], True),
        (["dict", [1, "a"]], {"1": "a"}, True),
        (["dict", ["1", "a"]], {"1": "b"}, False),
        (["dict"], [], False),
        (["float", "inf"], 1e308, False),
        (["list", "a"], "['a']", False),
    ],
)
def test_values_are_compared_by_what_they_are(value, expected, same):
    assert same_value(json.dumps(value).encode(), expected, literal=False) is same


def test_expected_values_that_are_all_written_as_literals_are_read_as_such():
    def literal(*expected):
        return task_of({"tests": [{"call": "f()", "expected": each} for each in expected]}).literal

    assert literal("5", "[1, 2]", "'a'") and not literal("5", "abc") and not literal("5", 5)
    assert same_value(b'"a"', "'a'", literal=True) and not same_value(b'"a"', "'a'", literal=False)
    assert same_value(b"5", "5", literal=True) and same_value(b'["tuple", 1, 2]', "(1, 2)", literal=True)
    assert same_value(b'"5"', "5", literal=True) and not same_value(b"6", "5", literal=True)
    assert not same_value(b"5", "5", literal=False)


@pytest.mark.parametrize("text", [b"", b"[", b"nonsense", b"[" * 100_000, b"[]", b"{}"])
def test_what_a_program_prints_for_a_value_is_read_with_care(text):
    assert not same_value(text, [1], literal=False)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({}, "tests should be a list of at least one test"),
        ({"tests": []}, "tests should be a list of at least one test"),
        ({"tests": [{"stdin": "1"}]}, r"tests\[0\].stdout should be a text"),
        ({"tests": [{"stdin": 1, "stdout": "1"}]}, r"tests\[0\].stdin should be a text"),
        ({"tests": [{"call": "f()"}]}, "has a call and no expected value"),
        ({"tests": [{"call": 5, "expected": 1}]}, "should be an expression"),
        ({"tests": [{"call": "f()", "expected": 1}, {"stdin": "", "stdout": ""}]}, "should all have"),
        ({"tests": [{"stdin": "", "stdout": ""}], "language": "java"}, "language should be python or cpp"),
        ({"tests": [{"stdin": "", "stdout": ""}], "time_s": 0}, "time_s should be a number above 0"),
        ({"tests": [{"stdin": "", "stdout": ""}], "checker": {}}, "checker should be the text"),
        ({"tests": [{"call": "f()", "expected": 1}], "checker": "pass"}, "a checker reads outputs"),
    ],
)
def test_a_question_that_cannot_be_judged_says_why_and_is_unscorable(entry, fault):
    with pytest.raises(ValueError, match=fault):
        task_of(entry)
    assert not can_be_right(Question("1", "code", "q", "", entry))
    score = Accuracy().judge(prompt("code", entry), Answer(fenced("print(1)"), 5), ())
    assert score.status is VerdictStatus.UNSCORABLE and score.reason == Code().fault_of(entry)


def test_calls_are_written_as_expressions_or_by_name_and_arguments():
    def calls(language, *tests):
        return [c.call for c in task_of({"language": language, "tests": [t | {"expected": 0} for t in tests]}).cases]

    assert calls("python", {"call": "f(1)"}, {"call": ["f", [1, None], "a"]}) == ["f(1)", "f([1, None], 'a')"]
    assert calls("python", {"call": {"function": "S().f", "args": [1], "kwargs": {"k": 2}}}) == ["S().f(1, k=2)"]
    assert calls("python", {"call": "f", "args": [True]}) == ["f(True)"]
    assert calls("cpp", {"call": ["f", [1, 2], 'a"', True, 2**40]}) == [
        'f({1, 2}, std::string("a\\""), true, 1099511627776LL)'
    ]


BUGGY = "def add(a, b):\n    return a - b\n\n\nprint(add(*map(int, input().split())))\n"
MENDED = BUGGY.replace("a - b", "a + b")
PATCH = """--- a/answer.py
+++ b/answer.py
@@ -1,3 +1,3 @@
 def add(a, b):
-    return a - b
+    return a + b

"""


def test_a_patch_is_applied_exactly_or_not_at_all():
    assert apply(PATCH, BUGGY) == MENDED
    assert apply(PATCH.replace("-1,3 +1,3", "-9,9 +9,9"), BUGGY) == MENDED
    assert apply("@@ -0,0 +1 @@\n+import sys\n", "x\n") == "import sys\nx\n"
    assert apply("@@ -2 +1,0 @@\n-b\n", "a\nb\nc\n") == "a\nc\n"
    assert apply("@@ -1 +1 @@\n-a\n+A\n@@ -3 +3 @@\n-c\n+C\n", "a\nb\nc") == "A\nb\nC\n"
    for patch, text, fault in (
        (PATCH, MENDED, "stand nowhere"),
        ("@@ -9 +9 @@\n-a\n+b\n", "a\na\n", "in several places"),
        ("nothing", "a\n", "no hunk"),
        (PATCH + PATCH, BUGGY + BUGGY, "several files"),
        ("@@ -1 +1 @@\n-a\n*b\n", "a\n", "begins with none of"),
        ("@@ -5,0 +5 @@\n+b\n", "a\n", "quotes no line"),
    ):
        with pytest.raises(PatchFault, match=fault):
            apply(patch, text)


def prompt(verifier, entry):
    return Prompt("1", verifier, "q", "", Int32s(), "", entry, "code")


SUMS = [{"stdin": "2 3\n", "stdout": "5\n"}, {"stdin": "4 5\n", "stdout": "9\n"}]


@pytest.mark.usefixtures("sandbox")
def test_bugs_are_mended_by_a_patch_or_by_the_whole_file():
    entry = {"tests": SUMS, "program": BUGGY}

    def value(response):
        score = Accuracy().judge(prompt("code_fix", entry), Answer(response, 5), ())
        assert score.status is VerdictStatus.SCORED
        return score.value, score.reason

    assert value(fenced(PATCH, "diff")) == (1.0, "")
    assert value(fenced(MENDED)) == (1.0, "")
    assert value(fenced(BUGGY))[0] == 0.0
    assert value(fenced(PATCH.replace("def add", "def sub"), "diff")) == (
        0.0, "the patch cannot be applied: the lines of a hunk stand nowhere in the program",
    )  # fmt: skip
    assert Code(mends=True).fault_of({"tests": SUMS}) == "there is no program to mend"


@pytest.mark.usefixtures("sandbox")
def test_all_tests_or_a_share_of_them():
    always_five = Answer(fenced("print(5)"), 5)
    asked = prompt("code", {"tests": SUMS})
    assert Accuracy().judge(asked, always_five, ()).value == 0.0
    share = Accuracy(code=CodeSettings(counts="share")).judge(asked, always_five, ())
    assert (share.value, share.reason) == (0.5, "test 2 of 2: wrong answer")


CHECKER = """
import sys
given, output, expected = (open(path).read() for path in sys.argv[1:])
n = int(given)
try:
    a, b = map(int, output.split())
except ValueError:
    sys.exit(1)
sys.exit(0 if a + b == n and a > 0 and b > 0 else 1)
"""


@pytest.mark.usefixtures("sandbox")
def test_a_checker_takes_every_right_output():
    entry = {"tests": [{"stdin": "7\n", "stdout": "1 6\n"}], "checker": CHECKER}

    def value(source, **more):
        return Accuracy().judge(prompt("code", entry | more), Answer(fenced(source), 5), ()).value

    assert value("print(3, int(input()) - 3)") == 1.0
    assert value("print(0, 7)") == 0.0
    assert value("print('x')") == 0.0
    assert value("print(1, 6)", checker=CHECKER.replace("sys.exit(1)", "sys.exit(3)")) == 1.0
    assert value("print('x')", checker=CHECKER.replace("sys.exit(1)", "sys.exit(3)")) == 0.0


@pytest.mark.usefixtures("sandbox")
def test_a_checker_that_refuses_what_is_expected_is_our_fault_and_no_answers():
    entry = {"tests": [{"stdin": "7\n", "stdout": "1 6\n"}], "checker": "import sys\nsys.exit(3)"}
    with pytest.raises(RewardError, match="ends with exit 3 on the expected output"):
        Code().judge(fenced("print(1, 6)"), entry, CodeSettings())


@pytest.mark.usefixtures("sandbox")
def test_a_questions_longer_time_lengthens_the_wall_too():
    settings = CodeSettings(run=Bounds(cpu_s=1, wall_s=0.5))
    source = fenced("import time\ntime.sleep(1)\nprint(5)")
    tests = [{"stdin": "", "stdout": "5"}]
    assert "had not ended after 0.5 s" in Code().judge(source, {"tests": tests}, settings).reason
    assert Code().judge(source, {"tests": tests, "time_s": 10}, settings).passed == 1
