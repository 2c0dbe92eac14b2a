"""Held-out questions answered by a finished model: a Hugging Face folder and an engine, no trainer.

The last weights of any stage can be compared this way; the GRPO stage evaluates itself as it goes.
"""

from collections.abc import Callable, Sequence

from r1mega.config.cluster import Cluster
from r1mega.data.prompts import held_out_prompts
from r1mega.data.special_tokens import ends, refuse_ends_as_stops
from r1mega.data.template import render_prompt, template
from r1mega.data.tokenizer import load_tokenizer
from r1mega.evaluation import results
from r1mega.evaluation.metrics import Graded, grade_all, results_of, summarise
from r1mega.evaluation.scores import doubling, score
from r1mega.evaluation.voting import same_answer
from r1mega.families.registry import check_tokenizer, read_model
from r1mega.recipe.evaluate import Evaluate
from r1mega.rollout.engine import Engine, Request, SamplingParams, derived_seed
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.server import Server
from r1mega.runtime import files
from r1mega.runtime.progress import Bar, Stopwatch
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Prompt


def run(
    config: Evaluate,
    cluster: Cluster,
    run_dir: RunDir,
    *,
    serve: Callable[..., Server] = Server,
    client: Callable[[list[Server]], Engine] = Fleet,
) -> None:
    """Write summary.json with pass@1 at the sampling temperature and greedily, and the judged answers of the former.

    Args:
        serve: starts what answers, as `Server` does.
        client: asks it, as `Fleet` does.
    """
    assert config.model.path is not None, "the recipe demands it"
    tokenizer = load_tokenizer(config.model.path)
    check_tokenizer(read_model(config.model.path), tokenizer, config.model.path)
    refuse_ends_as_stops(config.sampling.stop, tokenizer, ends(tokenizer))  # before the engine starts
    held_out = held_out_prompts(config.tasks, config.evaluation, tokenizer, template(config.template))
    files.write_jsonl(run_dir.path / "held_out.jsonl", ({"question": p.question} for p in held_out))
    server = serve(
        config.model.path,
        cluster.rollout,
        max_model_len=max(len(p.token_ids) for p in held_out) + config.sampling.max_new_tokens,
        seed=config.seed,
        log_file=run_dir.logs / "vllm.log",
    )
    total = len(held_out) * (config.evaluation.samples_per_question + 1)  # sampled, and once greedily
    with server, Bar("evaluate", total, unit="answer") as bar:
        bar.say("waiting for the server", f"its log is {server.log_file}")
        server.wait_ready()
        engine = client([server])

        def ask(params: SamplingParams, num_samples: int) -> list[Graded]:
            answers = engine.generate(
                [Request(p, num_samples, derived_seed(config.seed, "eval", 0, p.id)) for p in held_out],
                params,
                version=0,
                on_answer=lambda _, come: bar.advance(len(come)),
            )
            return grade_all(held_out, [c for group in answers for c in group])

        with Stopwatch() as watch:
            params = SamplingParams(**dict(config.sampling))
            sampled = ask(params, config.evaluation.samples_per_question)
            greedy = ask(params.greedy(), 1)
    result = {"after": summarise(sampled).to_json(), "greedy_after": summarise(greedy).to_json()}
    _write_results(config, run_dir, held_out, sampled)
    files.write_json(
        run_dir.path / "summary.json", {"stage": "evaluate", "seconds": watch.seconds, "steps": 0, "eval": result}
    )


def _write_results(config: Evaluate, run_dir: RunDir, held_out: Sequence[Prompt], sampled: Sequence[Graded]) -> None:
    """results.jsonl and evaluation.json of the sampled answers, for `r1mega compare` and whoever counts anew."""
    answers = results_of(held_out, sampled)
    sampling = {**config.sampling.model_dump(mode="json"), "samples": config.evaluation.samples_per_question}
    prompt = render_prompt(template(config.template), "{question}")
    digests = results.digests_of(answers, run_dir.lineage.start, prompt, sampling)
    ks = doubling(answers)
    scores = score(answers, same_answer, ks=ks, votes=ks[-1:])
    results.write(run_dir.path, answers, results.Record(digests, sampling, scores.to_json()))
