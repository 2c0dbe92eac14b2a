"""Which families there are, and how a config.json finds its own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.errors import ConfigError
from r1mega.families import deepseek_v3
from r1mega.families.spec import ModelSpec

FAMILIES: Mapping[str, Callable[[Mapping[str, Any]], ModelSpec]] = {"deepseek_v3": deepseek_v3.read}
"""model_type of a config.json -> the family's reader."""


def read_model(path: Path) -> ModelSpec:
    """The model described by a Hugging Face config.json.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ConfigError: no such file, no JSON object, an unknown model_type, or a field that changes the computation
            in a way this system does not know.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        hf = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read ({e.strerror}); give a config.json or its folder") from e
    except ValueError as e:
        raise ConfigError(f"{file}: not JSON ({e})") from e
    if not isinstance(hf, dict):
        raise ConfigError(f"{file}: expected a JSON object, found {type(hf).__name__}")
    family = str(hf.get("model_type"))
    if family not in FAMILIES:
        raise ConfigError(f"{file}: model_type {family!r} is not supported; known: {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family](hf)
    except ConfigError as e:
        raise ConfigError(f"{file}: {e}") from e
