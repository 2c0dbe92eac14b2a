"""What a tokenizer's tokens are for: which steer a model, which end its answers, which a text begins with.

One place tells them, for training, for guarding what is read, and for the engine.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1mega.errors import ConfigError, DataError
from r1mega.families.score_head import with_score_head
from r1mega.families.spec import ModelSpec

log = logging.getLogger(__name__)

CONTROL = re.compile(r"<[|｜].+[|｜]>", re.DOTALL)
"""How control tokens are written, by tokenizers too that do not call all of theirs special, such as DeepSeek's."""
SPELT = re.compile(r"<[|｜][^\s<>|｜]{1,64}[|｜]>")
"""A control token that a text spells, of whichever model."""
CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"


def special_tokens(tokenizer: Any) -> frozenset[str]:
    """The tokens that are no text: those with a role, those called special, wherever a tokenizer's files say so, and
    those of its added tokens that are written as control tokens are."""
    added = dict[str, bool]()
    for token in tokenizer.added_tokens_decoder.values():
        added[str(token)] = bool(token.special)
    listed = _read(folder_of(tokenizer), TOKENIZER_CONFIG).get("added_tokens_decoder")
    for token in listed.values() if isinstance(listed, Mapping) else ():
        if isinstance(token, Mapping) and token.get("special"):
            added[str(token.get("content"))] = True
    found = {token for token, special in added.items() if special or CONTROL.fullmatch(token)}
    return frozenset({*map(str, tokenizer.all_special_tokens), *found} & tokenizer.get_vocab().keys())


def control_token_in(text: str) -> str:
    """The first control token, of whichever model, that a text spells; "" where it spells none.

    A model that has such a token would read it as one, in the middle of a turn. SFT refuses rows with its own
    model's, and a set may go to students of several families.

    >>> control_token_in("Add <|user|> to it"), control_token_in("Is a <| b |> c right?")
    ('<|user|>', '')
    """
    found = SPELT.search(text)
    return found[0] if found else ""


def ends(tokenizer: Any, stated: Iterable[int] = ()) -> tuple[int, ...]:
    """The tokens at which sampling ends and an answer has to end, the tokenizer's own first.

    They are its eos_token and what config.json and generation_config.json list beside it. Where these list others
    alone, the tokenizer's is the one end: it is the one that chat templates write, and a model that is taught to end
    with it must be sampled until it does.

    Args:
        stated: by a config, where the tokenizer's folder has none that says.

    Raises:
        DataError: a file that cannot be read, or an eos_token_id that is none, or none of the tokenizer's.
    """
    own = tokenizer.eos_token_id
    found = list(dict.fromkeys(_stated(folder_of(tokenizer)) or stated))
    decided = (own, *(i for i in found if i != own)) if own in found else (own,)
    for i in decided:
        if tokenizer.convert_ids_to_tokens(i) is None:
            raise DataError(
                f"{folder_of(tokenizer) or 'the model'}: eos_token_id {i} of {CONFIG} or {GENERATION_CONFIG} is no "
                "token of the tokenizer: no answer could end with it; take it out, or fetch the files again together"
            )
    return decided


def refuse_ends_as_stops(stop: Sequence[str], tokenizer: Any, decided: Iterable[int]) -> None:
    """Refuse stop strings that have an end token in them: it ends the answer before it is any text.

    Args:
        decided: as `ends` returns them.

    Raises:
        ConfigError: names string and token.
    """
    for i in decided:
        token = str(tokenizer.convert_ids_to_tokens(i))
        for string in stop:
            if token in string:
                raise ConfigError(
                    f"sampling.stop: {string!r} ends no answer, since it contains the end token {token!r} ({i}), "
                    "which ends every answer and is no part of its text; take it out"
                )


def with_ends(spec: ModelSpec, tokenizer: Any) -> ModelSpec:
    """The model with the ends that it is trained and sampled with; a change is said."""
    decided = ends(tokenizer, spec.ends)
    if set(decided) == set(spec.ends):
        return spec
    told = [f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in decided]
    dropped = [i for i in dict.fromkeys(_stated(folder_of(tokenizer)) or spec.ends) if i not in decided]
    if dropped:
        log.warning(
            "the tokenizer's eos_token %s is no end of config.json or generation_config.json (%s): answers end with "
            "it, and every file that is exported says so; to end at both, list both as eos_token_id of %s",
            told[0], ", ".join(map(str, dropped)), GENERATION_CONFIG,
        )  # fmt: skip
    else:
        log.info("answers end with %s, by config.json, generation_config.json and tokenizer", " or ".join(told))
    eos: int | list[int] = decided[0] if len(decided) == 1 else list(decided)
    changed = replace(spec, eos=eos if isinstance(eos, int) else decided, hf={**spec.hf, "eos_token_id": eos})
    return with_score_head(changed) if spec.head == "score" else changed  # whose padding must be none of them


def with_padding(scores: ModelSpec, tokenizer: Any, last: int) -> tuple[ModelSpec, str | None]:
    """A model of scores, and the token of its tokenizer that pads: both files that are exported call it so.

    transformers reads a score at the last token that is not the config's padding; a tokenizer that pads with another
    one, as many do with their end token, would have it read in the padding.

    Args:
        last: the token with which texts end as they are read.

    Returns:
        The model with that padding; and the token, None where the tokenizer has none that could end no text.
    """
    special = sorted(tokenizer.convert_tokens_to_ids(sorted(special_tokens(tokenizer))), reverse=True)
    for i in (tokenizer.pad_token_id, scores.pad, *special):
        token = None if i is None or i in (*scores.ends, last) else tokenizer.convert_ids_to_tokens(i)
        if token is not None:
            return replace(scores, pad=i, hf={**scores.hf, "pad_token_id": i}), str(token)
    return scores, None


def begin(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that the tokenizer itself puts before a text: bos, or none.

    Where tokenizer_config.json says `add_bos_token` they are bos, whether its tokenizer.json writes one or not:
    transformers 4 went by that, and DeepSeek-V3 was trained with it.
    """
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            written = tuple(whole[:start])
            break
    else:
        raise DataError(
            f"{folder_of(tokenizer)}: the tokenizer changes a text's own tokens where it adds special ones"
        )
    asked = _read(folder_of(tokenizer), TOKENIZER_CONFIG).get("add_bos_token")
    if written or tokenizer.bos_token_id is None or asked is False:
        return written
    if asked is True:
        return (tokenizer.bos_token_id,)
    log.warning(
        "%s: the tokenizer has a bos token, %r, and begins no text with it, so prompts begin without: for a model "
        "that was trained with it say add_bos_token = true in its %s, else false",
        folder_of(tokenizer) or "a tokenizer", tokenizer.bos_token, TOKENIZER_CONFIG,
    )  # fmt: skip
    return ()


def folder_of(tokenizer: Any) -> Path | None:
    """Where it was loaded from; None: it was not."""
    name = getattr(tokenizer, "name_or_path", "")
    return Path(name) if name and Path(name).is_dir() else None


def _stated(folder: Path | None) -> Sequence[int]:
    found: list[int] = []
    for name in (CONFIG, GENERATION_CONFIG):
        value = _read(folder, name).get("eos_token_id")
        several: Any = value if isinstance(value, list) else [value] if value is not None else []
        if any(type(i) is not int or i < 0 for i in several):
            raise DataError(f"{folder}/{name}: eos_token_id = {value!r}: a token id, a list of some, or null")
        found += several
    return found


def _read(folder: Path | None, name: str) -> dict[str, Any]:
    file = folder / name if folder is not None else None
    if file is None or not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: not a JSON object")
    return value
