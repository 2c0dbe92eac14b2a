"""Held-out questions, asked of a finished model (stages/evaluate.py) and of GRPO's policy on its way."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from typing import Any

from r1mega.data.settings import AnswerFormat, Evaluation
from r1mega.evaluation.metrics import Graded, grade_in, summarise
from r1mega.rewards.gathering import gathered
from r1mega.rewards.judges import preloaded
from r1mega.rewards.pool import Pool
from r1mega.rollout.collect import Breakable, Count, Say, collect
from r1mega.rollout.engine import Engine, Request, SamplingParams, derived_seed
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Completion, Prompt

Log = Callable[[str, int, dict[str, Any]], None]
"""Takes the kind of a line of metrics, the step and the figures (`tracking.Tracker.log`)."""


def ask(
    engine: Engine,
    prompts: Sequence[Prompt],
    num_samples: int,
    params: SamplingParams,
    *,
    seed: int,
    version: int,
    on_judged: Callable[[int, Sequence[Graded]], None],
    pool: Pool | None = None,
    breakable: Breakable = nullcontext,
    required: AnswerFormat = "r1_zero",
) -> list[Graded]:
    """Judged answers of one evaluation, a prompt's behind each other.

    Args:
        num_samples: k, the answers to each prompt.
        seed: the run's. Answers are drawn with the same seeds at every version: a curve shows the weights, not the
            draw.
        on_judged: called with each prompt's place and grades, as they come.
        pool: judges while others are sampled; None: one of its own.
        breakable: see `collect`.
        required: what an answer has to look like to be right.

    Raises: as `collect` and `grade`.
    """
    asked = [Request(p, num_samples, derived_seed(seed, "eval", 0, p.id)) for p in prompts]
    verifiers = {prompt.verifier for prompt in prompts}
    with nullcontext(pool) if pool is not None else Pool(preloaded=preloaded(verifiers)) as judging:
        judge = partial(_graded, judging, required)
        graded = collect(
            engine, asked, params, version=version, judge=judge, on_judged=on_judged, breakable=breakable
        )
    return [one for group in graded for one in group]


def _graded(
    pool: Pool, required: AnswerFormat, prompt: Prompt, completions: tuple[Completion, ...]
) -> Future[tuple[Graded, ...]]:
    return gathered([grade_in(pool, prompt, completion, required) for completion in completions], tuple)


class HeldOut:
    """The evaluations of a training run, on rank 0; `NotHeldOut` elsewhere."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        settings: Evaluation,
        params: Callable[[int], SamplingParams],
        *,
        seed: int,
        run_dir: RunDir,
        log: Log,
        say: Say,
        pool: Pool,
        breakable: Breakable,
    ) -> None:
        """
        Args:
            params: how answers are drawn after so many steps.
            pool, breakable: see `ask`.
        """
        self._engine, self._prompts, self._settings, self._params = engine, prompts, settings, params
        self._seed, self._run_dir, self._log, self._say = seed, run_dir, log, say
        self._pool, self._breakable = pool, breakable

    def evaluate(self, step: int, *, greedy: bool) -> None:
        """Log the evaluation of the weights of `step` at the sampling temperature and, on request, greedily.

        One that a resumed run finds in its metrics is not repeated. Raises as `ask` and `summarise`.
        """
        done = {row["kind"] for row in self._run_dir.metrics() if row["step"] == step}
        drawn = self._params(step)
        kinds = {"eval": (self._settings.samples_per_question, drawn)}
        if greedy:
            kinds["eval_greedy"] = (1, drawn.greedy())
        for kind, (num_samples, params) in kinds.items():
            if kind in done:
                continue
            count = Count(self._say, "evaluation", len(self._prompts), num_samples)
            graded = ask(
                self._engine, self._prompts, num_samples, params, seed=self._seed, version=step, on_judged=count,
                pool=self._pool, breakable=self._breakable, required=self._settings.format or "r1_zero",
            )  # fmt: skip
            result = summarise(graded)
            self._log(kind, step, result.metrics() | {"result": result.to_json()})


class NotHeldOut:
    """`HeldOut` on the ranks that do not ask."""

    def evaluate(self, step: int, *, greedy: bool) -> None: ...
