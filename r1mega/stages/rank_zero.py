"""What rank 0 of a GRPO run has and the others have not: questions, journal, and what it asks the engine."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from r1mega.algos.advantage import samples_from_groups
from r1mega.config.cluster import Cluster
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.callers import connected
from r1mega.rewards.failures import Failures
from r1mega.rewards.judges import Judges, preloaded
from r1mega.rewards.own import loads
from r1mega.rewards.pool import Pool
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.signal import signal_metrics
from r1mega.rollout.collect import GroupSource, NoGroups, Say, judged
from r1mega.rollout.command import places_of
from r1mega.rollout.engine import SamplingParams
from r1mega.rollout.journal import Journal
from r1mega.rollout.recovery import Recovery
from r1mega.rollout.replay import JournalledEngine, open_journal
from r1mega.rollout.served import Lengthened, NotServed, ServedModel
from r1mega.runtime.interrupt import Interrupt
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Group, Sample
from r1mega.stages.hacking import HackingWatched, NotWatched
from r1mega.stages.held_out import HeldOut, NotHeldOut
from r1mega.stages.questions import Questions, make_questions
from r1mega.stages.records import Records
from r1mega.stages.taught import LearntQuestions
from r1mega.trainer.mesh import Mesh
from r1mega.weights.folder import GiveFolder
from r1mega.weights.live_engine import Follower, LiveEngine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankZero:
    """See `rank_zero`."""

    questions: Questions
    journal: Journal
    records: Records

    def served(
        self,
        serve: Callable[..., ServedModel],
        config: GRPO,
        cluster: Cluster,
        run_dir: RunDir,
        interrupt: Interrupt,
        *,
        step: int,
    ) -> ServedModel:
        """The rollout server, which starts now where the journal has no answers from `step` on to go on with.

        It starts in its own process, while this one builds the policy.
        """
        shared = cluster.placed == "colocated"
        model = serve(
            config.model.path,
            cluster.rollout,
            max_model_len=self.room(config)(step),
            seed=config.seed,
            log_file=run_dir.logs / "vllm.log",
            interrupt=interrupt,
            # Servers that share GPUs are of no use to a stage that does not know whose turn it is.
            give=None
            if shared
            else GiveFolder(
                address=cluster.address,
                transport=cluster.transport,
                verify=cluster.weights.verify,
                breakable=interrupt.at_once,
            ),
            places=places_of(cluster, trains=True),
        )
        needed = config.rollout.replay == "live" or self.journal.newest_version() < step
        if needed and not shared:  # where the policy has to make room first
            model.start()
        return model

    def room(self, config: GRPO) -> Callable[[int], int]:
        """The longest prompt and answer, in tokens, for which the server is laid out after so many steps."""
        return lambda step: self.questions.longest + config.server_tokens(step)

    def tell_changes(self, config: GRPO, run_dir: RunDir, step: int) -> None:
        """Say and write down, as a row of kind "schedule", which settings are others from the rollout after `step`
        steps on; a row that a resumed run finds in its metrics is not written twice."""
        if not (changed := config.changes_at(step)):
            return
        log.info("step %d: from here on %s", step, ", ".join(f"{name} = {value}" for name, value in changed.items()))
        if not any(row["kind"] == "schedule" and row["step"] == step for row in run_dir.metrics()):
            self.records.log("schedule", step, changed)

    def log_lengthened(self, version: int, lengthened: Lengthened) -> None:
        self.records.log("lengthened", version, dataclasses.asdict(lengthened))

    def log_recovery(self, version: int, recovery: Recovery) -> None:
        figures = dataclasses.asdict(recovery)
        self.records.log("recovery", version, figures)
        said = f"{recovery.url} serves again after {recovery.seconds:.0f} s: {recovery.reason}"
        self.records.event("recovered-server", version, said, **figures)

    def taught(
        self,
        config: GRPO,
        run_dir: RunDir,
        source: GroupSource | NoGroups,
        mesh: Mesh,
        learning: Callable[[], Sequence[Sample]],
    ) -> LearntQuestions:
        each = config.rollout.num_minibatches
        return LearntQuestions(self.questions.train, source, run_dir.tokenizer, mesh, learning, each=each)

    def hacking(self, config: GRPO) -> HackingWatched:
        return HackingWatched(config, self.records)

    @contextmanager
    def judges(self, make: Callable[..., Pool], config: GRPO, run_dir: RunDir) -> Iterator[Judges]:
        """What judges answers; its processes start, and its endpoints are asked, with the first of them."""
        verifiers = {prompt.verifier for prompt in (*self.questions.train, *self.questions.held_out)}
        workers, rewards = config.rollout.judges or None, config.rewards
        with (
            make(workers, preloaded=preloaded(verifiers, rewards), loads=loads(rewards)) as pool,
            connected(rewards, run_dir.path) as callers,
        ):
            yield Judges(pool, callers)

    def asks(
        self,
        config: GRPO,
        run_dir: RunDir,
        engine: LiveEngine | Follower,
        judges: Judges | None,
        failures: Failures,
        interrupt: Interrupt,
        say: Say,
    ) -> tuple[GroupSource, HeldOut]:
        """The run's rollouts, and its evaluations on the way."""
        assert isinstance(engine, LiveEngine) and judges is not None, "rank 0 follows nobody"
        rubric = config.rubric()
        divided, assumed = config.objective.std != "none", config.rollout.false_negatives

        def figures(groups: Sequence[Group]) -> dict[str, float]:
            lost = signal_metrics(groups, rubric, assumed, divided=divided)
            return {"rollout/beyond_limits": float(judges.take_ended()), **judges.take_figures(), **lost}

        def params(step: int) -> SamplingParams:
            return SamplingParams(**dict(config.sampling_at(step)))

        policies, replay = run_dir.lineage.policies, config.rollout.replay
        answers = JournalledEngine(engine, self.journal, policies=policies, replay=replay)
        source = GroupSource(
            answers,
            self.journal,
            self.questions.stream,
            params,
            group_size=config.objective.group_size,
            num_prompts=config.rollout.num_prompts,
            judge=partial(judged, judges, rubric),
            failures=failures,
            figures=figures,
            num_usable=partial(num_usable_as_yet, config, rubric),
            least=config.rollout.num_minibatches,
            seed=config.seed,
            folder=run_dir.samples,
            say=say,
            breakable=interrupt.at_once,
        )
        held_out = HeldOut(
            answers,
            self.questions.held_out,
            config.evaluation,
            params,
            seed=config.seed,
            run_dir=run_dir,
            log=self.records.log,
            say=say,
            pool=judges.pool,
            breakable=interrupt.at_once,
        )
        return source, held_out


