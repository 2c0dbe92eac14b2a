"""Preference data for a reward model (report 2.3.4): a finished model answers, a judge says which answer is
better, or which is safe.

    sample    n answers to every question, journalled as they come
    pair      which two of a question's answers go together; equal ones never do
    judge     four votes a pair, kept by content as they come
    select    the pairs whose mean gap exceeds 1, and of these a set in which lengths say nothing
    write     pairs.jsonl or labelled.jsonl, each row with where it comes from; judged.jsonl; summary.json

A run that is killed or stopped goes on with --resume, and asks nobody what was answered before: the rows are those of
an uninterrupted run. Whatever is left out is counted by its reason.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.data.pairing import SampledAnswer, pairs_of
from r1mega.data.signed_rows import sha256_of
from r1mega.errors import DataError, EndpointError
from r1mega.evaluation.judge_bias import bias_lines, length_bias, position_bias
from r1mega.recipe.preferences import MakePreferences
from r1mega.rewards.judge_forms import PAIR_FORMS, told
from r1mega.rewards.preference import PairVerdict, compare
from r1mega.rewards.safety import SAFETY_SYSTEM, Mark, mark
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt, Interrupted, StopNow
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Prompt
from r1mega.stages.answering import RESUME, Asked, Serve, ask_endpoint, ask_folder
from r1mega.stages.judging import Judging, judge_all, judged_by, why_none
from r1mega.stages.preference_rows import (
    Outcome,
    Pair,
    Provenance,
    Row,
    Selected,
    judged_answer,
    judged_pair,
    marked,
    select,
)
from r1mega.stages.questions import preference_prompts, preference_questions, write_counts
from r1mega.stages.sampled_answers import SampledAnswers, sample

log = logging.getLogger(__name__)


def run(
    config: MakePreferences,
    cluster: Cluster,
    run_dir: RunDir,
    *,
    serve: Serve | None = None,
) -> None:
    """Write pairs.jsonl, or labelled.jsonl; judged.jsonl and summary.json.

    Args:
        serve: makes what answers or judges for a folder, as `rollout.served.ServedModel` does, which is the default.

    Raises:
        ConfigError, DataError: settings, questions and tokenizer do not fit each other; or nothing is left to write.
        RolloutError: the engine cannot start or answer.
        EndpointError, EndpointLostError: an endpoint refuses, or fails for good; what was answered is kept.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; what was answered is kept.
    """
    if config.endpoint is None:
        asked = ask_folder(config, cluster, run_dir, serve, partial(preference_prompts, config))
    else:
        asked = ask_endpoint(config, config.endpoint, preference_questions(config))
    write_counts({"questions": asked.counts}, run_dir)
    with Interrupt() as interrupt, Stopwatch() as watch:
        try:
            answers = sample(config, asked, run_dir, interrupt)
            how = _asked_how(config)
            with judged_by(config.judge, cluster, run_dir, interrupt, serve, seed=config.seed, how=how) as judging:
                make = _pairs if config.label == "preference" else _labels
                made = make(config, asked, run_dir, answers, judging, interrupt)
        except StopNow:
            assert interrupt.received is not None
            raise Interrupted(interrupt.received, RESUME) from None
        except EndpointError as error:
            raise type(error)(f"{error}; {RESUME}") from error
    summary = {
        "stage": config.stage,
        "seconds": watch.seconds,
        "steps": 0,
        "replayed_answers": answers.replayed,
        "preference_data": {"label": config.label, **made},
    }
    files.write_json(run_dir.path / "summary.json", summary)


def _pairs(
    config: MakePreferences,
    asked: Asked,
    run_dir: RunDir,
    answers: SampledAnswers,
    judging: Judging,
    interrupt: Interrupt,
) -> Row:
    """Write the pairs; what they came to, for summary.json."""
    settings = config.pairs
    pairs, left_out = list[Pair](), Counter(answers.dropped)
    for prompt, some in answers.of:
        found, equal = pairs_of(some, settings, config.seed, prompt.id)
        pairs += [Pair(prompt, first, second) for first, second in found]
        left_out["equal"] += equal
        left_out["no_pair"] += not found
    if not pairs:
        raise DataError(f"no question has two different answers that can be judged ({_told(left_out)})")
    log.info("%d pairs of %d questions' answers go to the judge", len(pairs), len(answers.of))
    verdicts = judge_all(
        pairs,
        lambda pair: compare(
            judging.asker, pair.prompt.question, (pair.first.text, pair.second.text), settings, seed=config.seed
        ),
        judging,
        interrupt=interrupt,
        title="judging",
        unit="pair",
    )
    selected = select(pairs, verdicts, settings.min_gap, settings, config.seed)
    judged = list(zip(pairs, verdicts, selected.outcomes, strict=True))
    files.write_jsonl(run_dir.path / "judged.jsonl", (judged_pair(*one) for one in judged))
    left_out.update(outcome for outcome in selected.outcomes if outcome != "kept")
    _say(answers, verdicts, "pairs", left_out)
    for line in bias_lines(verdicts):
        log.info("%s", line)
    log.info("before balancing: %s", selected.before.told())
    log.info("%s, in steps of %g: %s", settings.balance, settings.length_step, selected.after.told())
    if not selected.after.pairs:
        why = why_none(verdicts, judging.said) or _why(config, selected)
        raise DataError(f"no pair is left of {len(pairs):,} judged ones ({_told(left_out)}): {why}")
    provenance = _provenance(config, asked, run_dir, judging)
    rows = (provenance.pair(pair, verdict) for pair, verdict, outcome in judged if outcome == "kept")
    files.write_jsonl(run_dir.path / "pairs.jsonl", rows)
    log.info("%d pairs: %s", selected.after.pairs, run_dir.path / "pairs.jsonl")
    return {
        "counts": {**_counts(answers), "pairs judged": len(pairs), "pairs": selected.after.pairs},
        "left_out": dict(left_out),
        "lengths": selected.lengths(settings),
        "judge": {"who": dict(judging.who), "unreadable": _unreadable(verdicts), "bias": _bias(verdicts)},
    }


def _bias(verdicts: Sequence[PairVerdict]) -> Row:
    """What the judge is left with for an answer's place and its length; null where no vote says anything of it."""
    found = {"position": position_bias(verdicts), "length": length_bias(verdicts)}
    return {name: None if one is None else dataclasses.asdict(one) for name, one in found.items()}


