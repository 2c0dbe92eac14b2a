"""What stands around an answer's program inside the sandbox: its start, and the call of a function.

Nothing here is a secret or decides anything: what a test expects never enters the sandbox, and the value that a call
gives is printed behind a token of this one run, by which the judge outside tells it from what the program prints. A
program that prints a value there itself has given that value, right or wrong.
"""

import builtins
import importlib
import json
import re
from collections.abc import Sequence
from typing import Any

from r1mega.rewards.programs.call import by_reference

COMPILE_CODE = 97
"""Exit code of a Python program that cannot be compiled. Others may leave with it too: it is a reason, no verdict."""
COMPILE_MARK = "does not compile: "
"""What then stands before the last of its errors."""
SUPPLIED = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "typing",
)  # fmt: skip
"""Modules whose names LeetCode and LiveCodeBench (lcb_runner/evaluation/testing_util.py) put before an answer by
`from ... import *`, a later one's before an earlier one's and Python's own before all; and the modules but typing."""


def _supplied() -> dict[str, str]:
    """Name -> the module from which it is."""
    found: dict[str, str] = {}
    for name in SUPPLIED:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [each for each in vars(module) if not each.startswith("_")]
        found |= {each: name for each in public if not hasattr(builtins, each)}
    return found | {name: "" for name in SUPPLIED if name != "typing"}


# Python without `site`, which costs more than the rest of its start; programs do use its two functions.
START = f"""
def _program():
    import builtins, sys, _sitebuiltins
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    sys.argv[0] = "/code/answer.py"
    with open("/code/answer.py", "rb") as file:
        source = file.read()
    globals()["__file__"] = "/code/answer.py"
    try:
        return compile(source, "/code/answer.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        sys.stderr.write(f"{COMPILE_MARK}{{type(error).__name__}}: {{error}}")
        sys.exit({COMPILE_CODE})
exec(globals().pop("_program")())
"""

CALL = f"""
import json, math, os, sys
from collections import deque

SUPPLIED = {_supplied()}

def encoded(value, depth=0):
    if depth > 100:
        raise ValueError("a value nested deeper than 100 levels")
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else ["float", repr(float(value))]
    for kinds, name in (((list, deque, range), "list"), (tuple, "tuple"), ((set, frozenset), "set")):
        if isinstance(value, kinds):
            return [name, *(encoded(item, depth + 1) for item in value)]
    if isinstance(value, dict):
        return ["dict", *([encoded(key, depth + 1), encoded(item, depth + 1)] for key, item in value.items())]
    raise TypeError(f"a value of type {{type(value).__name__}}, which no test can expect")

# Only what the answer names is imported: all of it takes longer than the rest of the start.
def supply(code, scope):
    import importlib
    names, left = set(), [code]
    while left:
        one = left.pop()
        names.update(one.co_names)
        left += (inside for inside in one.co_consts if isinstance(inside, type(code)))
    given = {{}}
    for name in names & SUPPLIED.keys():
        module = importlib.import_module(SUPPLIED[name] or name)
        if not SUPPLIED[name] or hasattr(module, name):
            given[name] = getattr(module, name) if SUPPLIED[name] else module
    scope.update(given)
    return given

def answered():
    import builtins, types, _sitebuiltins
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    token, call = json.loads(sys.stdin.buffer.read())
    channel = os.dup(1)
    os.dup2(2, 1)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    sys.argv[0] = "/code/answer.py"
    sys.set_int_max_str_digits(0)
    with open("/code/answer.py", "rb") as file:
        source = file.read()
    try:
        code = compile(source, "/code/answer.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        sys.stderr.write(f"{COMPILE_MARK}{{type(error).__name__}}: {{error}}")
        sys.exit({COMPILE_CODE})
    module = sys.modules["answer"] = types.ModuleType("answer")
    module.__file__ = "/code/answer.py"
    given = supply(code, module.__dict__)
    exec(code, module.__dict__)
    call = compile(call, "the call", "eval", dont_inherit=True)
    name = call.co_names[0]
    if name in given and module.__dict__.get(name) is given[name]:
        raise NameError(f"name {{name!r}} is not defined")  # the answer has to have its function itself
    value = json.dumps(encoded(eval(call, module.__dict__)))
    sys.stderr.flush()
    message = memoryview(f"{{token}}{{value}}\\n".encode("utf-8", "surrogatepass"))
    while message:
        message = message[os.write(channel, message):]
    os._exit(0)

answered()
"""

