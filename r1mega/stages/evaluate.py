"""Held-out questions answered by a finished model, no trainer: a Hugging Face folder and our engine, or an endpoint.

The last weights of any stage can be compared this way; the GRPO stage evaluates itself as it goes. Answers are
journalled as they come, so that a stage that was killed or stopped goes on with --resume and asks for the rest.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.errors import EndpointError
from r1mega.evaluation import results
from r1mega.evaluation.ballots import with_votes
from r1mega.evaluation.metrics import Graded, results_of, summarise
from r1mega.evaluation.scores import Scores, doubling, score
from r1mega.recipe.evaluate import Evaluate
from r1mega.rewards.judges import preloaded
from r1mega.rewards.pool import Pool
from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.replay import JournalledEngine, open_journal
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt, Interrupted, StopNow
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.stages import held_out
from r1mega.stages.answering import RESUME, Asked, Serve, ask_endpoint, ask_folder
from r1mega.stages.questions import evaluated_prompts, evaluated_questions, write_counts


def run(
    config: Evaluate,
    cluster: Cluster,
    run_dir: RunDir,
    *,
    serve: Serve | None = None,
    pool: Callable[..., Pool] = Pool,
) -> None:
    """Write summary.json with pass@1 at the sampling temperature and greedily, and the judged answers of the former.

    Args:
        serve: makes what answers for a folder, as `rollout.served.ServedModel` does, which is the default.
        pool: makes what judges its answers, as `Pool` does.

    Raises:
        ConfigError, DataError: settings, questions and tokenizer do not fit each other.
        RolloutError: the engine cannot start or answer.
        EndpointError, EndpointLostError: it refuses, or fails for good; what was answered is in the journal.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; what was answered is in the journal.
    """
    if config.endpoint is None:
        asked = ask_folder(config, cluster, run_dir, serve, partial(evaluated_prompts, config))
    else:
        asked = ask_endpoint(config, config.endpoint, evaluated_questions(config))
    write_counts({"evaluation": asked.counts}, run_dir)
    files.write_jsonl(run_dir.path / "held_out.jsonl", ({"question": p.question} for p in asked.prompts))
    params = SamplingParams(**dict(config.sampling))
    kinds = {"after": (config.evaluation.samples_per_question, params), "greedy_after": (1, params.greedy())}
    graded = dict[str, list[Graded]]()
    with (
        Interrupt() as interrupt,
        open_journal(run_dir, "journal") as journal,
        asked.start(interrupt) as served,
        pool(preloaded=preloaded({prompt.verifier for prompt in asked.prompts})) as judging,
        Bar("evaluate", len(asked.prompts) * sum(num for num, _ in kinds.values()), unit="answer") as bar,
        Stopwatch() as watch,
    ):
        journalled = JournalledEngine(served, journal, policies=run_dir.lineage.policies, replay="journal")
        engine = asked.journalled(journalled)
        replayed = 0
        try:
            for name, (num_samples, drawn) in kinds.items():
                graded[name] = held_out.ask(
                    engine, asked.prompts, num_samples, drawn, seed=config.seed, version=0,
                    on_judged=lambda _, some: bar.advance(len(some)), pool=judging, breakable=interrupt.at_once,
                    required=config.answer_format,
                )  # fmt: skip
                replayed += journalled.replayed * (1 if asked.one_by_one else num_samples)
        except StopNow:
            assert interrupt.received is not None
            raise Interrupted(interrupt.received, RESUME) from None
        except EndpointError as error:
            raise type(error)(f"{error}; {RESUME}") from error
    summary = {"stage": "evaluate", "seconds": watch.seconds, "steps": 0, "replayed_answers": replayed}
    evals = {name: summarise(answers).to_json() for name, answers in graded.items()}
    scores = _write_results(config, run_dir, asked, graded["after"])
    files.write_json(run_dir.path / "summary.json", {**summary, "eval": evals, "scores": scores.to_json()})


def _write_results(config: Evaluate, run_dir: RunDir, asked: Asked, sampled: Sequence[Graded]) -> Scores:
    """results.jsonl and evaluation.json of the sampled answers, for `r1mega compare` and whoever counts anew."""
    answers = with_votes(results_of(asked.prompts, sampled), asked.prompts)
    sampling: dict[str, Any] = {
        **config.sampling.model_dump(mode="json"),
        "samples": config.evaluation.samples_per_question,
        "format": config.answer_format,
        **({"extra": config.endpoint.extra} if config.endpoint and config.endpoint.extra else {}),
    }
    digests = results.digests_of(answers, run_dir.lineage.start, asked.written, sampling)
    ks = doubling(answers)
    scores = score(answers, ks=ks, votes=ks[-1:])
    results.write(run_dir.path, answers, results.Record(digests, sampling, scores.to_json(), asked.of))
    return scores
