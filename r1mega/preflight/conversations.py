"""Conversations read as SFT reads them; what was found good is remembered."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from r1mega.data.conversations import Conversation, Source
from r1mega.data.settings import Conversations
from r1mega.data.tokenizer import load_tokenizer
from r1mega.families.spec import ModelSpec
from r1mega.preflight import verdicts
from r1mega.preflight.data import left_out, names_setting, tokenizer_digest
from r1mega.recipe.sft import SFT
from r1mega.runtime.progress import Bar

log = logging.getLogger(__name__)

AT_ONCE = 512
"""Conversations tokenised together."""


def check_conversations(recipe: SFT, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Every row; and its tokens where the tokenizer is there."""
    sources = [(name, of) for name, of in recipe.tables() if (of.files or of.dataset) and not of.on_the_hub]
    if brief or not sources:
        return
    files = [file for _, of in sources for file in of.files]
    folders = [Path(of.dataset) for _, of in sources if of.dataset]
    settings = recipe.model_dump(mode="json", include={"seed", "data", "validation", "max_positions"})
    template = recipe.chat_template.read_text(encoding="utf-8") if recipe.chat_template else None
    key = verdicts.key(
        "conversations", settings, template, verdicts.digest(files),
        [verdicts.digest_of_tree(folder) for folder in folders], tokenizer_digest(tokenizer),
        spec.ends if spec is not None and tokenizer is not None else None,
    )  # fmt: skip
    if verdicts.known(key):
        return
    chat = _chat(recipe, spec, tokenizer) if spec is not None and tokenizer is not None else None
    from r1mega.data.sft_data import fit, refuse_nothing_left
    from r1mega.data.tokenised import asks_held_out, held_out, without_trained_on

    validates, share = recipe.validation is not None, recipe.validation.share if recipe.validation else 0.0
    told: list[str] = []
    asked: set[str] = set()
    for name, of in sources:
        counts = {"conversations": 0, "dropped": 0, "truncated": 0, "held_out": 0, "trained_on": 0}
        validated = {"conversations": 0, "dropped": 0, "truncated": 0}
        with names_setting(name, [*of.files, *([Path(of.dataset)] if of.dataset else [])]):
            untrained = partial(without_trained_on, trained=asked, what="conversation", counts=counts)
            for some in _batches(f"reading {name}", of, untrained if name != "data" else iter):
                encoded = chat.encode(some) if chat is not None else [None] * len(some)
                for row, tokens in zip(some, encoded, strict=True):
                    mine = validated if name == "data" and held_out(row, share, recipe.seed) else counts
                    if name == "data" and mine is counts and asks_held_out(row):
                        counts["held_out"] += 1
                        continue
                    if name == "data" and mine is counts:
                        asked.update(row.questions)
                    mine["conversations"] += 1
                    if tokens is not None:
                        fit(tokens, recipe.data, row.where, mine)
            refuse_nothing_left("train" if name == "data" else name, counts, recipe.data, validates=validates)
            if name == "data" and share:
                refuse_nothing_left("validation", validated, recipe.data, validates=validates)
            num_read = sum(counts[of] for of in ("conversations", "held_out", "trained_on"))
            told += left_out(name, counts | {"read": num_read})
            told += left_out(f"{name}, to validate on", validated | {"read": validated["conversations"]})
    for line in told:
        log.warning("%s", line)
    verdicts.keep(key, f"conversations of {', '.join(map(str, [*files, *folders]))}", told)


def _chat(recipe: SFT, spec: ModelSpec, tokenizer: Path) -> Any:
    from r1mega.data.chat import Chat

    return Chat(load_tokenizer(tokenizer), spec.ends, recipe.chat_template)


def _batches(
    title: str, of: Conversations, kept: Callable[[Iterable[Conversation]], Iterator[Conversation]]
) -> Iterator[Sequence[Conversation]]:
    """kept: those of the rows that are used."""
    source = Source(of.files, of.dataset, of.split, of.dataset_config)
    with Bar(title, len(source), unit="conversation", silent=len(source) < AT_ONCE) as bar:
        rows = kept(source)
        while some := list(islice(rows, AT_ONCE)):
            yield some
            bar.advance(len(some))
