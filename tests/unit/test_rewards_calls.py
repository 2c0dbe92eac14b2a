"""Tests that call a function: what they may call, and what an answer finds around it."""

import pytest

from r1mega.rewards.code import Code
from r1mega.rewards.programs import judge
from r1mega.rewards.programs.call import by_reference
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.programs.task import task_of

pytest_plugins = ["sandbox_here"]


def fenced(source: str, language: str = "python") -> str:
    return f"<think>hm</think>\n```{language}\n{source}\n```\n"


@pytest.mark.parametrize(
    ("call", "language"),
    [
        ("f() == 5", "python"),
        ("sorted(f()) == [1, 2]", "python"),
        ("not f()", "python"),
        ("5 in f()", "python"),
        ("f() and g()", "python"),
        ("f() is None", "python"),
        ("sorted(f())", "python"),
        ("str(g(f(1)))", "python"),
        ("len(answer)", "python"),
        ("isinstance(f(1), int)", "python"),
        ("math.isclose(f(1), 2.5)", "python"),
        ("operator.eq(f(1), 2)", "python"),
        ("Counter(f(1))", "python"),
        ("str.lower(f('A'))", "python"),
        ("f(1).startswith('a')", "python"),
        ("f(1).__eq__(2)", "python"),
        ("f.__call__(2)", "python"),
        ("Solution().f(1).count(2)", "python"),
        ("f(1)[0]", "python"),
        ("f(1) + 1", "python"),
        ("(lambda: f(1))()", "python"),
        ("[f(1)]", "python"),
        ("f(1) if True else 2", "python"),
        ("same(f(1) == 2)", "python"),
        ("assert f(1) == 2", "python"),
        (["f().strip", 1], "python"),
        ("f() == 5", "cpp"),
        ("!f(1)", "cpp"),
        ("f(1) && g(2)", "cpp"),
        ("same(f(1) == 2)", "cpp"),
        ("f(1).size()", "cpp"),
        ("f(1)[0]", "cpp"),
        ("f(1) < 2", "cpp"),
        ("std::to_string(f(1))", "cpp"),
        ("to_string(f(1))", "cpp"),
        ("static_cast<bool>(f(1))", "cpp"),
        ("bool(f(1))", "cpp"),
        ("(f(1))", "cpp"),
        ("Solution().f(1).size()", "cpp"),
        ("[]{ return f(1) == 2; }()", "cpp"),
        ("[]{ auto r = f(1); return r.size(); }()", "cpp"),
        ("f(1", "cpp"),
    ],
    ids=str,
)
def test_what_is_judged_is_what_the_answers_own_function_gives(call, language):
    tests = [{"call": "f(1)", "expected": 1}, {"call": call, "expected": True}]
    with pytest.raises(ValueError, match=r"^tests\[1\].call: write the call and its value: "):
        task_of({"tests": tests, "language": language})
    assert Code().fault_of({"tests": tests, "language": language})


@pytest.mark.parametrize(
    ("call", "language"),
    [
        ("f()", "python"),
        ("f(g(1), h([2]))", "python"),
        ("f(set([1, 2]), float('inf'), range(3), key=len)", "python"),
        ("f([x for x in range(9) if x % 2 == 0], lambda x: g(x) == 1)", "python"),
        ("f('a == b', {'not': 1}, -1, *[2])", "python"),
        ("sum(10, 15)", "python"),
        ("sorted([3, 1], set([1]))", "python"),
        ("Solution().twoSum([2, 7], 9)", "python"),
        ("Stack(3).pop()", "python"),
        ("Solution.f(1)", "python"),
        ("f([1, 2], g(3))", "cpp"),
        ('f({1, 2}, "a == b)", \'"\', true, -1)', "cpp"),
        ("f<int>(1)", "cpp"),
        ("::space::f(1)", "cpp"),
        ('max({1, 2}, std::string("a"))', "cpp"),
        ("Solution().twoSum({2, 7}, 9)", "cpp"),
        ("Solution{}.f(std::vector<std::vector<int>>{{1}, {2}})", "cpp"),
        ("f([](int x) { return x % 2 == 0; }, 3)", "cpp"),
        ("[]{ std::vector<int> a{1, 2}; return total(a); }()", "cpp"),
        ("[] { return f(2); } ()", "cpp"),
    ],
    ids=str,
)
def test_a_call_of_the_answers_own_function_is_taken_with_all_its_arguments(call, language):
    assert task_of({"tests": [{"call": call, "expected": 0}], "language": language}).cases[0].call == call


@pytest.mark.usefixtures("sandbox")
def test_a_cpp_function_may_have_a_name_of_the_c_librarys():
    entry = {"language": "cpp", "tests": [{"call": "dup(4)", "expected": 8}]}
    assert Code().judge(fenced("int dup(int x) { return 2 * x; }", "cpp"), entry, CodeSettings()).passed == 1


SUPPLIED = """
class Solution:
    def f(self, xs: List[int], k: Optional[int] = None) -> Dict[int, Tuple[int, ...]]:
        seen: DefaultDict[int, int] = defaultdict(int)
        for x in xs:
            seen[x] += 1
        heap = [-x for x in seen]
        heapify(heap)
        low = bisect.bisect_left(sorted(seen), 2), bisect_right([1, 2], 1)
        best = max(accumulate(xs)), reduce(lambda a, b: a * b, xs), pow(2, 3, 5)
        return [-heappop(heap), gcd(12, 8) + math.inf, *low, *best, Counter(xs).most_common(1)[0][0], len(digits)]
"""


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("source", "call", "expected", "reason"),
    [
        (SUPPLIED, "Solution().f([1, 3, 3])", [3, float("inf"), 1, 1, 7, 9, 3, 3, 10], ""),
        ("def gcd(a, b):\n    return 77", "gcd(1, 2)", 77, ""),
        ("def f(x):\n    return x.index(2) + pow(2, 3)", "f([1, 2])", 9, ""),
        ("def plus(x):\n    return {1}.add(gcd(x, 2))", "gcd(12, 8)", 4, "name 'gcd' is not defined"),
        ("def f(x):\n    return nothing(x)", "f(1)", 1, "name 'nothing' is not defined"),
    ],
    ids=["supplied", "own", "builtin", "not called", "unknown"],
)
def test_the_names_that_leetcode_supplies_are_there_for_functions(source, call, expected, reason):
    entry = {"tests": [{"call": call, "expected": expected}]}
    assert reason in (found := Code().judge(fenced(source), entry, CodeSettings()).reason) and bool(found) == bool(
        reason
    )


