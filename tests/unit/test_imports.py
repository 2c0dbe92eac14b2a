"""No circle among the package's files, imports for types alone included; no class name that means two things; no file
or function that is too long to be read at once."""

import ast
import functools
from collections import defaultdict
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@functools.cache
def modules(package: Path) -> dict[str, ast.Module]:
    """Of a package's files, by their dotted names."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which files each file imports, wherever in it: at its top, under TYPE_CHECKING, in a function."""
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        wanted: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module, f"{name}: a relative import"
                files = {f"{node.module}.{alias.name}" for alias in node.names}
                # `from a import b` is of the file b of a, or of a's own __init__.
                wanted |= files & trees.keys() if files <= trees.keys() else files | {node.module}
        found[name] = wanted & trees.keys()
    return found


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """The files of a circle, if there is one."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def twice(trees: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Class names, and the files that define them, where those are several."""
    found = defaultdict(list)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return {name: files for name, files in found.items() if len(files) > 1}


def test_no_file_imports_itself_through_others():
    assert circle(imports(modules(ROOT / "r1mega"))) == []


def test_no_class_name_is_defined_twice():
    assert twice(modules(ROOT / "r1mega")) == {}


def too_long(trees: Mapping[str, ast.Module], lines: Mapping[str, int]) -> list[str]:
    """Files of more than 350 lines and functions of more than 80."""
    found = [f"{name}: {num} lines" for name, num in lines.items() if num > 350]
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                num = (node.end_lineno or 0) - node.lineno + 1
                found += [f"{name}.{node.name}: {num} lines"] if num > 80 else []
    return found


def test_no_file_and_no_function_is_too_long():
    trees, package = modules(ROOT / "r1mega"), ROOT / "r1mega"
    lines = {str(f.relative_to(package)): f.read_bytes().count(b"\n") for f in sorted(package.rglob("*.py"))}
    assert len(lines) == len(trees) and too_long(trees, lines) == []
    body = "\n".join(["def f():", *["    pass"] * 80])
    assert too_long({"p": ast.parse(body)}, {"p": 351, "q": 350}) == ["p: 351 lines", "p.f: 81 lines"]


@pytest.mark.parametrize(
    "line",
    [
        "from p.b import B",
        "from p import b",
        "import p.b",
        "if TYPE_CHECKING:\n    from p.b import B",
        "def f():\n    import p.b",
    ],
)
def test_circles_and_names_are_found_wherever_they_stand(line: str, tmp_path: Path):
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(f"{line}\nclass A: ...\n")
    (package / "b.py").write_text("def f():\n    class A: ...\n")
    assert circle(imports(modules(package))) == []
    assert twice(modules(package)) == {"A": ["p.a", "p.b"]}
    modules.cache_clear()
    (package / "b.py").write_text("from p.c import C\n")
    (package / "c.py").write_text("import p.a\n")
    assert set(circle(imports(modules(package)))) == {"p.a", "p.b", "p.c"}
    assert twice(modules(package)) == {}
