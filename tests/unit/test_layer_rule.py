"""The layer rule names every room there is: one that it does not know would be held to nothing, without a word."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    path.stem
    for path in (ROOT / "r1mega").iterdir()
    if path.name != "__init__.py" and (path.suffix == ".py" or (path / "__init__.py").is_file())
}
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def test_all_rooms_stand_in_the_layers_and_none_is_optional():
    assert len(ROOMS) > 15
    (layers,) = (contract for contract in CONTRACTS if contract["type"] == "layers")
    named = [room.strip() for layer in layers["layers"] for room in layer.split("|")]  # as often as they stand
    assert sorted(named) == sorted(ROOMS)  # parentheses would allow a layer to be missing
    assert layers["exhaustive"] is True


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("megatron", {"trainer", "weights", "runtime"}), ("vllm", {"rollout", "weights", "runtime"})],
)
def test_all_other_rooms_are_forbidden_the_engines(library: str, allowed: set[str]):
    forbidding = [c for c in CONTRACTS if c.get("forbidden_modules") == [library] and len(c["source_modules"]) > 1]
    (sources,) = (contract["source_modules"] for contract in forbidding)
    assert {source.removeprefix("r1mega.") for source in sources} == ROOMS - allowed


def test_architecture_draws_the_same_layers():
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = text[text.index("cli > pipeline") :].partition("```")[0]
    (layers,) = (contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")
    assert [rooms(layer) for layer in drawn.split(">")] == [rooms(layer) for layer in layers]


def rooms(layer: str) -> set[str]:
    return {room.strip() for room in layer.split("|")}


def test_architecture_says_what_every_room_has():
    text = (ROOT / "docs/architecture.md").read_text()
    listed = text.partition("## Rooms of the package")[2].partition("## ")[0]
    named = {room for room in ROOMS if f"\n  {room}/ " in listed or f"\n  {room}.py " in listed}
    assert named == ROOMS


def test_architecture_names_every_guide_once():
    folders = (ROOT / "docs/architecture.md").read_text().partition("## Rooms of the package")[0]
    listed = folders.partition("guides/ (")[2].partition("; tests do")[0].split()
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs/guides").glob("*.md"))
    assert folders.count("\ndocs/ ") == 1
