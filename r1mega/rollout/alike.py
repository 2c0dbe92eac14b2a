"""Which folders one server can answer for in turn: all but their weights is the same to it.

What counts is what the server computes and reads: the architecture, whether weights are quantized, the tokenizer, in
which it looks for stop strings, and the one limit that it takes from generation_config.json. What it is told with
every request (the ends of an answer) or leaves out (MTP layers) does not.
"""

import dataclasses
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mega.families.registry import read_language_model
from r1mega.families.spec import ModelSpec
from r1mega.formats.hf_files import read_config
from r1mega.runtime.digests import digest_of

NOT_SERVED = ("bos", "eos", "pad", "init_std", "num_mtp_layers", "hf", "rows")
"""Fields of `ModelSpec` that change nothing about what a server computes from tokens."""


def served_as(folder: Path) -> Mapping[str, Any]:
    """What of a Hugging Face folder, its weights aside, is of consequence to the server that answers for it.

    Raises:
        ConfigError: config.json is missing, not understood, or of a model of scores.
    """
    spec = read_language_model(folder)
    fields = [field.name for field in dataclasses.fields(ModelSpec) if field.name not in NOT_SERVED]
    tokenizer = {k: v for k, v in _fields(folder / "tokenizer_config.json").items() if k != "chat_template"}
    return {
        **{name: getattr(spec, name) for name in fields},
        # An engine computes with 8 bits then, and takes no pushed weights: such a folder is like none, nor itself.
        "quantized": secrets.token_hex(8) if read_config(folder)[1] else "",
        "tokenizer.json": digest_of(_fields(folder / "tokenizer.json")),
        "tokenizer_config.json": digest_of(tokenizer),
        "generation_config.max_new_tokens": _fields(folder / "generation_config.json").get("max_new_tokens"),
    }


def kind_of(folder: Path) -> str:
    """Digest of `served_as`, for a record."""
    return digest_of(dict(served_as(folder)))


def differences(running: Path, folder: Path) -> list[str]:
    """One line for each thing in which a folder is served otherwise than the one that a server was started of.

    Raises as `served_as`.
    """
    ours, theirs = served_as(running), served_as(folder)
    return [f"{name}: {ours[name]!r} there, {theirs[name]!r} here" for name in ours if ours[name] != theirs[name]]


def _fields(file: Path) -> dict[str, Any]:
    """Of a file of JSON; none where it is not there or no such file, which whoever needs it says."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
