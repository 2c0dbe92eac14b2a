"""What a stage asks: an RL run's training questions, and an evaluation's, which no run trains on."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r1mega.data.asked_questions import (
    AskedQuestions,
    Counts,
    evaluation_questions,
    refuse_too_few,
    training_questions,
)
from r1mega.data.few_shot import drawn_shots
from r1mega.data.mixture import Stream, refuse_unfillable, stream_of
from r1mega.data.prompt_form import PromptForm, look_at
from r1mega.data.prompts import prompts
from r1mega.data.question import NO_VERIFIER
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.split import HELD_OUT, what_is_asked
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import DataError, RewardError, listed
from r1mega.families.registry import check_tokenizer, read_language_model
from r1mega.families.spec import ModelSpec
from r1mega.layout.laws import check_lengths
from r1mega.recipe.answering import Making
from r1mega.recipe.asking import Asking, Evaluated
from r1mega.recipe.grpo import GRPO
from r1mega.recipe.preferences import MakePreferences
from r1mega.recipe.rejection import Rejection
from r1mega.recipe.without_truth import EVALUATED, asks_of_another_language, asks_without_truth
from r1mega.rewards.code import fault_of_machine, fault_of_question
from r1mega.rewards.truths import doubts
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
    stream: Stream
    """Of `train`, from its beginning."""
    chat_template: str = ""
    """Makes the tokens of their prompts, in Jinja."""
    counts: Mapping[str, Mapping[str, Counts]] = field(default_factory=dict[str, Mapping[str, Counts]])
    """{"questions", "evaluation"} -> label of a source -> what was read, and what of it was left out."""

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
    write_counts(asked.counts, run_dir)
    for name, some in (("trained_on", asked.train), ("held_out", asked.held_out)):
        files.write_jsonl(run_dir.path / f"{name}.jsonl", ({"question": p.question} for p in some))
    return asked


def write_counts(counts: Mapping[str, Mapping[str, Counts]], run_dir: RunDir) -> None:
    """Say and write down what became of the questions of each source, by what they are for and its label."""
    for what, of in counts.items():
        for label, some in of.items():
            told = ", ".join(f"{num:,} {name.replace('_', ' ')}" for name, num in some.items() if num)
            log.info("%s, %s: %s", what, label, told)
    files.write_json(run_dir.questions, {what: dict(of) for what, of in counts.items()})


def ask(config: GRPO) -> Questions:
    """The run's questions, checked.

    Raises:
        DataError: as `training_questions`; a truth can never be right; prompts are too long; or the tokenizer does
            not fit the model.
        ConfigError: answers to them may be longer than the model or a chunk holds.
    """
    assert config.model.path is not None
    tokenizer = load_tokenizer(config.model.path)
    form = PromptForm(config.prompt, tokenizer)
    spec = read_language_model(config.model.path)
    check_tokenizer(spec, tokenizer, config.model.path)
    refuse_ends_as_stops(config.sampling.stop, tokenizer, ends(tokenizer, spec.ends))  # before anything starts
    log.info("a question is put as %r", form.write("{question}"))
    evaluated, read = _read(config)
    held_out = _evaluated_prompts(config, evaluated, form, spec)
    made = prompts(read.questions, form, read.where.__getitem__)
    train = fitting(made, read, *prompt_limit(config, spec, config.max_prompt_tokens))
    refuse_too_few(len(train), read, config.rollout.num_prompts)
    template_text = tokenizers.chat_template_of(train, form)
    refuse_unfillable(read, Counter(p.source for p in train), config.rollout.num_prompts, config.num_steps)
    stream = stream_of(train, read, config.seed, config.num_steps)
    asked = Questions(
        train, held_out, stream, template_text, {"questions": read.counts, "evaluation": evaluated.counts}
    )
    check_lengths(asked.longest + config.sampling.longest, spec, config.batch)
    return asked


def ask_without_tokens(config: GRPO) -> Mapping[str, Mapping[str, Counts]]:
    """As much of `ask` as is known without the model and its tokenizer; its counts. Raises as it does."""
    look_at(config.prompt)
    evaluated, read = _read(config)
    return {"questions": read.counts, "evaluation": evaluated.counts}


def evaluated_questions(config: Evaluated) -> AskedQuestions:
    """The questions of a stage's evaluation, each of which has an answer that scores.

    Raises DataError and ConfigError as `evaluation_questions`, and DataError where a truth can never be right, or a
    question has none.
    """
    asked = evaluation_questions(config.evaluation.questions, config.evaluation.seed, verifiers=VERIFIERS)
    if unjudged := [asked.where[q.id] for q in asked.questions if q.verifier == NO_VERIFIER]:
        raise DataError(listed(f"evaluation.questions: {EVALUATED}; leave these out", unjudged))
    _refuse_hopeless(asked)
    _refuse_without_sandbox(asked)
    return asked


def evaluated_prompts(
    config: Evaluated, form: PromptForm, spec: ModelSpec
) -> tuple[list[Prompt], Mapping[str, Counts]]:
    """The prompts of a stage's evaluation, and what became of its questions, by their source's label.

    Raises as `evaluated_questions` and `fitting`, and DataError where none is left.
    """
    asked = evaluated_questions(config)
    return _evaluated_prompts(config, asked, form, spec), asked.counts


def _evaluated_prompts(config: Asking, asked: AskedQuestions, form: PromptForm, spec: ModelSpec) -> list[Prompt]:
    made = prompts(asked.questions, form, asked.where.__getitem__)
    if not (kept := fitting(made, asked, *prompt_limit(config, spec))):
        raise DataError(f"evaluation.questions: none of {len(made)} is short enough to be asked")
    return kept


def preference_questions(config: MakePreferences) -> AskedQuestions:
    """The questions whose answers become preference data: none of the held-out side, whatever their truths.

    Raises as `training_questions`.
    """
    return training_questions(config.questions, config.seed, verifiers=VERIFIERS)


def preference_prompts(
    config: MakePreferences, form: PromptForm, spec: ModelSpec
) -> tuple[list[Prompt], Mapping[str, Counts]]:
    """Their prompts, and what became of the questions, by their source's label.

    Raises as `preference_questions` and `fitting`, and DataError where none is left.
    """
    return _prompts_of(preference_questions(config), config, form, spec)


def rejection_questions(config: Rejection) -> AskedQuestions:
    """The questions whose good answers become conversations: none of the held-out side.

    Raises: as `training_questions`; DataError where a truth can never be right, or a question can be judged by
        neither rule nor judge; RewardError where programs are to be judged and this machine has no sandbox.
    """
    read = training_questions(config.questions, config.seed, verifiers=VERIFIERS)
    _refuse_hopeless(read)
    _refuse_without_sandbox(read)
    _refuse_asked_examples(config, read)
    judge = config.verify.judge
    unjudged = [read.where[q.id] for q in read.questions if q.verifier == NO_VERIFIER]
    if unjudged and judge is None and config.verify.unjudged == "refuse":
        some = f"{len(unjudged)} question(s) that no rule can judge: name a judge ([verify.judge.endpoint] or model)"
        raise DataError(listed(f'{some}, or keep their answers unjudged with verify.unjudged = "keep"', unjudged))
    if judge is not None and config.verify.words.needs_truth:
        bare = [read.where[q.id] for q in read.questions if q.verifier == NO_VERIFIER and not q.truth.strip()]
        if bare:
            remedy = "give them one, or leave {truth} out of verify.words.prompt and say in system what is good"
            raise DataError(listed(f"{len(bare)} question(s) without a truth for the judge; {remedy}", bare))
    return read


def _refuse_asked_examples(config: Making, read: AskedQuestions) -> None:
    """Raises DataError where an example that stands before the questions is one of them, or is held out."""
    asked = {what_is_asked(q.text): read.where[q.id] for q in read.questions}
    for shot in drawn_shots(config.prompt, config.seed):
        if (where := asked.get(what_is_asked(shot.question))) is not None:
            raise DataError(f"{shot.where}: the example asks what {where} asks, and would give it away: take it out")
        if shot.question in HELD_OUT:
            raise DataError(
                f"{shot.where}: the example's question is of the held-out side, which nothing is made of that is "
                "trained on: take another"
            )


def rejection_prompts(
    config: Rejection, form: PromptForm, spec: ModelSpec
) -> tuple[list[Prompt], Mapping[str, Counts]]:
    """As `preference_prompts`, of `rejection_questions`."""
    return _prompts_of(rejection_questions(config), config, form, spec)


def _prompts_of(
    read: AskedQuestions, config: Making, form: PromptForm, spec: ModelSpec
) -> tuple[list[Prompt], Mapping[str, Counts]]:
    made = prompts(read.questions, form, read.where.__getitem__)
    kept = fitting(made, read, *prompt_limit(config, spec))
    refuse_too_few(len(kept), read, 1)
    return kept, read.counts


def _read(config: GRPO) -> tuple[AskedQuestions, AskedQuestions]:
    """The questions of the evaluation, and those to train on."""
    evaluated = evaluated_questions(config)
    read = training_questions(
        config.questions, config.seed, verifiers=VERIFIERS, evaluation=evaluated, least=config.rollout.num_prompts
    )
    left = Counter(q.source for q in read.questions)
    refuse_unfillable(read, left, config.rollout.num_prompts, config.num_steps)
    _refuse_asked_without_truth(config, read)
    _refuse_asked_of_another_language(config, read)
    _refuse_hopeless(read)
    _refuse_without_sandbox(read)
    return evaluated, read


def _refuse_asked_without_truth(config: GRPO, read: AskedQuestions) -> None:
    """Raises DataError where a reward for right answers is asked of questions whose column says that none is."""
    found = {read.where[q.id]: asks_without_truth(config.rewards, q) for q in read.questions}
    if wrong := {place: name for place, name in found.items() if name}:
        name = next(iter(wrong.values()))
        some = f'{len(wrong)} question(s) of verifier "{NO_VERIFIER}", which have no right answer'
        remedy = "give them a table with a domain of its own, and the reward domains without it"
        raise DataError(listed(f"rewards.{name}: is asked of {some}: {remedy}", list(wrong)))


def _refuse_asked_of_another_language(config: GRPO, read: AskedQuestions) -> None:
    """Raises DataError where a reward for constraints met is learnt from, and asked of questions that have none."""
    found = {read.where[q.id]: asks_of_another_language(config.rewards, q) for q in read.questions}
    if wrong := {place: name for place, name in found.items() if name}:
        name = next(iter(wrong.values()))
        some = f"{len(wrong)} question(s) that are no prompts of the constraint language"
        remedy = "say which it is for (domains), or give it weight = 0"
        raise DataError(
            listed(f"rewards.{name}: is asked of {some}, whose answers it cannot judge: {remedy}", list(wrong))
        )


def _refuse_without_sandbox(asked: AskedQuestions) -> None:
    """Raises RewardError where programs are to be judged and this machine has no sandbox, or no compiler."""
    if fault := fault_of_machine(asked.questions):
        raise RewardError(fault)


def _refuse_hopeless(asked: AskedQuestions) -> None:
    """Raises DataError where no answer to a question can be right; says where only one that is word for word can."""
    found = doubts(asked.doubtful)
    if unread := {asked.where[q.id]: fault for q, _ in found if (fault := fault_of_question(q)) is not None}:
        faults = [f"{where}: {fault}" for where, fault in unread.items()]
        raise DataError(listed(f"{len(faults)} question(s) of code that cannot be judged (their entry):", faults))
    told = {
        never: [
            f"{asked.where[q.id]}: truth {q.truth[:60]!r} of verifier {q.verifier}: {doubt.why}"
            for q, doubt in found
            if doubt.never is never
        ]
        for never in (True, False)
    }
    if told[True]:
        raise DataError(
            listed(
                f"{len(told[True])} truth(s) that no answer can match by their own verifier; write each as it reads "
                "answers, or name another verifier",
                told[True],
            )
        )
    if told[False]:
        log.warning(
            listed(f"{len(told[False])} truth(s) that an answer matches only where it says the same", told[False])
        )


def prompt_limit(config: Asking, spec: ModelSpec, own: int = 0) -> tuple[int, str]:
    """Tokens of the longest prompt, and what says so; `own` is a setting's limit, 0 where there is none.

    It follows from the model and the settings of the stage, never from batch.chunk_tokens, which must not change the
    result.
    """
    positions = spec.max_positions - config.sampling.longest
    if own and own <= positions:
        return own, "max_prompt_tokens"
    return positions, f"the model's {spec.max_positions} positions less sampling.max_new_tokens"


def fitting(made: Sequence[Prompt], asked: AskedQuestions, limit: int, bound: str) -> list[Prompt]:
    """The prompts that are not too long; the others are counted.

    Raises:
        DataError: names those that are too long and whose source does not drop them.
    """
    long = [p for p in made if len(p.token_ids) > limit]

    def told(some: Sequence[Prompt]) -> list[str]:
        return [
            f"{asked.where[p.id]}: {len(p.token_ids)} tokens: {p.question[:60]!r}{'...' * (len(p.question) > 60)}"
            for p in some
        ]

    if wrong := [p for p in long if asked.sources[p.source].too_long == "error"]:
        remedy = 'take them out, or set too_long = "drop" in that table'
        some = f"{len(wrong)} prompt(s) longer than {limit} tokens, {bound}; {remedy}"
        raise DataError(listed(some, told(wrong)))
    if long:
        log.warning(listed(f"{len(long)} prompt(s) longer than {limit} tokens dropped ({bound})", told(long)))
    for prompt in long:
        asked.counts[prompt.source]["too_long"] += 1
    return [p for p in made if len(p.token_ids) <= limit]
