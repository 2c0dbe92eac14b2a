"""What a stage starts from and what may not be there yet: weights and files, and the command that makes each."""

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from r1mega.config.model import Model

MADE_BY = " is made by: "
"""In a line of a config's head, between a setting and the command that makes what it names."""
RUNS, CONFIGS = "runs", "configs"
CLUSTER = re.compile(r"^# cluster: (\w+)$", re.MULTILINE)
"""The line of a full-size config's head that names its cluster file."""
NO_MAKERS: Mapping[str, str] = {}


class Input(NamedTuple):
    """A file or folder that a setting names beside the model that the stage starts from."""

    setting: str
    path: Path
    model: bool = False
    """Whether it is another model's folder, and no data."""


def default_run_dir(config: Path) -> Path:
    """Where a run of a config goes if nothing is said: runs/<config's folders and name>."""
    parts = config.with_suffix("").parts
    return Path(RUNS, *(parts[parts.index(CONFIGS) + 1 :] if CONFIGS in parts else parts[-1:]))


def makers(path: Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Setting -> the command that makes what it names, as the head of the config in `path` tells.

    A line of the head: `# model.path is made by: make demo`. What `overrides` name anew is left out.
    """
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    told = [line.removeprefix("# ").partition(MADE_BY) for line in lines if MADE_BY in line]
    anew = {override.partition("=")[0].strip() for override in overrides}
    return {setting: command for setting, _, command in told if setting not in anew}


def maker_of(file: Path) -> str | None:
    """The command that leaves `file` behind, where its place says so: a run's, in its default run directory."""
    parts = file.parts
    if RUNS not in parts:
        return None
    at = len(parts) - 1 - parts[::-1].index(RUNS)
    root, below = Path(*parts[:at]), parts[at + 1 :]
    for length in range(len(below) - 1, 0, -1):  # the run directory's own name ends before `file` does
        config = root / CONFIGS / Path(*below[:length]).with_suffix(".toml")
        if not config.is_file():
            continue
        text = config.read_text(encoding="utf-8")
        try:
            verb = "pipeline" if "stages" in tomllib.loads(text) else "run"
        except tomllib.TOMLDecodeError:
            return None
        shown = config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config
        cluster = CLUSTER.search(text)
        return f"r1mega {verb} {shown}" + (f" --cluster {cluster[1]}" if cluster else "")
    return None


def missing_weights(model: Model, made_by: Mapping[str, str] = NO_MAKERS) -> str | None:
    """What is to be done about a `model.path` that is not there yet."""
    if model.path is None or model.path.exists():
        return None
    absent = f"model.path: {model.path} is not there yet"
    if maker := made_by.get("model.path") or maker_of(model.path):
        return f"{absent}; made by `{maker}`"
    if model.config is None:
        return (
            f"{absent}: a Hugging Face folder (config.json, weights, tokenizer), of which nothing is known till then"
        )
    return (
        f"{absent}: download the weights (`hf download OWNER/{model.config.parent.name} --local-dir {model.path}`), "
        "run the stage that writes it, or point model.path at a folder that has them"
    )


def missing(inputs: Iterable[Input], made_by: Mapping[str, str] = NO_MAKERS) -> list[str]:
    """What is to be done about each file and folder of data that is not there yet."""
    told: list[str] = []
    for setting, path, _ in inputs:
        if path.exists():
            continue
        maker = made_by.get(setting) or maker_of(path)
        remedy = f"made by `{maker}`" if maker else "put it there, or name another with --set"
        told.append(f"{setting}: {path}: not there yet; {remedy}")
    return told
