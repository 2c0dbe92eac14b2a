"""Questions, made from tasks or read from a file: parameters, rows, and whether there are enough."""

from collections.abc import Callable, Mapping
from pathlib import Path

from r1mega.data.sources.reasoning_gym import questions
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.split import HELD_OUT, TRAINED_ON
from r1mega.data.tokenizer import load_tokenizer
from r1mega.families.spec import ModelSpec
from r1mega.preflight import verdicts
from r1mega.preflight.data import left_out, names_setting, tokenizer_digest
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.pretrain import Pretrain
from r1mega.recipe.recipe import Recipe

PASSED_OVER = {"model", "optimizer", "save", "wandb", "experts", "mismatch"}
"""Settings that do not bear on questions."""


def check_tasks(recipe: Pretrain, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Whether every task takes its parameters; pretraining may repeat questions, so there are always enough."""

    def check() -> Mapping[str, int]:
        for task in recipe.tasks:
            questions([task], 1, recipe.seed, exclude=HELD_OUT)
        return {}

    _once(recipe, tokenizer, check)


def check_held_out(recipe: Evaluate, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Whether the tasks have as many held-out questions as are asked, and no stop string holds an end token."""

    def check() -> Mapping[str, int]:
        asked = recipe.evaluation
        questions(recipe.tasks, asked.num_questions, asked.seed, exclude=TRAINED_ON)
        if tokenizer is not None and recipe.sampling.stop:
            loaded = load_tokenizer(tokenizer)
            refuse_ends_as_stops(recipe.sampling.stop, loaded, ends(loaded))
        return {}

    _once(recipe, tokenizer, check)


def check_training_questions(recipe: GRPO, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Whether RL has the questions that it trains on and those that it holds out, with their tokens if possible."""

    def check() -> Mapping[str, int]:
        from r1mega.stages.questions import ask, ask_without_tokens

        return ask(recipe).counts if tokenizer is not None else ask_without_tokens(recipe)

    with names_setting("questions", [path for source in recipe.questions for path in source.files()]):
        _once(recipe, tokenizer, check)


def _once(recipe: Recipe, tokenizer: Path | None, check: Callable[[], Mapping[str, int]]) -> None:
    """Check what has not been found good before; what is left out of it is told in any case."""
    settings = recipe.model_dump(mode="json", exclude=PASSED_OVER)
    files = [source.path for source in recipe.inputs()]
    key = verdicts.key("questions", settings, verdicts.digest(files), tokenizer_digest(tokenizer))
    if not verdicts.known(key):
        told = left_out("questions", check())
        verdicts.keep(key, f"the questions of a {recipe.stage} stage", told)
