"""Preferences read as training of a reward model reads them; what was found good is remembered."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1mega.data.preferences import Example
from r1mega.data.row_source import CheckedRows
from r1mega.data.settings import Conversations
from r1mega.data.tokenizer import load_tokenizer
from r1mega.families.spec import ModelSpec
from r1mega.preflight import verdicts
from r1mega.preflight.data import left_out, names_setting, tokenizer_digest
from r1mega.recipe.reward_model import RewardModelTraining
from r1mega.runtime.progress import Bar

log = logging.getLogger(__name__)

READ_BY = ("seed", "objective", "scope", "marks", "margin", "data", "validation")
"""Settings that decide what is read of the rows."""
STEPS_BY = ("batch_size", "num_epochs", "max_steps", "optimizer")
"""And those that decide whether the steps which they make are enough."""
SHOWN_FROM = 512
"""Rows from which on a bar is shown."""


def check_preferences(
    recipe: RewardModelTraining, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool
) -> None:
    """Every row; and its tokens where the tokenizer is there."""
    sources = [(name, of) for name, of in recipe.tables() if (of.files or of.dataset) and not of.on_the_hub]
    if brief or not sources:
        return
    files = [file for _, of in sources for file in of.files]
    folders = [Path(of.dataset) for _, of in sources if of.dataset]
    settings = recipe.model_dump(mode="json", include={*READ_BY, *STEPS_BY})
    template = recipe.chat_template.read_text(encoding="utf-8") if recipe.chat_template else None
    key = verdicts.key(
        "preferences", settings, template, verdicts.digest(files),
        [verdicts.digest_of_tree(folder) for folder in folders], tokenizer_digest(tokenizer),
    )  # fmt: skip
    if verdicts.known(key):
        return
    reads = _tokenizer(recipe, tokenizer) if tokenizer is not None else None
    told: list[str] = []
    asked: set[str] = set()
    for name, of in sources:
        with names_setting(name, [*of.files, *([Path(of.dataset)] if of.dataset else [])]):
            told += _look(recipe, name, of, reads, asked)
    for line in told:
        log.warning("%s", line)
    verdicts.keep(key, f"preferences of {', '.join(map(str, [*files, *folders]))}", told)


def _look(recipe: RewardModelTraining, name: str, of: Conversations, tokenizer: Any, asked: set[str]) -> list[str]:
    """Read what a table names, the part that is trained on and the part that is validated on; what is left out.

    Args:
        asked: the questions that are trained on are added to it, and rows of validation's own that ask no other are
            left out.

    Raises:
        DataError, ConfigError: as the stage would.
    """
    from r1mega.data.preference_data import Sifted, kind, read, refuse_nothing_left, source_of
    from r1mega.data.tokenised import without_trained_on

    share = recipe.validation.share if recipe.validation is not None and name == "data" else 0.0
    source, told = source_of(recipe.reading, of), list[str]()
    for validated in (False, True) if share else (name != "data",):
        counts = {"held_out": 0}
        rows = _rows(recipe, f"reading {name}", source, share if name == "data" else None, validated, counts, asked)
        if name != "data":
            counts["trained_on"] = 0
            rows = without_trained_on(rows, asked, kind(recipe.objective), counts)
        kept = sum(1 for _ in read(rows, Sifted(recipe.reading, counts), tokenizer))
        refuse_nothing_left("validation" if validated else "train", counts, validates=recipe.validation is not None)
        if not validated and tokenizer is not None:
            told += _steps(recipe, kept)
        title = f"{name}, to validate on" if share and validated else name
        told += left_out(title, counts | {"read": counts["rows"] + counts["held_out"] + counts.get("trained_on", 0)})
    return told


def _steps(recipe: RewardModelTraining, kept: int) -> list[str]:
    """Whether so many rows make enough steps. Raises ConfigError where warm-up takes them all."""
    recipe.num_steps(-(-kept // recipe.batch_size))
    if kept >= recipe.batch_size:
        return []
    return [f"batch_size: {recipe.batch_size} is more than the {kept} rows there are: a step takes all of them"]


def _rows(
    recipe: RewardModelTraining,
    title: str,
    source: CheckedRows[Example],
    share: float | None,
    validated: bool,
    counts: dict[str, int],
    asked: set[str],
) -> Iterator[Example]:
    """The rows of one side, those of the held-out side counted and left out where they would be trained on.

    Args:
        share: of the rows that is validated on; None where all are.
        asked: the questions of those that are trained on are added to it.
    """
    from r1mega.data.tokenised import asks_held_out, held_out

    with Bar(title, len(source), unit="row", silent=len(source) < SHOWN_FROM) as bar:
        for row in source:
            if share is None or held_out(row, share, recipe.seed) == validated:
                if not validated and asks_held_out(row):
                    counts["held_out"] += 1
                else:
                    if not validated:
                        asked.update(row.questions)
                    yield row
            bar.advance()


def _tokenizer(recipe: RewardModelTraining, folder: Path) -> Any:
    """With the template in which the reward model reads. Raises DataError where there is none that writes answers."""
    from r1mega.data.chat import text_of
    from r1mega.data.preference_text import refuse_unreadable

    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = text_of(tokenizer, recipe.chat_template, "chat_template")
    refuse_unreadable(tokenizer)
    return tokenizer
