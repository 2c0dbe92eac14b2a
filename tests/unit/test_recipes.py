"""One table of recipes: what differs from stage to stage is theirs to say, and what they name is there."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from r1mega.recipe.load import RECIPES

PACKAGE = Path(__file__).parents[2] / "r1mega"
CLASSES = {recipe.__name__ for recipe in RECIPES.values()} | {
    "Recipe",
    "FromModel",
    "Training",
    "TrainingOnRows",
    "Asking",
    "Evaluated",
    "Answering",
}


def named(node: ast.AST) -> set[str]:
    """Stages and recipes that an expression spells."""
    found = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and n.value in RECIPES}
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | (names | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}) & CLASSES


def asks_for_a_stage(code: str) -> Iterator[str]:
    """Code that goes another way by a stage's name or a recipe's class, or keeps a list or table of them to do so."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Compare():
                asked = [node]
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, *asked]):
                pass
            case ast.match_case():
                asked = [node.pattern]
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
                asked = [element for element in elements if isinstance(element, ast.Constant)]
            case ast.Dict():
                asked = [key for key in node.keys if key is not None]
            case _:
                asked = []
        yield from (ast.unparse(part) for part in asked if named(part))


def test_nothing_outside_the_recipes_asks_which_stage_it_is():
    texts = {file: file.read_text() for file in PACKAGE.rglob("*.py") if file.parent.name != "recipe"}
    assert len(texts) > 200
    spelt = {file: text for file, text in texts.items() if any(word in text for word in (*RECIPES, *CLASSES))}
    found = [
        f"{file.relative_to(PACKAGE)}: {code}" for file, text in spelt.items() for code in asks_for_a_stage(text)
    ]
    assert found == [], "ask the recipe instead: a member of recipe/recipe.py that each stage sets"


@pytest.mark.parametrize(
    "code",
    [
        'x = 1 if config.stage == "grpo" else 2',
        'x = stage in ("sft", "pretrain")',
        "isinstance(config, SFT | Other)",
        "issubclass(kind, grpo.GRPO)",
        'ASKING = ("grpo",)',
        'TABLE = {"sft": 1}',
        'match stage:\n    case "sft":\n        pass',
    ],
)
def test_such_lines_are_found(code: str):
    assert list(asks_for_a_stage(code))


def test_a_stage_may_be_named_where_nothing_is_asked():
    code = 'Bar("grpo")\nsummary = {"stage": "sft"}\nfrom r1mega.recipe.grpo import GRPO\nasked = {"kind": GRPO}'
    assert not list(asks_for_a_stage(code))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_its_stage_and_functions_that_there_are(name: str):
    recipe = RECIPES[name]
    assert get_args(recipe.model_fields["stage"].annotation) == (name,)
    for entry in (recipe.runs, recipe.checks_data):
        module, _, function = entry.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, entry