_CPP_FRONT = "#include <bits/stdc++.h>\n"
# What is used below, and no header more: names of others could be the answer's own.
_CPP_WRITING = r"""
#include <sys/syscall.h>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
extern "C" long syscall(long, ...) noexcept;
namespace r1mega_harness {
// A list given to a function, as whatever its parameter is or refers to.
template <class T> T takes(T);
template <class T> struct Listed : std::bool_constant<!std::is_scalar_v<T>> {};
template <class T> struct Listed<std::initializer_list<T>> : std::false_type {};
template <class F> struct Given {
  F make;
  template <class T, class V = std::remove_cv_t<T>>
    requires(Listed<V>::value && requires(F f) { f.template operator()<V>(); })
  operator T&() const { return *new V(make.template operator()<V>()); }
};
template <class F> Given(F) -> Given<F>;
#define R1MEGA_GIVEN(...) r1mega_harness::Given{ \
  []<class T>() -> decltype(r1mega_harness::takes<T>(__VA_ARGS__)) { return __VA_ARGS__; }}
template <class T> T& held(T v) { return *new T(std::move(v)); }
inline void put(std::string& o, const std::string& v) {
  o += '"';
  for (unsigned char c : v) {
    char b[8];
    if (c == '"' || c == '\\') { o += '\\'; o += (char)c; }
    else if (c < 32) { std::snprintf(b, sizeof b, "\\u%04x", c); o += b; }
    else o += (char)c;
  }
  o += '"';
}
inline void put(std::string& o, const char* v) { put(o, std::string(v)); }
inline void put(std::string& o, char v) { put(o, std::string(1, v)); }
inline void put(std::string& o, bool v) { o += v ? "true" : "false"; }
template <class T> std::enable_if_t<std::is_integral_v<T>> put(std::string& o, T v) { o += std::to_string(v); }
template <class T> std::enable_if_t<std::is_floating_point_v<T>> put(std::string& o, T v) {
  char b[64];
  if (__builtin_isfinite(v)) std::snprintf(b, sizeof b, "%.17g", (double)v);
  else std::snprintf(b, sizeof b, "[\"float\", \"%s\"]", __builtin_isnan(v) ? "nan" : v > 0 ? "inf" : "-inf");
  o += b;
}
template <class T> void put(std::string& o, const std::optional<T>& v);
template <class A, class B> void put(std::string& o, const std::pair<A, B>& v);
template <class... T> void put(std::string& o, const std::tuple<T...>& v);
template <class C> auto put(std::string& o, const C& v) -> decltype(v.begin(), v.end(), void());
template <class C, class = void> struct Mapped : std::false_type {};
template <class C> struct Mapped<C, std::void_t<typename C::mapped_type>> : std::true_type {};
template <class C, class = void> struct Keyed : std::false_type {};
template <class C> struct Keyed<C, std::void_t<typename C::key_type>> : std::true_type {};
template <class C> auto put(std::string& o, const C& v) -> decltype(v.begin(), v.end(), void()) {
  o += Mapped<C>::value ? "[\"dict\"" : Keyed<C>::value ? "[\"set\"" : "[\"list\"";
  for (const auto& item : v) {
    o += ", ";
    if constexpr (Mapped<C>::value) { o += '['; put(o, item.first); o += ", "; put(o, item.second); o += ']'; }
    else if constexpr (std::is_same_v<C, std::vector<bool>>) put(o, (bool)item);
    else put(o, item);
  }
  o += ']';
}
template <class T> void put(std::string& o, const std::optional<T>& v) { if (v) put(o, *v); else o += "null"; }
template <class A, class B> void put(std::string& o, const std::pair<A, B>& v) {
  o += "[\"tuple\", "; put(o, v.first); o += ", "; put(o, v.second); o += ']';
}
template <class... T> void put(std::string& o, const std::tuple<T...>& v) {
  o += "[\"tuple\"";
  std::apply([&o](const auto&... item) { ((o += ", ", put(o, item)), ...); }, v);
  o += ']';
}
}
"""
_CPP_ANSWER = """
#define main r1mega_answers_own_main
#line 1 "answer.cpp"
@ANSWER@
#undef main
"""
# Without the word int, which answers define as another type.
_CPP_AFTER = r"""
signed main(signed argc, char** argv) {
  std::string token, out;
  for (char c; ::syscall(SYS_read, 0, &c, 1) == 1 && c != '\n';) token += c;
  // An answer's own dup(int) would stand in the C library's place.
  long channel = ::syscall(SYS_dup, 1);
  ::syscall(SYS_dup3, 2, 1, 0);
  std::freopen("/dev/null", "r", stdin);
  switch (std::atoi(argv[1])) {
    @CASES@
    default: return 1;
  }
  out = token + out + "\n";
  for (unsigned long done = 0; done < out.size();) {
    long n = ::syscall(SYS_write, channel, out.data() + done, out.size() - done);
    if (n <= 0) break;
    done += n;
  }
  std::fflush(stdout);
  ::syscall(SYS_exit_group, 0);
}
"""
_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b", re.MULTILINE)
_LEETCODE = re.compile(r"\b(?:class|struct)\s+Solution\b")
_USING = re.compile(r"\busing\s+namespace\s+std\b")


def cpp_calls(source: str, calls: Sequence[str]) -> list[str]:
    """C++ programs with one case a call, chosen by the first argument; the first that compiles is the answer's.

    All of the library stands before an answer only where it includes nothing, or where it does not compile without: a
    global `count` beside `using namespace std` is not to be mistaken for `std::count`. A class Solution without
    includes has what LeetCode puts before it.
    """
    cases = "\n    ".join(
        f"case {i}: r1mega_harness::put(out, ({by_reference(call)})); break;" for i, call in enumerate(calls)
    )
    after = _CPP_AFTER.replace("@CASES@", cases)
    answer = _CPP_ANSWER.replace("@ANSWER@", source)
    included = _INCLUDE.search(source) is not None
    using = not included and _LEETCODE.search(source) and not _USING.search(source)
    front = f"{_CPP_FRONT}{_CPP_WRITING}{'using namespace std;' if using else ''}{answer}{after}"
    return [f"{answer}{_CPP_WRITING}{after}", front] if included else [front]


def call_of(name: str, arguments: Sequence[Any], named: dict[str, Any], language: str) -> str:
    """The expression that calls a function with values of JSON."""
    literal = repr if language == "python" else _cpp_literal
    given = [literal(argument) for argument in arguments]
    given += [f"{key}={literal(argument)}" for key, argument in named.items()]
    return f"{name}({', '.join(given)})"


def _cpp_literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"std::string({json.dumps(value, ensure_ascii=False)})"
    if isinstance(value, list):
        return "{" + ", ".join(map(_cpp_literal, value)) + "}"
    if isinstance(value, int | float):
        return repr(value) + ("LL" if isinstance(value, int) and abs(value) >= 2**31 else "")
    raise ValueError(f"{type(value).__name__} is no argument of a C++ call: write the call as an expression")