class OtherRank:
    """`RankZero` on the other ranks: starts nothing, asks nothing, writes nothing."""

    def served(self, *_: object, **__: object) -> NotServed:
        return NotServed()

    def room(self, *_: object) -> Callable[[int], int]:
        return lambda step: 0

    def tell_changes(self, *_: object) -> None: ...

    def log_lengthened(self, version: int, lengthened: Lengthened) -> None: ...

    def log_recovery(self, version: int, recovery: Recovery) -> None: ...

    def taught(
        self,
        config: GRPO,
        run_dir: RunDir,
        source: GroupSource | NoGroups,
        mesh: Mesh,
        learning: Callable[[], Sequence[Sample]],
    ) -> LearntQuestions:
        return LearntQuestions((), source, run_dir.tokenizer, mesh, learning, each=config.rollout.num_minibatches)

    def hacking(self, *_: object) -> NotWatched:
        return NotWatched()

    def judges(self, *_: object) -> AbstractContextManager[None]:
        return nullcontext()

    def asks(self, *_: object) -> tuple[NoGroups, NotHeldOut]:
        return NoGroups(), NotHeldOut()


@contextmanager
def rank_zero(mesh: Mesh, config: GRPO, run_dir: RunDir, records: Records) -> Iterator[RankZero | OtherRank]:
    """What this rank has of it, before the policy is built. Raises as `make_questions` and `open_journal`."""
    if not mesh.first:
        yield OtherRank()
        return
    questions = make_questions(config, run_dir)
    with open_journal(run_dir, config.rollout.replay) as journal:
        yield RankZero(questions, journal, records)


def usable(config: GRPO, groups: Sequence[Group]) -> list[Sample]:
    """What can be learnt from of judged groups, with its advantages (Eq. 3)."""
    return samples_from_groups(groups, std=config.objective.std, constant_groups=config.objective.constant_groups)


def num_usable_as_yet(config: GRPO, rubric: Rubric, step: int, groups: Sequence[Group]) -> int:
    """How many answers of a rollout after `step` steps may be learnt from, before models score them: until then no
    group that they are asked of is constant for certain."""
    models = rubric.models(step).values()
    open_yet = [group for group in groups if any(model.asked(group.prompt, step) for model in models)]
    settled = [group for group in groups if not any(model.asked(group.prompt, step) for model in models)]
    kept = samples_from_groups(open_yet, std=config.objective.std, constant_groups="keep")
    return len(kept) + len(usable(config, settled))
