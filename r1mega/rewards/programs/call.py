"""What a test may call: the answer's own function, and nothing around it.

What is judged is the value that this function gives. Whatever else stands around it, a comparison, `sorted`, a method
of the value, would be done inside the sandbox, by objects and names that the answer can make its own.
"""

import ast
import builtins
import re
import sys

REMEDY = (
    'what is done to a value inside the sandbox is the answer\'s to redefine. "f(2) == 5" is written '
    '{"call": "f(2)", "expected": 5}; where several values are right, have a program print and a checker judge it'
)
_AROUND = {*dir(builtins), "Counter", "OrderedDict", "defaultdict", "deque", "isclose"}
"""Names of Python that are no answer's function where they are put around one."""
_CPP_AROUND = frozenset(
    re.findall(
        r"\w+",
        """abs all_of any_of accumulate bool ceil char count const_cast decltype double dynamic_cast equal float floor
        get int is_sorted long make_pair make_tuple max max_element min min_element none_of reinterpret_cast round
        set short signed size sizeof sort sqrt static_cast stod stoi stoll string sum tie to_string tuple unsigned
        vector""",
    )
)
_TEMPLATE = r"(?:<[\w\s:,*&<>]*>)?"
_CPP_NAME = re.compile(rf"\s*((?:::)?[A-Za-z_]\w*(?:::[A-Za-z_]\w*)*){_TEMPLATE}\s*(?=[({{])")
_CPP_METHOD = re.compile(rf"\s*\.\s*[A-Za-z_]\w*{_TEMPLATE}\s*(?=\()")
_CPP_LITERAL = re.compile(
    r'R"(?P<mark>[^()\\\s]{0,16})\(.*?\)(?P=mark)"|"(?:[^"\\\n]|\\.)*"|'
    r"(?<![0-9A-Fa-f])'(?:[^'\\\n]|\\.)*'",
    re.DOTALL,
)
_CPP_COMPARISON = re.compile(r"[=!<>]=|&&|\|\||!|\b(?:and|or|not|not_eq)\b")
_CPP_LAMBDA = re.compile(r"\[[^\[\]]*\]\s*(?:\(\s*\)\s*)?(?=\{)")
_CPP_MADE = re.compile(rf"(?:std::(?:string|vector|map|set|list|deque){_TEMPLATE}\s*(?=[({{])|(?=\{{))")
_CLASS = re.compile(r"(?:.*::)?_*[A-Z]\w*")


def fault_of_call(call: str, language: str) -> str | None:
    """Why a call is none of the answer's own function alone; None where it is."""
    return _python_fault(call) if language == "python" else _cpp_fault(blanked(call))


def _python_fault(call: str) -> str | None:
    try:
        tree = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "this is no expression"
    if not isinstance(tree, ast.Call):
        return "this is not the call of a function alone"
    given: list[ast.expr] = [*tree.args, *(keyword.value for keyword in tree.keywords)]
    names = _names(tree.func)
    if names is None and isinstance(tree.func, ast.Attribute) and isinstance(tree.func.value, ast.Call):
        made = tree.func.value  # Solution().f(...)
        inner = _names(made.func)
        if inner is None or not _CLASS.fullmatch(inner[-1]):
            return "a method is called on what a function gave"
        given += [*made.args, *(keyword.value for keyword in made.keywords)]
        names = [*inner, tree.func.attr]
    if names is None:
        return "what is called has no name"
    if any(name.startswith("__") for name in names[1:]):
        return f"{names[-1]} is no function of the answer's"
    around = names[0] in _AROUND or (len(names) > 1 and names[0] in sys.stdlib_module_names)
    if around and any(map(_is_of_the_answer, given)):
        return f"{'.'.join(names)} stands around the answer's function"
    return "a comparison stands among the arguments" if any(map(_compares, given)) else None


def _names(node: ast.expr) -> list[str] | None:
    """`a.b.c` as its names; None where it is something else."""
    behind: list[str] = []
    while isinstance(node, ast.Attribute):
        behind.append(node.attr)
        node = node.value
    return [node.id, *reversed(behind)] if isinstance(node, ast.Name) else None


def _is_of_the_answer(node: ast.expr) -> bool:
    """Whether an argument has a name that is neither Python's nor its own."""
    named = [inside for inside in ast.walk(node) if isinstance(inside, ast.Name)]
    bound = {name.id for name in named if isinstance(name.ctx, ast.Store)}
    bound |= {inside.arg for inside in ast.walk(node) if isinstance(inside, ast.arg)}
    return any(name.id not in bound and name.id not in _AROUND for name in named)


