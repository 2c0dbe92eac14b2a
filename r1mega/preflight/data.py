"""Data files read as the stage would read them, before anything starts; what was found good is remembered."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from r1mega.config.schema import GRPO, SFT, Conversations, Evaluate, Pretrain, Stage
from r1mega.data.conversations import Conversation, Source
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.split import HELD_OUT, TRAINED_ON
from r1mega.data.tasks import questions
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import ConfigError, DataError
from r1mega.families.spec import ModelSpec
from r1mega.preflight import verdicts
from r1mega.preflight.weights import missing_tokenizer
from r1mega.runtime.progress import Bar

log = logging.getLogger(__name__)

AT_ONCE = 512
"""Conversations tokenised together."""
LEFT_OUT = {
    "duplicates": "asked again and dropped", "held_out": "of the held-out side and left out",
    "too_long": "too long and dropped", "dropped": "too long and dropped", "truncated": "truncated",
}  # fmt: skip
WEIGHTS = (".safetensors", ".distcp", ".bin", ".pt", ".gguf")


def check_data(stage: Stage, spec: ModelSpec | None, *, brief: bool) -> None:
    """Refuse data that the stage could not use.

    Args:
        brief: leave out what the stage reads itself first thing and takes long.

    Raises:
        DataError: file, line and what is wrong, or what is too little.
        ConfigError: settings that these data do not fit; parameters that a task does not have.
    """
    tokenizer = _tokenizer_folder(stage)
    if isinstance(stage, SFT):
        _conversations(stage, spec, tokenizer, brief=brief)
    else:
        _questions(stage, tokenizer)


@contextlib.contextmanager
def _of(setting: str, files: Sequence[Path]) -> Iterator[None]:
    """What is wrong with a file names the setting that names it."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if not any(str(file) in str(error) for file in files):
            raise
        raise type(error)(f"{setting}: {error}") from error


def _tokenizer_folder(stage: Stage) -> Path | None:
    """Where the tokenizer is, if it is there."""
    folder = stage.model.path
    return folder if folder is not None and not missing_tokenizer(stage, folder) else None


def _tokenizer_digest(folder: Path | None) -> list[Any]:
    return verdicts.digest_of_tree(folder, WEIGHTS) if folder else []


# ---- questions ------------------------------------------------------------------------------------------------


def _questions(stage: Pretrain | GRPO | Evaluate, tokenizer: Path | None) -> None:
    """Task parameters, files of questions, and whether there are enough of them."""
    file = stage.questions if isinstance(stage, GRPO) else None
    settings = stage.model_dump(mode="json", exclude={"model", "optimizer", "save", "wandb", "experts", "mismatch"})
    key = verdicts.key("questions", settings, verdicts.digest([file] if file else []), _tokenizer_digest(tokenizer))
    if verdicts.known(key):
        return
    counts: Mapping[str, int] = {}
    with _of("questions", [file] if file else []):
        if isinstance(stage, Pretrain):
            for task in stage.tasks:
                questions([task], 1, stage.seed, exclude=HELD_OUT)
        elif isinstance(stage, Evaluate):
            questions(stage.tasks, stage.evaluation.num_questions, stage.evaluation.seed, exclude=TRAINED_ON)
            if tokenizer is not None and stage.sampling.stop:
                loaded = load_tokenizer(tokenizer)
                refuse_ends_as_stops(stage.sampling.stop, loaded, ends(loaded))
        else:
            from r1mega.stages.questions import ask, ask_without_tokens

            counts = ask(stage).counts if tokenizer is not None else ask_without_tokens(stage)
    verdicts.keep(key, f"the questions of a {stage.stage} stage", _left_out("questions", counts))


def _left_out(name: str, counts: Mapping[str, int]) -> list[str]:
    """A line where some of what was read is not used, or not whole."""
    some = [f"{counts[what]:,} {word}" for what, word in LEFT_OUT.items() if counts.get(what)]
    return [f"{name}: {counts['read']:,} read, of them {', '.join(some)}"] if some else []


def on_the_hub(of: Conversations) -> bool:
    """Whether a dataset is asked for by its name, which nothing but the stage itself does."""
    return bool(of.dataset) and not of.dataset.startswith("/")


# ---- conversations --------------------------------------------------------------------------------------------


def _conversations(stage: SFT, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Every row; and its tokens where the tokenizer is there."""
    sections = [("data", stage.data), *([("validation", stage.validation)] if stage.validation else [])]
    sources = [(name, of) for name, of in sections if (of.files or of.dataset) and not on_the_hub(of)]
    if brief or not sources:
        return
    files = [file for _, of in sources for file in of.files]
    folders = [Path(of.dataset) for _, of in sources if of.dataset]
    settings = stage.model_dump(mode="json", include={"seed", "data", "validation", "max_positions"})
    template = stage.chat_template.read_text(encoding="utf-8") if stage.chat_template else None
    key = verdicts.key(
        "conversations", settings, template, verdicts.digest(files),
        [verdicts.digest_of_tree(folder) for folder in folders], _tokenizer_digest(tokenizer),
        spec.ends if spec is not None and tokenizer is not None else None,
    )  # fmt: skip
    if verdicts.known(key):
        return
    chat = _chat(stage, spec, tokenizer) if spec is not None and tokenizer is not None else None
    from r1mega.data.sft_data import asks_held_out, fit, held_out, refuse_nothing_left

    share = stage.validation.share if stage.validation else 0.0
    told: list[str] = []
    for name, of in sources:
        counts = {"conversations": 0, "dropped": 0, "truncated": 0, "held_out": 0}
        validated = {"conversations": 0, "dropped": 0, "truncated": 0}
        with _of(name, [*of.files, *([Path(of.dataset)] if of.dataset else [])]):
            for some in _batches(f"reading {name}", of):
                encoded = chat.encode(some) if chat is not None else [None] * len(some)
                for row, tokens in zip(some, encoded, strict=True):
                    mine = validated if name == "data" and held_out(row, share, stage.seed) else counts
                    if name == "data" and mine is counts and asks_held_out(row):
                        counts["held_out"] += 1
                        continue
                    mine["conversations"] += 1
                    if tokens is not None:
                        fit(tokens, stage, row.where, mine)
            refuse_nothing_left("train" if name == "data" else name, counts, stage)
            if name == "data" and share:
                refuse_nothing_left("validation", validated, stage)
            told += _left_out(name, counts | {"read": counts["conversations"] + counts["held_out"]})
            told += _left_out(f"{name}, to validate on", validated | {"read": validated["conversations"]})
    for line in told:
        log.warning("%s", line)
    verdicts.keep(key, f"conversations of {', '.join(map(str, [*files, *folders]))}", told)


def _chat(stage: SFT, spec: ModelSpec, tokenizer: Path) -> Any:
    from r1mega.data.chat import Chat

    return Chat(load_tokenizer(tokenizer), spec.ends, stage.chat_template)


def _batches(title: str, of: Conversations) -> Iterator[Sequence[Conversation]]:
    source = Source(of.files, of.dataset, of.split, of.dataset_config)
    with Bar(title, len(source), unit="conversation", silent=len(source) < AT_ONCE) as bar:
        rows = iter(source)
        while some := list(islice(rows, AT_ONCE)):
            yield some
            bar.advance(len(some))
