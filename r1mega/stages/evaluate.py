"""Held-out questions answered by a finished model, no trainer: a Hugging Face folder and our engine, or an endpoint.

The last weights of any stage can be compared this way; the GRPO stage evaluates itself as it goes. Answers are
journalled as they come, so that a stage that was killed or stopped goes on with --resume and asks for the rest.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from r1mega.buffers import Int32s
from r1mega.config.cluster import Cluster
from r1mega.data.asked_questions import Counts
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import prompt_of
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.template import TEMPLATES, render_prompt
from r1mega.endpoint.client import Client
from r1mega.errors import EndpointError
from r1mega.evaluation import results
from r1mega.evaluation.ballots import with_votes
from r1mega.evaluation.metrics import Graded, results_of, summarise
from r1mega.evaluation.scores import Scores, doubling, score
from r1mega.recipe.evaluate import QUESTION, AskedEndpoint, Evaluate
from r1mega.rewards.judges import preloaded
from r1mega.rewards.pool import Pool
from r1mega.rollout.engine import Engine, SamplingParams
from r1mega.rollout.remote import OneByOne, RemoteEngine
from r1mega.rollout.replay import JournalledEngine, open_journal
from r1mega.runtime import env, files
from r1mega.runtime.interrupt import Interrupt, Interrupted, StopNow
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Prompt
from r1mega.stages import held_out
from r1mega.stages.questions import evaluated_prompts, evaluated_questions, write_counts

Served = AbstractContextManager[Engine]
RESUME = "what was answered is in the journal; continue with --resume"


@dataclass(frozen=True)
class Asked:
    """Who is asked what."""

    prompts: Sequence[Prompt]
    counts: Mapping[str, Counts]
    """What became of the questions of each source, by its label."""
    written: str
    """How a question is put, with {question} in its place."""
    of: dict[str, str]
    """Whose answers these are, for people."""
    start: Callable[[Interrupt], Served]
    one_by_one: bool
    """Whether each answer is asked for, and journalled, by itself."""


def run(
    config: Evaluate,
    cluster: Cluster,
    run_dir: RunDir,
    *,
    serve: Callable[..., Served] | None = None,
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
    asked = (
        _folder(config, cluster, run_dir, serve) if config.endpoint is None else _endpoint(config, config.endpoint)
    )
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
        engine = OneByOne(journalled) if asked.one_by_one else journalled
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


def _folder(config: Evaluate, cluster: Cluster, run_dir: RunDir, serve: Callable[..., Served] | None) -> Asked:
    """A Hugging Face folder, served here. Its tokenizer and our server are imported for it alone."""
    from r1mega.data.tokenizer import load_tokenizer
    from r1mega.families.registry import check_tokenizer, read_model
    from r1mega.rollout.served import ServedModel

    path = config.model.path
    assert path is not None, "the recipe demands it"
    tokenizer = load_tokenizer(path)
    spec = read_model(path)
    check_tokenizer(spec, tokenizer, path)
    refuse_ends_as_stops(config.sampling.stop, tokenizer, ends(tokenizer))  # before the engine starts
    form = PromptForm(config.prompt, tokenizer)
    prompts, counts = evaluated_prompts(config, form, spec)

    def start(interrupt: Interrupt) -> Served:
        return (serve or ServedModel)(
            path,
            cluster.rollout,
            max_model_len=max(len(p.token_ids) for p in prompts) + config.sampling.max_new_tokens,
            seed=config.seed,
            log_file=run_dir.logs / "vllm.log",
            interrupt=interrupt,
        )

    return Asked(prompts, counts, form.write(QUESTION), {"model": str(path)}, start, one_by_one=False)


def _endpoint(config: Evaluate, endpoint: AskedEndpoint) -> Asked:
    """A server that is there already: it has the tokenizer, and counts the tokens."""
    asked = evaluated_questions(config)
    chat, prefill = endpoint.form == "chat", config.prompt.prefill  # the recipe refuses one where the server writes

    def put(question: str) -> str:
        if not chat:
            return render_prompt(TEMPLATES[str(config.prompt.template)], question) + prefill
        turns = [("system", endpoint.system)] if endpoint.system else []
        turns.append(("user", endpoint.user.replace(QUESTION, question)))
        return json.dumps([{"role": role, "content": said} for role, said in turns], ensure_ascii=False)

    prompts = [dataclasses.replace(prompt_of(q, Int32s(), prefill), sent=put(q.text)) for q in asked.questions]
    client = Client(endpoint, env.secret(endpoint.api_key_env) if endpoint.api_key_env else None)
    of = {"endpoint": endpoint.url, "model": endpoint.model}
    return Asked(
        prompts,
        asked.counts,
        put(QUESTION),
        of,
        lambda stop: RemoteEngine(client, endpoint.form, stop),
        one_by_one=True,
    )


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
