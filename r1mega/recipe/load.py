"""The one table of recipes, and how a config file becomes one: TOML, `--set` overrides, names and ranges, laws."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.config.load import (
    CLUSTER,
    apply_overrides,
    cluster_overrides,
    load_cluster,
    nearest,
    raise_if_any,
    read_toml,
    validate,
)
from r1mega.errors import ConfigError
from r1mega.layout.device_laws import layout_faults
from r1mega.layout.engine_laws import engine_layout_faults
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.mixture import MakeMixture
from r1mega.recipe.preferences import MakePreferences
from r1mega.recipe.pretrain import Pretrain
from r1mega.recipe.recipe import Recipe
from r1mega.recipe.rejection import Rejection
from r1mega.recipe.reward_model import RewardModelTraining
from r1mega.recipe.sft import SFT

RECIPES: Mapping[str, type[Recipe]] = {
    "pretrain": Pretrain,
    "sft": SFT,
    "reward_model": RewardModelTraining,
    "grpo": GRPO,
    "evaluate": Evaluate,
    "preferences": MakePreferences,
    "rejection": Rejection,
    "mixture": MakeMixture,
}
"""`stage` of a config file -> its recipe."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `overrides` ("a.b=value") applied. Weights and data need not be there yet.

    Raises:
        ConfigError: missing file, malformed TOML or override, unknown key, value out of range, or a broken law
            between settings.
    """
    table = read_toml(path)
    apply_overrides(table, overrides)
    kind = recipe_of(table, path)
    raise_if_any(path, kind.outdated(table))
    recipe = validate(kind, table, path)
    raise_if_any(path, recipe.faults())
    return recipe


def recipe_of(table: Mapping[str, Any], path: Path) -> type[Recipe]:
    """The recipe of a config's tables, read from `path`. Raises ConfigError where they are of no stage."""
    stage = table.get("stage")
    if stage is None and "stages" in table:
        raise ConfigError(f"{path}: a pipeline, not a stage; `r1mega pipeline {path}` runs it")
    if not isinstance(stage, str) or stage not in RECIPES:
        near = nearest(str(stage), RECIPES)
        raise ConfigError(f"{path}: stage = {stage!r} is not a stage; choose one of {', '.join(RECIPES)}{near}")
    return RECIPES[stage]


def load(path: Path, cluster: str, overrides: Sequence[str] = ()) -> tuple[Recipe, Cluster]:
    """Recipe and machine, each by itself without fault; `Recipe.faults_on` holds one against the other.

    What the recipe leaves to the machine is filled in (`Recipe.resolved`).

    An override that starts with `cluster.` goes to the cluster file, every other to the stage config.

    Raises:
        ConfigError: as `load_recipe`; or a layout that nothing can be trained with.
    """
    machine = load_cluster(cluster, cluster_overrides(overrides))
    recipe = load_recipe(path, [o for o in overrides if not o.startswith(CLUSTER)])
    raise_if_any(path, layout_faults(machine) + engine_layout_faults(machine))
    return recipe.resolved(machine), machine
