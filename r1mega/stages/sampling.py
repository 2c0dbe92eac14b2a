"""The first rank's half of an RL stage: questions, engine, journal and verdicts; the trainer's ranks learn from it.

Answers are journalled as they arrive, and the engine is asked only for what the journal lacks. So it is started and
given weights only when there is something to sample: a resumed run that replays its journal needs no server at all.
"""

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from r1mega.algos.advantage import samples_from_groups
from r1mega.config.cluster import Cluster
from r1mega.data.prompts import PromptStream
from r1mega.diagnostics.rollout import rollout_metrics, transcripts
from r1mega.errors import RolloutError
from r1mega.evaluation.metrics import evaluate
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.rubric import Rubric
from r1mega.rollout.engine import OnAnswer, Request, SamplingParams, derived_seed
from r1mega.rollout.fleet import Fleet
from r1mega.rollout.journal import Journal
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.replay import JournalledEngine
from r1mega.rollout.server import Server
from r1mega.runtime import files
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.progress import Stopwatch
from r1mega.runtime.resources import peak_rss_gib
from r1mega.runtime.run_dir import RunDir
from r1mega.runtime.tracking import Tracker
from r1mega.samples import Completion, Group, Prompt, Sample
from r1mega.stages.questions import Questions
from r1mega.weights.push import Pusher, Source

log = logging.getLogger(__name__)

Metrics = dict[str, Any]

MAX_EMPTY_ROLLOUTS = 10
"""Rollouts in a row that leave nothing to learn from before the run gives up."""


class LiveEngine:
    """The servers, started when they are first needed and kept at the policy's weights. An `Engine`."""

    def __init__(
        self,
        model_dir: Path,
        cluster: Cluster,
        *,
        max_model_len: int,
        seed: int,
        log_file: Path,
        on_recovery: Callable[[Recovery], None],
        interrupt: Interrupt,
    ) -> None:
        """interrupt: breaks off waiting for servers or their answers, and nothing else: a push is a collective."""
        self._arguments = (model_dir, cluster.rollout)
        self._options: dict[str, Any] = {"max_model_len": max_model_len, "seed": seed, "log_file": log_file}
        self._address, self._on_recovery, self._interrupt = cluster.address, on_recovery, interrupt
        self._turn = threading.Lock()
        self._halted = False
        self._server: Server | None = None
        self._pusher: Pusher | None = None
        self._fleet: Fleet | None = None
        self._version = -1
        self.push_seconds = 0.0
        """Of all pushes since it was set to 0."""

    def start(self) -> None:
        """Start the processes, and return while they are starting."""
        if self._server is None:
            log.info("starting the rollout server; its log: %s", self._options["log_file"])
            self._server = Server(*self._arguments, **self._options)

    def connect(self, source: Source, announce: Callable[[], None]) -> None:
        """Where weights come from; see `Pusher`."""
        self._source, self._announce = source, announce

    def prepare(self) -> None:
        """What takes long and can be done while the servers start: the imports that pushing needs."""
        if self._server is not None:
            self._pusher_of(self._server).prepare()

    def bring_to(self, version: int) -> None:
        """Let every server sample from the policy's weights, which are of `version`."""
        if version == self._version:
            return
        self.start()
        assert self._server is not None
        if self._fleet is None:
            with self._interrupt.at_once():
                self._server.wait_ready()
            self._fleet = Fleet([self._server], reload=self._reload, on_recovery=self._on_recovery)
        report = self._pusher_of(self._server).push(version)
        for recovery in report.recoveries:
            self._on_recovery(recovery)
        self._version = version
        self.push_seconds += report.seconds

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        version: int,
        on_answer: OnAnswer | None = None,
    ) -> list[tuple[Completion, ...]]:
        """See `Engine.generate`; after `bring_to` of the same version."""
        assert self._fleet is not None, "bring_to comes first"
        with self._interrupt.at_once():
            return self._fleet.generate(requests, params, version=version, on_answer=on_answer)

    def peak_rss_gib(self) -> float:
        return peak_rss_gib(self._server.pid, tree=True) if self._server is not None else 0.0

    def stop(self) -> None:
        if self._pusher is not None:
            self._pusher.close()
        if self._server is not None:
            self._server.stop()

    def halt(self) -> None:
        """Begin no more pushes, and wait for one that another thread is in the middle of."""
        with self._turn:
            self._halted = True

    def _reload(self, server: Server, version: int) -> None:
        with self._turn:
            if self._halted:
                raise RolloutError("the run is stopping: the restarted server gets no weights")
            report = self._pusher_of(server).push(version, [server])
        for recovery in report.recoveries:
            self._on_recovery(recovery)

    def _pusher_of(self, server: Server) -> Pusher:
        if self._pusher is None:
            self._pusher = Pusher(
                self._source,
                [server],
                announce=self._announce,
                address=self._address,
                breakable=self._interrupt.at_once,
            )
        return self._pusher