@pytest.mark.usefixtures("sandbox")
def test_a_whole_program_imports_what_it_uses():
    said = Code().judge(fenced("print(gcd(4, 6))"), {"tests": [{"stdin": "", "stdout": "2"}]}, CodeSettings())
    assert said.reason.endswith("NameError: name 'gcd' is not defined")


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    "test", [{"stdin": "", "stdout": "1"}, {"call": "f()", "expected": 1}], ids=["stdin", "call"]
)
def test_a_program_that_leaves_with_97_is_not_said_not_to_compile(test):
    def reason(source):
        return Code().judge(fenced(source), {"tests": [test]}, CodeSettings()).reason

    assert reason("import sys\nprint('so', file=sys.stderr)\nsys.exit(97)") == (
        "test 1 of 1: crashed with exit code 97: so"
    )
    assert reason("def f(:\n  pass").startswith("test 1 of 1: does not compile: SyntaxError: invalid syntax")


OWN_INCLUDES = """
#include <iostream>
#include <string>
#include <vector>
using namespace std;
int count[100];
double y1 = 1;
int dup(int x) { return x + (count[0] = y1); }
"""
REFERENCES = """
class Solution {
    int calls = 0;
public:
    vector<string> order(vector<vector<int>>& rows, string& name, const vector<bool>& marks, int k = 2) const {
        sort(rows.begin(), rows.end());
        for (auto& row : rows) name += to_string(row[0]);
        return {name, to_string(marks.size() * k)};
    }
    int total(vector<int> xs) { int sum = 0; for (int x : xs) sum += x; return sum; }
    int total(vector<vector<int>>& xs) { return xs.size(); }
};
template <class T> T twice(T x) { return x + x; }
"""
ORDER = ["Solution().order", [[3], [1, 2]], "a{,", [True, False, True]]


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("source", "tests"),
    [
        (OWN_INCLUDES, [("dup(4)", 5)]),
        (
            REFERENCES,
            [
                (ORDER, ["a{,13", "6"]),
                ('Solution{}.order({{2, 1}}, std::string("),"), std::vector<bool>{true}, 3)', ["),2", "3"]),
                (["Solution().total", [1, 2, 3]], 6),
                ("Solution().total({{1}, {2, 3}})", 2),
                (["twice", "ab"], "abab"),
                (["twice", 4], 8),
            ],
        ),
        (
            "#include <vector>\nint f(std::vector<int>& x) { std::sort(x.begin(), x.end()); return x[0]; }",
            [("f({2, 1})", 1)],
        ),
    ],
    ids=["its own includes", "references", "forgotten includes"],
)
def test_cpp_functions_are_called_whatever_they_include_and_take(source, tests):
    entry = {"language": "cpp", "tests": [{"call": call, "expected": expected} for call, expected in tests]}
    passed = Code().judge(fenced(source, "cpp"), entry, CodeSettings())
    assert (passed.reason, passed.passed) == ("", len(tests))


@pytest.mark.usefixtures("sandbox")
def test_what_does_not_compile_is_told_of_the_answer_as_it_stands():
    entry = {"language": "cpp", "tests": [{"call": "f(1)", "expected": 1}]}
    source = "#include <vector>\nusing namespace std;\nint count[9];\nint f(int x) { return count[0] + y; }"
    assert Code().judge(fenced(source, "cpp"), entry, CodeSettings()).reason == (
        "does not compile: error: \u2018y\u2019 was not declared in this scope"
    )


@pytest.mark.parametrize(
    ("call", "given"),
    [
        ("f(1, x)", "f(1, x)"),
        ("f({1, 2}, {})", "f(R1MEGA_GIVEN({1, 2}), R1MEGA_GIVEN({}))"),
        ('f(std::string("{1}, "), "{")', 'f(r1mega_harness::held(std::string("{1}, ")), "{")'),
        ("f(std::map<int, int>{{1, 2}})", "f(std::map<int, int>{{1, 2}})"),
        ("S({1}).f(g({2}), {3})", "S(R1MEGA_GIVEN({1})).f(g({2}), R1MEGA_GIVEN({3}))"),
        ("[]{ return f({1}); }()", "[]{ return f({1}); }()"),
    ],
)
def test_arguments_of_cpp_calls_are_objects_that_a_reference_takes(call, given):
    assert by_reference(call) == given


def test_a_value_beside_the_functions_own_is_none_of_it_even_the_right_one():
    task = task_of({"language": "python", "tests": [{"call": "f()", "expected": 5}]})
    (case,) = task.cases
    for output, said in (
        (b"talk\nT5\n", None),
        (b"T6\n", "wrong answer"),
        (b"T5\nT5\n", "printed a value beside its function's"),
        (b"T5\nT6\n", "printed a value beside its function's"),
        (b"5\n", "ended before its function gave a value"),
    ):
        assert judge._judge_value(output, case, task, "T") == said  # pyright: ignore[reportPrivateUsage]
