"""Each of the two GPU environments has what the processes in it import, and neither asks for the other's engine."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IN_WORKERS = "r1mega.weights.worker"
"""What vLLM's workers load by name, in the engine's environment."""


def locked(name: str) -> set[str]:
    return set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / f"requirements/{name}.lock").read_text(), flags=re.M))


def imports(file: Path, top: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; `top`: when it is itself imported, not when one of its functions runs."""
    nodes = [ast.parse(file.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif not (top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)


def foreign(names: set[str]) -> dict[str, set[str]]:
    """Of dotted names, packages that are neither Python's nor in this tree, with their distributions' names."""
    ours = {"r1mega"} | {file.stem for folder in ("tests", "tools") for file in (ROOT / folder).rglob("*.py")}
    found = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - ours
    of = packages_distributions()
    return {name: {re.sub(r"[-_.]+", "-", d).lower() for d in of.get(name, [name])} for name in found}


@pytest.mark.parametrize("folder", ["r1mega", "tests", "launchers"])
def test_the_trainers_lock_has_all_that_is_imported_but_vllm(folder):
    names = {name for file in (ROOT / folder).rglob("*.py") for name in imports(file)}
    used = foreign(names)
    assert "r1mega" not in used and ("torch" in used or folder == "launchers")
    lock = {name.replace("_", "-") for name in locked("gpu-trainer")}
    lacking = {n for n, of in used.items() if not {o.replace("_", "-") for o in of} & lock}
    # Of CPUs and of the engine; TE's own module is compiled from transformer-engine-torch, triton comes with torch.
    assert lacking <= {"vllm"}


def test_what_workers_load_is_torchs_and_vllms_alone():
    """When it is loaded; shims for Megatron import it where they are called for."""
    seen: set[str] = set()
    names: set[str] = set()
    to_do = [IN_WORKERS]
    while to_do:
        name = to_do.pop()
        places = [ROOT / Path(*name.split(".")).with_suffix(".py"), ROOT / Path(*name.split(".")) / "__init__.py"]
        file = next((place for place in places if place.exists()), None)
        if name in seen or file is None:
            continue
        seen.add(name)
        found = set(imports(file, top=True))
        names |= found
        to_do += [n for n in (*found, name.rpartition(".")[0]) if n.startswith("r1mega")]
    assert {IN_WORKERS, "r1mega.weights", "r1mega.weights.wire"} <= seen
    used = foreign(names)
    assert set(used) == {"torch", "vllm"}
    assert set(used) <= locked("gpu-engine")


def test_pythons_that_are_supported_are_those_of_the_locks():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13"
    said = {
        c.rpartition(" ")[2] for c in project["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    }
    lock_sh = (ROOT / "tools/lock.sh").read_text()
    assert said == set(re.findall(r"\]=(3\.\d+)", lock_sh)) == {"3.11", "3.12"}