class Sampling:
    """What the first rank does for a step: ask, judge, and hand over samples; evaluate held-out questions."""

    def __init__(
        self,
        config: GRPO,
        cluster: Cluster,
        run_dir: RunDir,
        questions: Questions,
        step: int,
        interrupt: Interrupt,
        engine: Callable[..., LiveEngine] = LiveEngine,
    ) -> None:
        """Take up the run at `step`; the server starts now unless the journal has answers from there on.

        Args:
            engine: makes what answers, as `LiveEngine` does.
        """
        assert config.model.path is not None, "the recipe demands it"
        self.config, self.run_dir, self.questions, self.step = config, run_dir, questions, step
        self.tracker = Tracker(run_dir.path, config.wandb, config)
        self.say: Callable[[str, str], None] = lambda what, text: None
        """Tells people what is waited for (`progress.Bar.say`)."""
        self.rubric = Rubric(config.rewards, config.objective.truncated)
        self._params = SamplingParams(**dict(config.sampling))
        self.stream = PromptStream(questions.train, config.seed)
        self._place: dict[str, Any] | None = None
        """Among the prompts, before the rollout that is not yet handed over."""
        # Whoever asks for everything anew needs nothing of an older form.
        self.journal = Journal(run_dir.path / "journal", set_older_aside=config.rollout.replay == "live")
        _take_over(self.journal, run_dir)
        self.live = engine(
            config.model.path,
            cluster,
            max_model_len=questions.longest + config.sampling.max_new_tokens,
            seed=config.seed,
            log_file=run_dir.logs / "vllm.log",
            on_recovery=self._log_recovery,
            interrupt=interrupt,
        )
        if config.rollout.replay == "live" or self.journal.newest_version() < step:
            self.live.start()
        self.engine = JournalledEngine(
            self.live,
            self.journal,
            policies=run_dir.lineage.policies,
            replay=config.rollout.replay,
            before_sampling=self.live.bring_to,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        self.journal.close()
        self.tracker.close()

    def _log_recovery(self, recovery: Recovery) -> None:
        log.warning("%s serves again after %.0f s: %s", recovery.url, recovery.seconds, recovery.reason)
        self.tracker.log("recovery", self.step, dataclasses.asdict(recovery))

    def roll_out(self, step: int) -> tuple[list[Sample], Metrics]:
        """Samples to learn from, sampled at the weights of `step`, and what the rollout looked like.

        Prompts are taken until a rollout leaves at least a sample per mini-batch.

        Raises:
            RolloutError: `MAX_EMPTY_ROLLOUTS` in a row left less.
        """
        config, objective = self.config, self.config.objective
        self.step, self._place = step, self.stream.state()
        self.live.push_seconds = seconds = 0.0
        tried: list[Group] = []
        for _ in range(MAX_EMPTY_ROLLOUTS):
            with Stopwatch() as watch:
                groups = self._groups(step, self.stream.take(config.rollout.num_prompts))
            tried += groups
            files.write_jsonl(self.run_dir.samples / f"step_{step}.jsonl", transcripts(step, tried))
            seconds += watch.seconds
            samples = samples_from_groups(groups, std=objective.std, constant_groups=objective.constant_groups)
            if len(samples) >= config.rollout.num_minibatches:
                push = self.live.push_seconds
                compared = self.engine.comparison
                again = {"replay/tokens": compared.tokens, "replay/equal_tokens": compared.equal_tokens}
                return samples, {
                    **rollout_metrics(tried),
                    # Not the answers without a verdict, of constant groups that are dropped, or of prompts in whose
                    # place others were taken.
                    "rollout/learnt_from": float(len(samples)),
                    "rollout/replayed_requests": self.engine.replayed,
                    **(again if compared.tokens else {}),
                    "seconds/rollout": seconds - push,
                    "seconds/push": push,
                }
            log.warning("step %d: %d usable answers in the rollout; taking other prompts", step, len(samples))
        raise RolloutError(
            f"step {step}: {MAX_EMPTY_ROLLOUTS} rollouts in a row left fewer usable answers than the "
            f"{config.rollout.num_minibatches} mini-batches; objective.constant_groups and objective.truncated "
            f"decide what is usable, {self.run_dir.samples} holds the answers"
        )

    def _groups(self, step: int, prompts: list[Prompt]) -> list[Group]:
        """G answers to each prompt, each with its verdict."""
        config = self.config
        asked = [Request(p, config.objective.group_size, self._seed("rollout", step, p.id)) for p in prompts]
        answers = self._ask("rollout", asked, self._params, step)
        return [Group(p, cs, self.rubric.judge(p, cs, step)) for p, cs in zip(prompts, answers, strict=True)]

    def _ask(
        self, what: str, asked: Sequence[Request], params: SamplingParams, step: int
    ) -> list[tuple[Completion, ...]]:
        """The engine's answers at the weights of `step`, counted aloud as they come."""
        total, come = sum(request.n for request in asked), 0

        def count(_: int, answers: tuple[Completion, ...]) -> None:
            nonlocal come
            come += len(answers)
            self.say(what, f"{come:,} of {total:,} answers")

        self.say(what, f"waiting for the first of {total:,} answers")
        return self.engine.generate(asked, params, version=step, on_answer=count)

    def evaluate(self, step: int, *, greedy: bool) -> None:
        """Held-out questions with the weights of `step`, at the sampling temperature and, on request, greedily.

        An evaluation that a resumed run finds in its metrics is not repeated.
        """
        config, held_out = self.config, self.questions.held_out
        done = {row["kind"] for row in self.run_dir.metrics() if row["step"] == step}
        self.step = step
        kinds = {"eval": (self._params, config.evaluation.samples_per_question)}
        if greedy:
            kinds["eval_greedy"] = (self._params.greedy(), 1)
        for kind, (params, num_samples) in kinds.items():
            if kind in done:
                continue
            # The same seeds at every evaluation: the curve shows the weights, not the draw.
            asked = [Request(p, num_samples, self._seed("eval", 0, p.id)) for p in held_out]
            answers = self._ask("evaluation", asked, params, step)
            result = evaluate(held_out, [c for group in answers for c in group])
            self.tracker.log(kind, step, result.metrics() | {"result": result.to_json()})

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on with the very next rollout, or to repeat one that was broken off; JSON."""
        return {"prompts": self._place or self.stream.state(), "journal": self.journal.state(self.step)}

    def handed_over(self) -> None:
        """The last rollout's samples are with the ranks that learn from them, and in every checkpoint from now on."""
        self._place = None

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises as `PromptStream.restore` and `Journal.check`."""
        self.stream.restore(state["prompts"])
        self.journal.check(state["journal"])

    def _seed(self, purpose: str, step: int, name: str) -> int:
        return derived_seed(self.config.seed, purpose, step, name)


def _take_over(journal: Journal, run_dir: RunDir) -> None:
    """Let a journal be this run's: what is in it of a run that began alike and did the same, this one repeats.

    Any other answers in it are never used, whatever they are called.
    """
    found, mine = journal.lineage, run_dir.lineage
    if found is not None and not mine.repeats(found):
        num = sum(journal.state()["entries"].values())
        kinds = (("model", found.start, mine.start), ("config", found.recipe, mine.recipe))
        other = " and ".join(what for what, theirs, own in kinds if theirs != own)
        log.warning(
            "%s: holds %d answers of a run of another %s: used are those to the very same prompts of the model as "
            "it was before training, if any; all else is sampled anew", journal.folder, num, other,
        )  # fmt: skip
    elif found is not None:
        run_dir.repeat(found)
    journal.belong_to(run_dir.lineage)
