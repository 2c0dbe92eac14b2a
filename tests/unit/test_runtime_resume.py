"""Which settings a resumed run may have changed: those that alter no step, by name, and no others."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from r1mega.config.cluster import Cluster
from r1mega.recipe.load import load_recipe
from r1mega.runtime.resume import changes, flat, recipe_digest

CONFIGS = Path(__file__).parents[2] / "configs/tiny"
SECTIONS = {"save", "wandb", "batch", "experts", "hacking", "health"}
"""All of these: how a run is kept, watched and laid out in memory."""
FREE = ("replay", "keep_journal", "judges", "max_failed", "false_negatives", "server_length")
RL = (
    {f"mismatch.{name}" for name in ("mean", "kl", "window", "alpha")}
    | {f"rollout.{name}" for name in FREE}
    | {f"rewards.accuracy.code.{name}" for name in ("slots", "lanes", "cache_mib")}
)
SFT = {"validation.every_steps"}
START = {"model.path", "model.config"}
"""What a run begins as is compared by its content (`provenance.start_of`), and is no part of a recipe."""


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(
    ("config", "own", "length"),
    [("r1_zero/1_rl.toml", RL, {"num_steps"}), ("sft/1_qwen2.toml", SFT, {"num_epochs", "max_steps"})],
)
def test_a_recipe_has_every_setting_that_alters_a_step(config, own: set[str], length: set[str], schedule: str):
    recipe = load_recipe(CONFIGS / config)
    settings = recipe.model_dump(mode="json")
    settings["optimizer"]["schedule"] = schedule

    holder = [settings]  # values of another kind than the section's would be refused
    dumped: Any = type(
        "Dumped", (type(recipe),), {"model_dump": lambda self, mode: holder[0], "__module__": __name__}
    ).model_construct()

    def made(settings: dict[str, Any]) -> str:
        holder[0] = settings
        return recipe_digest(dumped, {})

    kept = set[str]()
    for name in flat(settings):
        changed = copy.deepcopy(settings)
        *sections, last = name.split(".")
        section = changed
        for inner in sections:
            section = section[int(inner) if isinstance(section, list) else inner]
        section[last] = ["another", section[last]]
        if name != "optimizer.schedule" and made(changed) == made(settings):
            kept.add(name)
    allowed = {name for name in flat(settings) if name.partition(".")[0] in SECTIONS} | own | START
    # How long a run is decides its learning rates, unless those are constant.
    assert kept == allowed | (length if schedule == "constant" else set())


def test_a_number_that_became_a_schedule_is_one_line(tmp_path: Path):
    def recipe(temperature: str):
        return load_recipe(CONFIGS / "r1_zero/1_rl.toml", [f"sampling.temperature={temperature}"])

    plain, tables = recipe("1.0"), recipe("[{value=1.0},{from_step=8,over_steps=4,value=0.5}]")
    machine = Cluster(device="cpu")
    for then, now, said in (
        (plain, tables, "1.0 -> [{'value': 1.0}, {'value': 0.5, 'from_step': 8, 'over_steps': 4}]"),
        (tables, plain, "[{'value': 1.0}, {'value': 0.5, 'from_step': 8, 'over_steps': 4}] -> 1.0"),
    ):
        found = {"stage": then.model_dump(mode="json"), "cluster": machine.model_dump(mode="json")}
        (tmp_path / "config.json").write_text(json.dumps(found))
        (tmp_path / "run.json").write_text("{}")
        assert changes(tmp_path, now, machine, {}) == [f"sampling.temperature: {said}"]
    later = recipe("[{value=1.0},{from_step=12,over_steps=4,value=0.5}]")
    found["stage"] = tables.model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps(found))
    assert changes(tmp_path, later, machine, {}) == ["sampling.temperature.1.from_step: 8 -> 12"]