def _compares(node: ast.AST) -> bool:
    """Whether what a call gives is compared. What a given function does with its arguments is its own affair."""
    if isinstance(node, ast.Lambda):
        return False
    logical = isinstance(node, ast.Compare | ast.BoolOp) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )
    if logical and any(isinstance(inside, ast.Call) for inside in ast.walk(node)):
        return True
    return any(map(_compares, ast.iter_child_nodes(node)))


def blanked(text: str) -> str:
    """C++ of the same length, with nothing in its texts and characters."""
    return _CPP_LITERAL.sub(lambda found: '"' + "_" * (len(found[0]) - 2) + '"', text)


def _cpp_fault(text: str) -> str | None:
    made = _CPP_LAMBDA.match(text)
    if made is None:
        return _cpp_call_fault(text)
    end = closing(text, made.end())
    body = text[made.end() + 1 : end]
    last = body.strip().rstrip(";").rpartition(";")[2]
    if end < 0 or not re.fullmatch(r"\s*\(\s*\)\s*", text[end + 1 :]) or body.count("return") != 1:
        return "this is not the call of a function alone"
    returned = re.fullmatch(r"\s*return\b(.*)", last, re.DOTALL)
    return "the function written here returns no call" if returned is None else _cpp_call_fault(returned[1].strip())


def _cpp_call_fault(text: str) -> str | None:
    name = _CPP_NAME.match(text)
    end = -1 if name is None else closing(text, name.end())
    if name is None or end < 0:
        return "this is not the call of a function alone"
    given = text[name.end() + 1 : end]
    method = _CPP_METHOD.match(text, end + 1)
    if method is not None:
        if not _CLASS.fullmatch(name[1]):
            return "a method is called on what a function gave"
        end = closing(text, method.end())
        given += ", " + text[method.end() + 1 : end]
    elif text[name.end()] == "{":
        return "this is not the call of a function alone"
    if end < 0 or text[end + 1 :].strip():
        return "this is not the call of a function alone"
    calls = [found[1] for found in re.finditer(r"(?<![\w:])((?:::)?[A-Za-z_]\w*(?:::\w+)*)\s*\(", given)]
    of_the_answer = any(not _is_around(call) for call in calls)
    if of_the_answer and method is None and _is_around(name[1]):
        return f"{name[1]} stands around the answer's function"
    if of_the_answer and not re.search(r"\]\s*[({]", given) and _CPP_COMPARISON.search(given):
        return "a comparison stands among the arguments"
    return None


def _is_around(name: str) -> bool:
    return name.removeprefix("::").startswith("std::") or name in _CPP_AROUND


def by_reference(call: str) -> str:
    """A C++ call with its lists and texts as objects: a parameter `std::vector<int>&` takes no `{1, 2}`."""
    text = blanked(call)
    name = _CPP_NAME.match(text)
    if name is None:
        return call
    pieces, done = list[str](), 0
    start: int | None = name.end()
    while start is not None:
        for begin, end in _arguments(text, start):
            pieces += [call[done:begin], _held(call[begin:end], text[begin:end])]
            done = end
        method = _CPP_METHOD.match(text, closing(text, start) + 1)
        start = None if method is None else method.end()
    return "".join([*pieces, call[done:]])


def _held(argument: str, text: str) -> str:
    made = _CPP_MADE.match(text)
    if made is None or closing(text, made.end()) != len(text) - 1:
        return argument
    return f"r1mega_harness::held({argument})" if made[0] else f"R1MEGA_GIVEN({argument})"


def _arguments(text: str, start: int) -> list[tuple[int, int]]:
    """Beginning and end of each argument of the list whose bracket is at `start`, without white space."""
    end = closing(text, start)
    commas, index = [start], start + 1
    while index < end:
        if text[index] in "([{":
            index = closing(text, index)
        elif text[index] == ",":
            commas.append(index)
        index += 1
    spans = zip(commas, [*commas[1:], end], strict=True)
    return [(b - len(text[a + 1 : b].lstrip()), a + 1 + len(text[a + 1 : b].rstrip())) for a, b in spans]


def closing(text: str, start: int) -> int:
    """Where the bracket at `start` of a blanked text is closed; -1 where it is not."""
    open_now: list[str] = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for index in range(start, len(text)):
        if text[index] in "([{":
            open_now.append(text[index])
        elif text[index] in pairs:
            if not open_now or open_now.pop() != pairs[text[index]]:
                return -1
            if not open_now:
                return index
    return -1


def told(where: str, call: str, why: str) -> str:
    """The refusal, in full."""
    return f"{where}.call: write the call and its value: in {call[:80]!r} {why}, and {REMEDY}"