def _why(config: MakePreferences, selected: Selected) -> str:
    """Why no pair is left, and what can be had."""
    kept = "what was sampled and judged is kept, and the same command with other settings of pairs goes on from it"
    if not selected.before.pairs:
        return f"none has a gap of more than pairs.min_gap = {config.pairs.min_gap:g}; {kept}"
    can = ", ".join(f'{num:,} with "{method}"' for method, num in selected.possible.items())
    return (
        f"balanced, none of {selected.before.told()}; pairs.balance can keep {can}. Where nearly always the longer "
        'one is better, ask for more answers (answers.per_question), take pairs.choose = "closest" or a larger '
        f"pairs.length_step; {kept}"
    )


def _labels(
    config: MakePreferences,
    asked: Asked,
    run_dir: RunDir,
    answers: SampledAnswers,
    judging: Judging,
    interrupt: Interrupt,
) -> Row:
    """Write the marked answers; what they came to, for summary.json."""
    given = [(prompt, answer) for prompt, some in answers.of for answer in some]

    def submit(one: tuple[Prompt, SampledAnswer]) -> Any:
        prompt, answer = one
        return mark(judging.asker, prompt.question, answer.text, config.safety, seed=config.seed)

    marks = judge_all(given, submit, judging, interrupt=interrupt, title="judging", unit="answer")
    outcomes: list[Outcome] = [marked(one) for one in marks]
    judged = list(zip(given, marks, outcomes, strict=True))
    files.write_jsonl(
        run_dir.path / "judged.jsonl", (judged_answer(*one, what, outcome) for one, what, outcome in judged)
    )
    left_out = Counter(answers.dropped)
    left_out.update(outcome for outcome in outcomes if outcome != "kept")
    kept = [(*one, what) for one, what, outcome in judged if outcome == "kept"]
    _say(answers, marks, "answers", left_out)
    if not kept:
        why = why_none(marks, judging.said)
        raise DataError(
            f"no answer of {answers.sampled:,} is marked safe or unsafe ({_told(left_out)})" + (why and f": {why}")
        )
    provenance = _provenance(config, asked, run_dir, judging)
    files.write_jsonl(run_dir.path / "labelled.jsonl", (provenance.label(*one) for one in kept))
    safe = sum(bool(what.safe) for *_, what in kept)
    log.info("%d safe, %d unsafe: %s", safe, len(kept) - safe, run_dir.path / "labelled.jsonl")
    if safe in (0, len(kept)):
        log.warning("all of them are on one side: a reward model learns nothing from these; ask other questions")
    return {
        "counts": {**_counts(answers), "answers judged": len(given), "safe": safe, "unsafe": len(kept) - safe},
        "left_out": dict(left_out),
        "judge": {"who": dict(judging.who), "unreadable": _unreadable(marks)},
    }


def _counts(answers: SampledAnswers) -> dict[str, int]:
    return {"questions": len(answers.of), "answers": answers.sampled, "tokens of answers": answers.tokens}


def _say(
    answers: SampledAnswers, judged: Sequence[PairVerdict | Mark], what: str, left_out: Mapping[str, int]
) -> None:
    told = _told(left_out) or "none"
    log.info("%d answers sampled, %d %s judged; left out: %s", answers.sampled, len(judged), what, told)
    if unreadable := _unreadable(judged):
        log.warning("%d replies of the judge could not be read and were asked for again", unreadable)


def _unreadable(judged: Sequence[PairVerdict | Mark]) -> int:
    """Replies of the judge in which no vote could be read, over all that was judged."""
    return sum(one.unreadable for one in judged)


def _told(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{num:,} {why.replace('_', ' ')}" for why, num in left_out.items() if num)


def _provenance(config: MakePreferences, asked: Asked, run_dir: RunDir, judging: Judging) -> Provenance:
    policy = {**asked.of, "start": run_dir.lineage.start, "weight_version": 0, "asked_as": asked.written}
    sampling = {**config.sampling.model_dump(mode="json"), "n": config.answers.per_question, "seed": config.seed}
    return Provenance(policy, sampling, config.scope, judging.who)


def _asked_how(config: MakePreferences) -> dict[str, Any]:
    """How the judge is asked, for provenance; what it is told by its digest."""
    if config.label == "preference":
        asked, system = config.pairs, PAIR_FORMS[config.pairs.form][0]
        how: dict[str, Any] = {"votes": asked.votes, "order": asked.order, "form": asked.form}
        how["min_gap"] = asked.min_gap
    else:
        asked, system = config.safety, SAFETY_SYSTEM
        how = {"votes": asked.votes}
    words = told(asked.system, system), asked.prompt
    return {**how, "temperature": asked.temperature, "words": sha256_of("\0".join(words))}
