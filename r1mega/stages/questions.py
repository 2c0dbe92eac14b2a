"""What an RL run asks: training questions, made or read, and held-out ones, which no run trains on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from r1mega.data.prompts import held_out_prompts, prompts
from r1mega.data.sources.reasoning_gym import questions
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.split import TRAINED_ON
from r1mega.data.template import template
from r1mega.data.tokenizer import load_tokenizer
from r1mega.data.training_questions import TrainingQuestions, refuse_too_few, training_questions
from r1mega.errors import DataError, listed
from r1mega.families.registry import check_tokenizer, read_model
from r1mega.families.spec import ModelSpec
from r1mega.layout.laws import check_lengths
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.accuracy import can_be_right
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.runtime import files
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Prompt
from r1mega.stages import tokenizers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """What a run asks."""

    train: list[Prompt]
    held_out: list[Prompt]
    chat_template: str = ""
    """Makes the tokens of their prompts, in Jinja."""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """"read", from a file or made, and what of them was left out."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(p.token_ids) for p in [*self.train, *self.held_out])


def make_questions(config: GRPO, run_dir: RunDir) -> Questions:
    """The run's questions, how many were left out, and the tokenizer that says how they are asked, written down.

    Raises as `ask`.
    """
    assert config.model.path is not None
    asked = ask(config)
    tokenizers.write(config.model.path, run_dir.tokenizer, asked.chat_template)
    files.write_json(run_dir.questions, dict(asked.counts))
    for name, some in (("trained_on", asked.train), ("held_out", asked.held_out)):
        files.write_jsonl(run_dir.path / f"{name}.jsonl", ({"question": p.question} for p in some))
    return asked


def ask(config: GRPO) -> Questions:
    """The run's questions, checked.

    Raises:
        DataError: as `training_questions`; a truth can never be right; prompts are too long; a training question is
            asked in the evaluation; or the tokenizer does not fit the model.
        ConfigError: answers to them may be longer than the model or a chunk holds.
    """
    assert config.model.path is not None
    tokenizer = load_tokenizer(config.model.path)
    put = template(config.template)
    spec = read_model(config.model.path)
    check_tokenizer(spec, tokenizer, config.model.path)
    refuse_ends_as_stops(config.sampling.stop, tokenizer, ends(tokenizer, spec.ends))  # before anything starts
    held_out = held_out_prompts(config.tasks, config.evaluation, tokenizer, put)
    read = _read(config)
    train, counts = _fitting(config, spec, prompts(read.questions, tokenizer, put, read.where.__getitem__), read)
    asked = Questions(train, held_out, tokenizers.chat_template_of(train, put, tokenizer), counts)
    _refuse_common({p.question for p in asked.train} & {p.question for p in asked.held_out})
    check_lengths(asked.longest + config.sampling.max_new_tokens, spec, config.batch)
    return asked


def ask_without_tokens(config: GRPO) -> Mapping[str, int]:
    """As much of `ask` as is known without the model and its tokenizer; its counts. Raises as it does."""
    held_out = questions(config.tasks, config.evaluation.num_questions, config.evaluation.seed, exclude=TRAINED_ON)
    read = _read(config)
    _refuse_common({q.text for q in read.questions} & {q.text for q in held_out})
    return read.counts


def _refuse_common(common: set[str]) -> None:
    if common:
        raise DataError(f"{len(common)} training questions are held out for evaluation, such as {min(common)!r}")


def _read(config: GRPO) -> TrainingQuestions:
    """The training questions, each of which has an answer that scores."""
    sources = config.sources()
    least = config.rollout.num_prompts
    read = training_questions(sources, config.seed, verifiers=VERIFIERS, duplicates=config.duplicates, least=least)
    if all(source.sound for source in sources):
        return read
    if hopeless := [q for q in read.questions if not can_be_right(q)]:
        told = [f"{read.where[q.id]}: truth {q.truth[:60]!r} of task {q.verifier}" for q in hopeless]
        raise DataError(
            listed(
                f"{read.title}: {len(hopeless)} truth(s) that no answer can match: given back as the answer they are "
                "wrong by their task's own verifier; write each as it reads answers (a bare number, no units, no "
                "LaTeX)",
                told,
            )
        )
    return read


def _fitting(
    config: GRPO, spec: ModelSpec, asked: list[Prompt], read: TrainingQuestions
) -> tuple[list[Prompt], dict[str, int]]:
    """The prompts that are not too long, and what became of the questions that were read.

    How long is too long follows from the model and the settings of the stage, never from batch.chunk_tokens, which
    must not change the result.

    Raises:
        DataError: names those that are too long; or fewer are left than a rollout takes.
    """
    limit = spec.max_positions - config.sampling.max_new_tokens
    limit = min(limit, config.max_prompt_tokens) if config.max_prompt_tokens else limit
    long = [p for p in asked if len(p.token_ids) > limit]

    def place(p: Prompt) -> str:
        more = "..." if len(p.question) > 60 else ""
        return f"{read.where[p.id]}: {len(p.token_ids)} tokens: {p.question[:60]!r}{more}"

    if long:
        told = [place(p) for p in long]
        bound = (
            "max_prompt_tokens"
            if limit == config.max_prompt_tokens
            else f"the model's {spec.max_positions} positions less sampling.max_new_tokens"
        )
        if config.too_long == "error":
            remedy = 'take them out, or set too_long = "drop"'
            raise DataError(listed(f"{len(long)} prompt(s) longer than {limit} tokens, {bound}; {remedy}", told))
        log.warning(listed(f"{len(long)} prompt(s) longer than {limit} tokens dropped ({bound})", told))
    kept = [p for p in asked if len(p.token_ids) <= limit]
    counts = {**read.counts, "too_long": len(long)}
    refuse_too_few(read.title, len(kept), counts, config.rollout.num_prompts)
    return kept, counts
