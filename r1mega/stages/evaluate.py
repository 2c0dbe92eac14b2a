"""Held-out questions answered by finished models, no trainer: Hugging Face folders and our engine, or an endpoint.

The last weights of any stage can be compared this way; the GRPO stage evaluates itself as it goes. Answers are
journalled as they come, so that a stage that was killed or stopped goes on with --resume and asks for the rest.

Several models are asked one after the other. Those that are served alike share a server, which is started for the
first of them that has anything to be asked and takes each other one's weights; it has ended before the next one
starts. Those come first whose server an earlier stage of a chain has left running. What each model comes to is in
RUN/NAME as what a single one comes to is in RUN, its journal included.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.errors import EndpointError
from r1mega.evaluation import results
from r1mega.evaluation.ballots import with_votes
from r1mega.evaluation.metrics import Graded, results_of, summarise
from r1mega.evaluation.results import QuestionResult
from r1mega.evaluation.scores import doubling, score
from r1mega.recipe.evaluate import Evaluate
from r1mega.rewards.judges import preloaded
from r1mega.rewards.pool import Pool
from r1mega.rollout.alike import served_as
from r1mega.rollout.engine import Engine, SamplingParams
from r1mega.rollout.kept import kinds_left
from r1mega.rollout.replay import JournalledEngine, open_journal
from r1mega.runtime import files, heartbeat
from r1mega.runtime.digests import digest_of
from r1mega.runtime.interrupt import Interrupt, Interrupted, StopNow
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.provenance import MODELS, inputs_in
from r1mega.runtime.run_dir import RunDir
from r1mega.stages import held_out
from r1mega.stages.answering import RESUME, Asked, Serve, ask_endpoint, ask_folder
from r1mega.stages.questions import evaluated_prompts, evaluated_questions, write_counts

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Examined:
    """One of the models, what it is asked, and where what comes of it stands."""

    name: str
    """"" where there is no other."""
    config: Evaluate
    """In which it is the one model."""
    asked: Asked
    folder: Path
    start: str
    """Digest of its weights, or of who answers at an endpoint."""

    @property
    def kinds(self) -> dict[str, tuple[int, SamplingParams]]:
        """Name of an evaluation -> answers to each question, and how they are drawn."""
        params = SamplingParams(**dict(self.config.sampling))
        return {
            "after": (self.config.evaluation.samples_per_question, params),
            "greedy_after": (1, params.greedy()),
        }

    @property
    def num_answers(self) -> int:
        return len(self.asked.prompts) * sum(num for num, _ in self.kinds.values())


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
    examined = _examined(config, cluster, run_dir, serve)
    counts = {f"evaluation{one.name and f' of {one.name}'}": one.asked.counts for one in examined}
    write_counts(counts, run_dir)
    prompts = [prompt for one in examined for prompt in one.asked.prompts]
    questions = dict.fromkeys(prompt.question for prompt in prompts)
    files.write_jsonl(run_dir.path / "held_out.jsonl", ({"question": question} for question in questions))
    came = dict[str, dict[str, Any]]()
    with (
        Interrupt() as interrupt,
        pool(preloaded=preloaded({prompt.verifier for prompt in prompts})) as judging,
        Bar("evaluate", sum(one.num_answers for one in examined), unit="answer") as bar,
        Stopwatch() as watch,
    ):
        try:
            heartbeat.phase("evaluate")
            for group in _served_alike(examined):
                several = {"room": max(one.asked.room for one in group)} if len(group) > 1 else {}
                with group[0].asked.start(interrupt, **several) as served:
                    for one in group:
                        if several:
                            served.turn_to(one.config.model.path)
                        came[one.name] = _evaluate(one, served, run_dir, judging, bar, interrupt)
        except StopNow:
            assert interrupt.received is not None
            raise Interrupted(interrupt.received, RESUME) from None
        except EndpointError as error:
            raise type(error)(f"{error}; {RESUME}") from error
    replayed = sum(of.pop("replayed_answers") for of in came.values())
    summary = {"stage": "evaluate", "seconds": watch.seconds, "steps": 0, "replayed_answers": replayed}
    found = {"models": {name: came[name] for name in config.models}} if config.models else came[""]
    files.write_json(run_dir.path / "summary.json", {**summary, **found})


def _examined(config: Evaluate, cluster: Cluster, run_dir: RunDir, serve: Serve | None) -> list[Examined]:
    """Who is asked, in the order of the config."""

    def of_folder(alone: Evaluate) -> Asked:
        return ask_folder(alone, cluster, run_dir, serve, partial(evaluated_prompts, alone))

    if config.models:
        digests = inputs_in(run_dir.path)
        return [
            Examined(name, alone, of_folder(alone), run_dir.path / name, digests[f"{MODELS}{name}"][0]["digest"])
            for name, alone in config.alone().items()
        ]
    endpoint = config.endpoint
    asked = ask_endpoint(config, endpoint, evaluated_questions(config)) if endpoint else of_folder(config)
    return [Examined("", config, asked, run_dir.path, run_dir.lineage.start)]


def _served_alike(examined: Sequence[Examined]) -> list[list[Examined]]:
    """Those that one server can answer for in turn are together, in the order of the first ones; but those whose
    server runs already come first, since it ends where another one starts."""
    if len(examined) == 1:
        return [list(examined)]
    groups: list[tuple[Any, list[Examined]]] = []
    for one in examined:
        assert one.config.model.path is not None, "an endpoint is asked alone"
        served = served_as(one.config.model.path)
        same = next((group for of, group in groups if of == served), None)
        if same is None:
            groups.append((served, [one]))
        else:
            same.append(one)
    running = kinds_left()
    groups.sort(key=lambda group: digest_of(dict(group[0])) not in running)
    return [group for _, group in groups]


def _evaluate(
    one: Examined, served: Engine, run_dir: RunDir, judging: Pool, bar: Bar, interrupt: Interrupt
) -> dict[str, Any]:
    """Ask one model, write down what it says, and sum it up."""
    config, asked, graded, replayed = one.config, one.asked, dict[str, list[Graded]](), 0
    lineage = dataclasses.replace(run_dir.lineage, start=one.start)
    if one.name:
        bar.say(one.name, f"{len(asked.prompts)} questions")
    with open_journal(run_dir, "journal", folder=one.folder, start=one.start) as journal:
        journalled = JournalledEngine(served, journal, policies=lineage.policies, replay="journal")
        engine = asked.journalled(journalled)
        for name, (num_samples, drawn) in one.kinds.items():
            graded[name] = held_out.ask(
                engine, asked.prompts, num_samples, drawn, seed=config.seed, version=0,
                on_judged=lambda _, some: bar.advance(len(some)), pool=judging, breakable=interrupt.at_once,
                required=config.answer_format,
            )  # fmt: skip
            replayed += journalled.replayed * (1 if asked.one_by_one else num_samples)
    evals = {name: summarise(answers).to_json() for name, answers in graded.items()}
    return {"replayed_answers": replayed, "eval": evals, **_write_results(one, graded["after"])}


def _write_results(one: Examined, sampled: Sequence[Graded]) -> dict[str, Any]:
    """results.jsonl and evaluation.json of the sampled answers, for `r1mega compare` and whoever counts anew; their
    scores, for the summary."""
    config, asked = one.config, one.asked
    answers = with_votes(results_of(asked.prompts, sampled), asked.prompts)
    sampling: dict[str, Any] = {
        **config.sampling.model_dump(mode="json"),
        "samples": config.evaluation.samples_per_question,
        "format": config.answer_format,
        **({"extra": config.endpoint.extra} if config.endpoint and config.endpoint.extra else {}),
    }
    digests = results.digests_of(answers, one.start, asked.written, sampling)
    scores = _scores(answers)
    columns = {name: column.model_dump(mode="json") for name, column in config.columns.items()}
    of_columns = {name: _scores_of_column(name, results.in_column(answers, c)) for name, c in columns.items()}
    results.write(one.folder, answers, results.Record(digests, sampling, scores, asked.of, columns))
    return {"scores": scores, **({"columns": of_columns} if columns else {})}


def _scores(answers: Sequence[QuestionResult]) -> dict[str, Any]:
    ks = doubling(answers)
    return score(answers, ks=ks, votes=ks[-1:]).to_json()


def _scores_of_column(name: str, answers: Sequence[QuestionResult]) -> dict[str, Any] | None:
    """None where nothing of the column could be scored, which is said."""
    if not any(answer.scored for answer in answers):
        log.warning("columns.%s: none of its %d questions has a scored answer", name, len(answers))
        return None
    return _scores(answers)
