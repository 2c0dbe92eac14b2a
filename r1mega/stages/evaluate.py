"""Held-out questions answered by a finished model: a Hugging Face folder and an engine, no trainer.

The last weights of any stage can be compared this way; the GRPO stage evaluates itself as it goes. Answers are
journalled as they come, so that a stage that was killed or stopped goes on with --resume and asks for the rest.
"""

from collections.abc import Callable, Sequence

from r1mega.config.cluster import Cluster
from r1mega.data.prompts import held_out_prompts
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.template import render_prompt, template
from r1mega.data.tokenizer import load_tokenizer
from r1mega.evaluation import results
from r1mega.evaluation.metrics import Graded, results_of, summarise
from r1mega.evaluation.scores import doubling, score
from r1mega.evaluation.voting import same_answer
from r1mega.families.registry import check_tokenizer, read_model
from r1mega.recipe.evaluate import Evaluate
from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.replay import JournalledEngine, open_journal
from r1mega.rollout.served import ServedModel
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt, Interrupted, StopNow
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Prompt
from r1mega.stages import held_out


def run(
    config: Evaluate, cluster: Cluster, run_dir: RunDir, *, serve: Callable[..., ServedModel] = ServedModel
) -> None:
    """Write summary.json with pass@1 at the sampling temperature and greedily, and the judged answers of the former.

    Args:
        serve: makes what answers, as `ServedModel` does.

    Raises:
        ConfigError, DataError: settings, tasks and tokenizer do not fit each other.
        RolloutError: the engine cannot start or answer.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; what was answered is in the journal.
    """
    assert config.model.path is not None, "the recipe demands it"
    tokenizer = load_tokenizer(config.model.path)
    check_tokenizer(read_model(config.model.path), tokenizer, config.model.path)
    refuse_ends_as_stops(config.sampling.stop, tokenizer, ends(tokenizer))  # before the engine starts
    prompts = held_out_prompts(config.tasks, config.evaluation, tokenizer, template(config.template))
    files.write_jsonl(run_dir.path / "held_out.jsonl", ({"question": p.question} for p in prompts))
    params = SamplingParams(**dict(config.sampling))
    kinds = {"after": (config.evaluation.samples_per_question, params), "greedy_after": (1, params.greedy())}
    graded = dict[str, list[Graded]]()
    with (
        Interrupt() as interrupt,
        open_journal(run_dir, "journal") as journal,
        serve(
            config.model.path,
            cluster.rollout,
            max_model_len=max(len(p.token_ids) for p in prompts) + params.max_new_tokens,
            seed=config.seed,
            log_file=run_dir.logs / "vllm.log",
            interrupt=interrupt,
        ) as served,
        Bar("evaluate", len(prompts) * sum(num for num, _ in kinds.values()), unit="answer") as bar,
        Stopwatch() as watch,
    ):
        engine = JournalledEngine(served, journal, policies=run_dir.lineage.policies, replay="journal")
        replayed = 0
        try:
            for name, (num_samples, drawn) in kinds.items():
                graded[name] = held_out.ask(
                    engine, prompts, num_samples, drawn, seed=config.seed, version=0,
                    on_judged=lambda _, some: bar.advance(len(some)),
                )  # fmt: skip
                replayed += engine.replayed * num_samples
        except StopNow:
            assert interrupt.received is not None
            raise Interrupted(
                interrupt.received, "what was answered is in the journal; continue with --resume"
            ) from None
    summary = {"stage": "evaluate", "seconds": watch.seconds, "steps": 0, "replayed_answers": replayed}
    evals = {name: summarise(answers).to_json() for name, answers in graded.items()}
    _write_results(config, run_dir, prompts, graded["after"])
    files.write_json(run_dir.path / "summary.json", {**summary, "eval": evals})


def _write_results(config: Evaluate, run_dir: RunDir, prompts: Sequence[Prompt], sampled: Sequence[Graded]) -> None:
    """results.jsonl and evaluation.json of the sampled answers, for `r1mega compare` and whoever counts anew."""
    answers = results_of(prompts, sampled)
    sampling = {**config.sampling.model_dump(mode="json"), "samples": config.evaluation.samples_per_question}
    prompt = render_prompt(template(config.template), "{question}")
    digests = results.digests_of(answers, run_dir.lineage.start, prompt, sampling)
    ks = doubling(answers)
    scores = score(answers, same_answer, ks=ks, votes=ks[-1:])
    results.write(run_dir.path, answers, results.Record(digests, sampling, scores.to_json()))
