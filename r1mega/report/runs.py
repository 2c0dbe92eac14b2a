"""Which stages a directory holds, and what each of them comes from (run.json)."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.errors import DataError
from r1mega.recipe.load import RECIPES
from r1mega.report.rows import Row, read_object


def stage_dirs(run_dir: Path) -> list[Path]:
    """`run_dir` itself where it is a stage's; a pipeline's stages in the order in which they ran or began.

    Raises DataError where there is no run.
    """
    whole = read_object(run_dir / "summary.json")
    if whole is not None and "stages" in whole:
        return [run_dir / name for name in whole["stages"]]
    if _is_stage(run_dir):
        return [run_dir]
    stages = [folder for folder in run_dir.glob("*/") if _is_stage(folder)]
    if not stages:
        raise DataError(f"{run_dir}: no run here: no run.json, metrics.jsonl or summary.json, nor folders with them")
    return sorted(stages, key=lambda stage: (str(parts(stage)[0].get("started", "~")), stage.name))


def _is_stage(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("run.json", "metrics.jsonl", "summary.json"))


def learns_from(stage: Any) -> str | None:
    """What a stage of that name learns from (`Recipe.learns_from`); None of one that this version does not know."""
    recipe = RECIPES.get(str(stage))
    return recipe.learns_from if recipe else None


def samples(stage: Any) -> bool:
    """Whether a stage of that name asks held-out questions of an engine."""
    recipe = RECIPES.get(str(stage))
    return recipe is not None and recipe.samples


def parts(run_dir: Path) -> list[Row]:
    """What each part of a run comes from: the first start, then every resumption; [{}] where nothing is recorded."""
    record = read_object(run_dir / "run.json") or {}
    return record.get("parts") or [record]  # before resumptions were recorded, run.json held the one start itself


def provenance(starts: Sequence[Row]) -> dict[str, str]:
    """Name -> what the `parts` of a run come from; what changed with a resumption as "old → new"."""
    found: dict[str, list[str]] = {}
    for part in starts:
        fields = {
            "config": _config(part.get("command") or []),
            "commit": part.get("commit"),
            "seed": part.get("seed"),
            "device": ", ".join(map(str, (part.get("device") or {}).values())),
            "versions": ", ".join(f"{name} {version}" for name, version in (part.get("versions") or {}).items()),
        }
        for name, value in fields.items():
            if value not in (None, ""):
                found.setdefault(name, []).append(plain(value))
    return {name: " → ".join(dict.fromkeys(values)) for name, values in found.items()}


def _config(command: Sequence[str]) -> str | None:
    """The stage config among the words of a command line; the cluster may be named by a file as well."""
    pairs = itertools.pairwise(command)
    return next((word for before, word in pairs if word.endswith(".toml") and before != "--cluster"), None)


def plain(value: Any) -> str:
    """A value of a JSON file as people read it: six digits of a number, the words of a list."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
