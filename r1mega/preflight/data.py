"""Data files read as the stage would read them, before anything starts: what its recipe names does it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mega.errors import ConfigError, DataError
from r1mega.families.spec import ModelSpec
from r1mega.preflight import verdicts
from r1mega.preflight.weights import missing_tokenizer
from r1mega.recipe.recipe import Recipe, imported

LEFT_OUT = {
    "duplicates": "asked again and dropped", "held_out": "of the held-out side and left out",
    "in_evaluation": "asked in the evaluation and dropped",
    "trained_on": "asked in training and left out", "not_drawn": "not drawn",
    "too_long": "too long and dropped", "dropped": "too long and dropped", "truncated": "truncated",
    "empty": "with an empty answer and left out", "no_summary": "with an answer that has no summary and left out",
    "equal": "with two answers that are read alike and left out", "doubles": "read before and left out",
    "contaminated": "with words of an evaluation and left out", "double": "read before and left out",
    "enough": "one answer too many to their question and left out",
    "contradicted": "judged the other way round elsewhere and kept",
}  # fmt: skip
WEIGHTS = (".safetensors", ".distcp", ".bin", ".pt", ".gguf")


def check_data(recipe: Recipe, spec: ModelSpec | None, *, brief: bool) -> None:
    """Refuse data that the stage could not use.

    Args:
        brief: leave out what the stage reads itself first thing and takes long.

    Raises:
        DataError: file, line and what is wrong, or what is too little.
        ConfigError: settings that these data do not fit; parameters that a task does not have.
    """
    imported(recipe.checks_data)(recipe, spec, _tokenizer_folder(recipe), brief=brief)


def _tokenizer_folder(recipe: Recipe) -> Path | None:
    """Where the tokenizer is, if it is there."""
    folder = recipe.begins_with.path
    return folder if folder is not None and not missing_tokenizer(recipe, folder) else None


# ---- for the functions that read ----------------------------------------------------------------------------------


@contextlib.contextmanager
def names_setting(setting: str, files: Sequence[Path]) -> Iterator[None]:
    """What is wrong with a file names the setting that names it."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if not any(str(file) in str(error) for file in files):
            raise
        raise type(error)(f"{setting}: {error}") from error


def tokenizer_digest(folder: Path | None) -> list[Any]:
    """Of all files of a tokenizer's folder but the weights."""
    return verdicts.digest_of_tree(folder, WEIGHTS) if folder else []


def left_out(name: str, counts: Mapping[str, int]) -> list[str]:
    """A line where some of what was read is not used, or not whole."""
    some = [f"{counts[what]:,} {word}" for what, word in LEFT_OUT.items() if counts.get(what)]
    return [f"{name}: {counts['read']:,} read, of them {', '.join(some)}"] if some else []
