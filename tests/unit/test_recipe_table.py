"""docs/recipe.md says what the report says and where it is: values, functions and files are held against the tree."""

import ast
import functools
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r1mega.config.load import load_cluster
from r1mega.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/recipe.md").read_text(encoding="utf-8")
FULL_SIZE = sorted(f for folder in ("r1", "r1_zero", "distill") for f in (ROOT / "configs" / folder).glob("*.toml"))

VALUE = re.compile(r"(configs/\S+\.(?:toml|json)): ([\w.]+) = (.+)")
CODE = re.compile(r"(\S+\.py)(?::(\w+))?")
SECTION = re.compile(r"# (?:v2 )?(?:[A-D]\.\d(?:\.\d)?|\d(?:\.\d){0,2}|Eq\. \d)(?=[,:; ]|$)")
"""A section of the report behind a value, as the full-size configs write it."""


def rows() -> list[list[str]]:
    lines = [line for line in TEXT.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "the report"]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def expanded(pattern: str) -> list[Path]:
    """Files that a path with {a,b} and * names."""
    if braces := re.search(r"\{([^}]*)\}", pattern):
        head, tail = pattern[: braces.start()], pattern[braces.end() :]
        return [file for part in braces[1].split(",") for file in expanded(head + part + tail)]
    return sorted(ROOT.glob(pattern))


@functools.cache
def settings(file: Path) -> Any:
    """A config's settings with every default, as JSON; of a pipeline and a model those that stand there."""
    if file.suffix == ".json":
        return json.loads(file.read_text())
    table = tomllib.loads(file.read_text())
    if file.parent.name == "cluster":
        return load_cluster(str(file)).model_dump(mode="json")
    return table if "stages" in table else load_recipe(file).model_dump(mode="json")


def value_at(node: Any, key: str) -> Any:
    for part in key.split("."):
        node = node[int(part)] if isinstance(node, list) else node[part]
    return node


def plain(value: Any) -> Any:
    """A value as TOML and as settings have it alike: schedules without what they leave out."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items() if inner is not None}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def claims() -> Iterator[tuple[Path, str, Any]]:
    for _, _, here in rows():
        for said in quoted(here):
            if found := VALUE.fullmatch(said):
                files = expanded(found[1])
                assert files, f"{found[1]}: no such file"
                yield from ((file, found[2], tomllib.loads(f"v = {found[3]}")["v"]) for file in files)


CLAIMS = list(claims())


def test_every_row_says_where_or_why_not():
    assert len(rows()) > 90
    for row in rows():
        assert len(row) == 3, row
        said, section, here = row
        assert said and section, row
        assert quoted(here) or "Deviation: " in here or here.startswith("the same"), row


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"{c[0].stem}-{c[1]}")
def test_a_value_is_the_configs(claim: tuple[Path, str, Any]):
    file, key, value = claim
    assert plain(value_at(settings(file), key)) == value


def test_what_is_named_is_there():
    named = [said for _, _, here in rows() for said in quoted(here) if not VALUE.fullmatch(said)]
    assert len(named) > 50
    for said in named:
        if code := CODE.fullmatch(said):
            tree = ast.parse((ROOT / code[1]).read_text(encoding="utf-8"))
            names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
            names |= {
                t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
            }
            assert code[2] is None or code[2] in names, said
        elif said.startswith(("configs/", "r1mega/", "tests/", "docs/")):
            assert (ROOT / said).exists(), said


def sectioned(file: Path) -> Iterator[str]:
    """Settings whose line names a section of the report."""
    table, numbers = "", dict[str, int]()
    for line in file.read_text(encoding="utf-8").splitlines():
        if header := re.match(r"\[\[([\w.]+)\]\]", line):
            numbers[header[1]] = numbers.get(header[1], -1) + 1
            table = f"{header[1]}.{numbers[header[1]]}."
        elif header := re.match(r"\[([\w.]+)\]", line):
            table = f"{header[1]}."
        elif (setting := re.match(r"([\w.]+) = ", line)) and SECTION.search(line):
            yield table + setting[1]


@pytest.mark.parametrize("config", FULL_SIZE, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_every_value_of_the_report_in_a_config_stands_there(config: Path):
    """With the reward tables written as numbers too: `language = 1.0` is `rewards.language.weight`."""
    said = {key for file, key, _ in CLAIMS if file == config}
    assert said, "no row of docs/recipe.md names it"
    missing = [key for key in sectioned(config) if not said & {key, f"{key}.weight"}]
    assert missing == []


def test_such_lines_are_found():
    found = list(sectioned(ROOT / "configs/r1_zero/1_rl.toml"))
    assert {"num_steps", "objective.group_size", "optimizer.lr", "sampling.max_new_tokens"} <= set(found)
    assert "objective.clip_low" not in found  # which the report does not give
    assert sum(len(list(sectioned(config))) for config in FULL_SIZE) > 100
