"""Rejection sampling (report 2.3.3), and the traces of a cold start (2.3.1): a finished model answers, and what is
right and can be read becomes conversations to train on.

    sample    n answers to every question, journalled as they come, block by block
    sift      while others are sampled: cut ones, formless ones, filters, the rule; in processes with hard deadlines
    judge     what no rule can judge, kept by content as it comes
    select    equal answers of a question once, and of the others as many as it may keep
    rewrite   made readable and verified again, where that is asked for (`stages.rewriting`)
    write     rows.jsonl, each row with where it comes from; decisions.jsonl; summary.json

However many questions there are, the answers of one block alone are in memory: between sampling and judging those
that may still be kept lie in a file of the run directory. A run that is killed or stopped goes on with --resume, and
asks nobody what was answered before: the rows are those of an uninterrupted run. Every answer is counted once, by
what became of it (`stages.sifting.Outcome`).
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.data.scope import scoped
from r1mega.data.signed_rows import SHA256, Row, sha256_of
from r1mega.errors import DataError, EndpointError
from r1mega.recipe.rejection import Rejection
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judge import AnswerVerdict, judge_answer
from r1mega.rewards.judges import preloaded
from r1mega.rewards.language import Language
from r1mega.rewards.pool import Pool
from r1mega.runtime import files, heartbeat
from r1mega.runtime.interrupt import Interrupt, Interrupted, StopNow
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, Prompt, VerdictStatus
from r1mega.stages.answering import RESUME, Asked, Serve, ask_endpoint, ask_folder
from r1mega.stages.judging import Judging, judge_all, judged_by
from r1mega.stages.questions import rejection_prompts, rejection_questions, write_counts
from r1mega.stages.rejection_counts import OutcomeCounts, say, why_none
from r1mega.stages.rejection_rows import Finish, Kept, RowOrigin, as_they_are, decision_line, select
from r1mega.stages.rewriting import ORIGINALS, RewriteTally, rewriting
from r1mega.stages.sampled_answers import BLOCK, sample_in_blocks
from r1mega.stages.sifting import Decision, Sifting

log = logging.getLogger(__name__)

SIFTED = ".sifted.tmp.jsonl"
"""In the run directory, while it runs: a line a question, the decisions on its answers so far."""
SAID = "judgements.jsonl"
"""In the run directory: what the judge has said, by content."""


def run(
    config: Rejection,
    cluster: Cluster,
    run_dir: RunDir,
    *,
    serve: Serve | None = None,
    pool: Callable[..., Pool] = Pool,
) -> None:
    """Write rows.jsonl, decisions.jsonl and summary.json.

    Args:
        serve: makes what answers or judges for a folder, as `rollout.served.ServedModel` does, which is the default.
        pool: makes what filters and rules are asked in, as `Pool` does.

    Raises:
        ConfigError, DataError: settings, questions and tokenizer do not fit each other; or nothing is left to write.
        RewardError: programs are to be judged, and this machine has no sandbox.
        RolloutError: the engine cannot start or answer.
        EndpointError, EndpointLostError: an endpoint refuses, or fails for good; what was answered is kept.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; what was answered is kept.
    """
    if config.endpoint is None:
        asked = ask_folder(config, cluster, run_dir, serve, partial(rejection_prompts, config))
    else:
        asked = ask_endpoint(config, config.endpoint, rejection_questions(config))
    write_counts({"questions": asked.counts}, run_dir)
    (run_dir.path / ORIGINALS).unlink(missing_ok=True)  # of an earlier run with other settings
    sifted = run_dir.path / SIFTED
    with Interrupt() as interrupt, Stopwatch() as watch:
        try:
            heartbeat.phase("sampling")
            counted, waiting = _sample(config, asked, run_dir, interrupt, pool, sifted)
            judge, rewritten = config.verify.judge if waiting else None, RewriteTally()
            how = _asked_how(config)
            with ExitStack() as stack:
                judging, finish = None, as_they_are
                if judge is not None:
                    judging = stack.enter_context(
                        judged_by(
                            judge, cluster, run_dir, interrupt, serve, seed=config.seed, how=how,
                            setting="verify.judge", said=SAID,
                        )
                    )  # fmt: skip
                if config.rewrite is not None:
                    again = partial(_judge, config, judging=judging, interrupt=interrupt, counted=counted)
                    workers = partial(pool, preloaded=_modules(config, asked))
                    finish = stack.enter_context(
                        rewriting(
                            config, config.rewrite, cluster, run_dir, interrupt, serve, workers, again, rewritten
                        )
                    )
                _write(config, asked, run_dir, interrupt, sifted, judging, counted, finish)
        except StopNow:
            assert interrupt.received is not None
            raise Interrupted(interrupt.received, RESUME) from None
        except EndpointError as error:
            raise type(error)(f"{error}; {RESUME}") from error
        finally:
            sifted.unlink(missing_ok=True)
    judged = {"who": dict(judging.who), "unreadable": counted.unreadable} if judging else None
    summary = {
        "stage": config.stage,
        "seconds": watch.seconds,
        "steps": 0,
        "replayed_answers": counted.replayed,
        config.stage: {
            **counted.to_json(),
            "judge": judged,
            "rewrite": rewritten.to_json() if config.rewrite else None,
        },
    }
    files.write_json(run_dir.path / "summary.json", summary)


# ---- sample and sift -----------------------------------------------------------------------------------------------


def _sample(
    config: Rejection, asked: Asked, run_dir: RunDir, interrupt: Interrupt, pool: Callable[..., Pool], sifted: Path
) -> tuple[OutcomeCounts, int]:
    """Answers to every question, each with what is decided of it so far in `sifted`; and how many wait for the judge.

    Raises as `sample_in_blocks`.
    """
    counted, waiting = OutcomeCounts(), 0
    under_way = dict[int, Future[list[Decision]]]()
    with pool(preloaded=_modules(config, asked)) as workers, sifted.open("w", encoding="utf-8") as file:
        sifting = Sifting(config, workers)

        def take(place: int, completions: tuple[Completion, ...]) -> None:
            prompt = asked.prompts[place]
            under_way[place] = gathered([sifting.decide(prompt, one) for one in completions], list[Decision])
            counted.tokens += sum(one.num_tokens for one in completions)

        def end(block: range) -> None:
            nonlocal waiting
            for place in block:
                with interrupt.at_once():
                    decisions = under_way.pop(place).result()
                waiting += sum(one.outcome is None and not one.verdict for one in decisions)
                file.write(json.dumps([one.to_json() for one in decisions]) + "\n")

        counted.replayed = sample_in_blocks(
            config, asked, run_dir, interrupt, num=config.answers.per_question, what="rejection", take=take, end=end
        )
    return counted, waiting


def _modules(config: Rejection, asked: Asked) -> tuple[str, ...]:
    """What the processes import in which filters and rules are asked."""
    rewards = {"language": Language()} if config.filters.min_language else {}
    return preloaded({prompt.verifier for prompt in asked.prompts}, rewards)


def _read(sifted: Path, prompts: Sequence[Prompt]) -> Iterator[list[tuple[Prompt, list[Decision]]]]:
    """Questions with the decisions on their answers, block by block."""
    block: list[tuple[Prompt, list[Decision]]] = []
    with sifted.open(encoding="utf-8") as file:
        for prompt, line in zip(prompts, file, strict=True):
            block.append((prompt, [Decision.from_json(row) for row in json.loads(line)]))
            if len(block) == BLOCK:
                yield block
                block = []
    if block:
        yield block


# ---- judge, select and write ---------------------------------------------------------------------------------------


class _NothingKept(Exception):
    """No row is left to be written."""


def _write(
    config: Rejection,
    asked: Asked,
    run_dir: RunDir,
    interrupt: Interrupt,
    sifted: Path,
    judging: Judging | None,
    counted: OutcomeCounts,
    finish: Finish,
) -> None:
    """Write rows and decisions, and count them.

    Args:
        finish: see `stages.rejection_rows.Finish`; called with the kept answers of a block of questions.

    Raises:
        DataError: no answer is kept; decisions.jsonl says why of each.
        EndpointError, EndpointLostError, StopNow: as `judge_all`; nothing is written.
    """
    policy = {**asked.of, "start": run_dir.lineage.start, "weight_version": 0, "asked_as": asked.written}
    sampling = {**config.sampling.model_dump(mode="json"), "n": config.answers.per_question, "seed": config.seed}
    provenance, path = RowOrigin(policy, sampling), run_dir.path / "rows.jsonl"
    decided = run_dir.path / "decisions.jsonl"
    for left in (path, decided):
        files.remove_parts(left)
    with files.replacing(decided) as lines:
        try:
            with files.replacing(path) as rows:
                for block in _read(sifted, asked.prompts):
                    _judge(config, block, judging, interrupt, counted)
                    written = _finished(config, block, provenance, finish)
                    rows.writelines(json.dumps(row) + "\n" for row in written.values())
                    for prompt, some in block:
                        counted.count(prompt.domain, some)
                        named = ((one, written.get((prompt.id, one.index), {}).get(SHA256, "")) for one in some)
                        lines.writelines(json.dumps(decision_line(prompt, *one)) + "\n" for one in named)
                if not counted.total["kept"]:
                    raise _NothingKept
        except _NothingKept:
            path.unlink(missing_ok=True)  # of an earlier run with other settings
    say(counted, config.answers.marks)
    if not counted.total["kept"]:
        raise DataError(why_none(counted, decided))
    log.info("%s rows: %s", f"{counted.total['kept']:,}", path)


def _judge(
    config: Rejection,
    block: Sequence[tuple[Prompt, list[Decision]]],
    judging: Judging | None,
    interrupt: Interrupt,
    counted: OutcomeCounts,
) -> None:
    """Have those answers judged that wait for it. Raises as `judge_all`."""
    verify = config.verify
    waiting = [(prompt, one) for prompt, some in block for one in some if one.outcome is None and not one.verdict]
    if judging is None or not waiting:
        for _, decision in waiting:
            decision.drop("unscorable", "the rule that judged it before it was rewritten can do so no more")
        return

    def submit(one: tuple[Prompt, Decision]) -> Future[AnswerVerdict]:
        prompt, decision = one
        said = scoped(decision.text, "summary", config.answers.marks) or ""
        if len(said) > verify.max_characters:
            reason = f"{len(said):,} characters are more than verify.max_characters"
            return gathered([], lambda _: AnswerVerdict(VerdictStatus.UNSCORABLE, reason=reason))
        return judge_answer(judging.asker, prompt, said, verify.words)

    verdicts = judge_all(waiting, submit, judging, interrupt=interrupt, title="judging", unit="answer")
    for (_, decision), verdict in zip(waiting, verdicts, strict=True):
        counted.unreadable += verdict.unreadable
        if verdict.status is not VerdictStatus.SCORED:
            decision.drop("failed" if verdict.status is VerdictStatus.FAILED else "unscorable", verdict.reason)
            continue
        decision.verdict = {
            "by": "judge",
            "value": verdict.value,
            "votes": list(verdict.votes),
            "judge": dict(judging.who),
        }
        if verdict.value < verify.min_value:
            decision.drop("wrong", verdict.reason)


def _finished(
    config: Rejection,
    block: Sequence[tuple[Prompt, list[Decision]]],
    provenance: RowOrigin,
    finish: Finish,
) -> dict[tuple[str, int], Row]:
    """(question, index of the answer) -> the row that is written of it."""
    most, seed = config.answers.max_kept, config.seed
    kept = [
        Kept(prompt, one, provenance.row(prompt, one))
        for prompt, some in block
        for one in select(some, most, seed, prompt.id)
    ]
    written: dict[tuple[str, int], Row] = {}
    for one, made in zip(kept, finish(kept), strict=True):
        if made is not None:
            written[one.prompt.id, one.decision.index] = made
    return written


def _asked_how(config: Rejection) -> dict[str, Any]:
    """How the judge is asked, for provenance; what it is told by its digest."""
    asked = config.verify.words
    told = sha256_of("\0".join((asked.system_turn, asked.prompt)))
    return {"form": asked.form, "votes": asked.votes, "temperature": asked.temperature, "words": told}
