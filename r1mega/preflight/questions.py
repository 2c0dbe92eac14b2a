"""Questions, made or read from files: parameters, rows, truths, and whether there are enough."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from r1mega.data.asked_questions import Counts
from r1mega.data.few_shot import drawn_shots
from r1mega.data.preference_text import refuse_unaskable
from r1mega.data.prompt_form import PromptForm, look_at
from r1mega.data.sources.reasoning_gym import questions
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.split import HELD_OUT
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import ConfigError, DataError, WeightMappingError
from r1mega.families.registry import read_language_model
from r1mega.families.spec import ModelSpec
from r1mega.preflight import verdicts
from r1mega.preflight.data import left_out, names_setting, tokenizer_digest
from r1mega.preflight.weights import check_served
from r1mega.recipe.answering import Answering
from r1mega.recipe.evaluate import Evaluate
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.judged_by import JudgedBy
from r1mega.recipe.preferences import MakePreferences
from r1mega.recipe.pretrain import Pretrain
from r1mega.recipe.recipe import Recipe
from r1mega.recipe.rejection import Rejection
from r1mega.rewards.sandbox.machine import seen

PASSED_OVER = {"model", "optimizer", "save", "wandb", "experts", "mismatch"}
"""Settings that do not bear on questions."""


def check_tasks(recipe: Pretrain, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Whether every task takes its parameters; pretraining may repeat questions, so there are always enough."""

    def check() -> Mapping[str, Mapping[str, Counts]]:
        for task in recipe.tasks:
            questions([task], 1, recipe.seed, exclude=HELD_OUT)
        return {}

    _once(recipe, tokenizer, check)


def check_held_out(recipe: Evaluate, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Whether there are the questions that an evaluation asks, with their tokens if possible, and no stop string
    holds an end token; of several models, for each whose folder is there.

    Raises as the first fault does; of several models a ConfigError that lists the faults of all.
    """
    there = {name: alone for name, alone in recipe.alone().items() if recipe.models[name].exists()}
    faults = list[str]()
    for name, alone in there.items():
        try:
            check_served(f"models.{name}", recipe.models[name])
            check_held_out(alone, read_language_model(recipe.models[name]), recipe.models[name], brief=brief)
        except (ConfigError, DataError, WeightMappingError) as error:
            faults.append(str(error) if str(error).startswith("models.") else f"models.{name}: {error}")
    if faults:
        raise ConfigError("\n  ".join([f"{len(faults)} of {len(recipe.models)} models cannot be asked", *faults]))
    if there or (here := recipe.seen()) is None:
        return
    recipe = here

    def check() -> Mapping[str, Mapping[str, Counts]]:
        from r1mega.stages.questions import evaluated_prompts, evaluated_questions

        form = _form(recipe, tokenizer)
        if form is None or spec is None:
            return {"evaluation": evaluated_questions(recipe).counts}
        return {"evaluation": evaluated_prompts(recipe, form, spec)[1]}

    _once(recipe, tokenizer, check)


def check_training_questions(recipe: GRPO, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Whether RL has the questions that it trains on and those that it holds out, with their tokens if possible."""

    if (here := recipe.seen()) is None:
        return
    recipe = here

    def check() -> Mapping[str, Mapping[str, Counts]]:
        from r1mega.stages.questions import ask, ask_without_tokens

        return ask(recipe).counts if tokenizer is not None else ask_without_tokens(recipe)

    _once(recipe, tokenizer, check)


def check_preference_questions(
    recipe: MakePreferences, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool
) -> None:
    """Whether there are the questions whose answers become preference data, with their tokens if possible, no stop
    string holds an end token, and a judge's folder can be served and asked."""
    _check_judge("judge.model", recipe.judge)
    if (here := recipe.seen()) is None:
        return
    recipe = here

    def check() -> Mapping[str, Mapping[str, Counts]]:
        from r1mega.stages.questions import preference_prompts, preference_questions

        return _counted(recipe, spec, tokenizer, preference_questions, preference_prompts)

    _once(recipe, tokenizer, check)


def check_rejection_questions(
    recipe: Rejection, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool
) -> None:
    """Whether there are the questions whose good answers become conversations, and each can be judged; the rest as
    `check_preference_questions`."""
    for setting, asked in recipe.asked_beside().items():
        _check_judge(f"{setting}.model", asked)
    if (here := recipe.seen()) is None:
        return
    recipe = here

    def check() -> Mapping[str, Mapping[str, Counts]]:
        from r1mega.stages.questions import rejection_prompts, rejection_questions

        return _counted(recipe, spec, tokenizer, rejection_questions, rejection_prompts)

    _once(recipe, tokenizer, check)


def _counted(
    recipe: Answering,
    spec: ModelSpec | None,
    tokenizer: Path | None,
    read: Callable[..., Any],
    put: Callable[..., Any],
) -> Mapping[str, Mapping[str, Counts]]:
    """What became of the questions of each source: read, and put to the model where it is known."""
    form = _form(recipe, tokenizer)
    if form is None or spec is None:
        return {"questions": read(recipe).counts}
    return {"questions": put(recipe, form, spec)[1]}


def _check_judge(setting: str, judge: JudgedBy | None) -> None:
    """Whether the folder of a model that judges or rewrites, where it is there, can be served and asked."""
    if judge is not None and judge.model is not None and judge.model.exists():
        check_served(setting, judge.model)
        refuse_unaskable(load_tokenizer(judge.model))


def _form(recipe: Answering, tokenizer: Path | None) -> PromptForm | None:
    """How the questions are put, where there is a tokenizer, of which no stop string holds an end token."""
    if tokenizer is None:
        look_at(recipe.prompt)
        return None
    loaded = load_tokenizer(tokenizer)
    refuse_ends_as_stops(recipe.sampling.stop, loaded, ends(loaded))
    return PromptForm(recipe.prompt, loaded, drawn_shots(recipe.prompt, recipe.seed))


def _once(recipe: Recipe, tokenizer: Path | None, check: Callable[[], Mapping[str, Mapping[str, Counts]]]) -> None:
    """Check what has not been found good before; what is left out of it is told in any case."""
    settings = recipe.model_dump(mode="json", exclude=PASSED_OVER)
    inputs = [one for one in recipe.inputs() if not one.model]
    paths = [source.path for source in inputs]
    trees = [verdicts.digest_of_tree(path) for path in paths if path.is_dir()]
    digests = verdicts.digest([path for path in paths if not path.is_dir()])
    key = verdicts.key("questions", settings, digests, trees, tokenizer_digest(tokenizer), seen())
    if verdicts.known(key):
        return
    with contextlib.ExitStack() as naming:
        for source in inputs:
            naming.enter_context(names_setting(source.setting.rpartition(".")[0], [source.path]))
        found = check()
    told = [
        line
        for what, of in found.items()
        for label, counts in of.items()
        for line in left_out(f"{what}, {label}", counts)
    ]
    verdicts.keep(key, f"the questions of a {recipe.stage} stage", told)
