"""The one function that decides for `r1mega check` and `r1mega run`, on a stage or a chain of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mega.config.checks import raise_if_any
from r1mega.config.cluster import Cluster
from r1mega.config.inputs import NO_MAKERS, makers, missing_data, missing_weights
from r1mega.config.load import STAGES, load, load_stage
from r1mega.config.schema import SFT, Evaluate, Node, Pipeline, Stage
from r1mega.errors import ConfigError
from r1mega.families.registry import read_stage_model, with_positions
from r1mega.families.spec import ModelSpec
from r1mega.preflight.abilities import ability_faults, missing_memory
from r1mega.preflight.data import check_data, on_the_hub
from r1mega.preflight.weights import check_weights
from r1mega.runtime import env
from r1mega.runtime.resources import num_gpus


@dataclass(frozen=True)
class Look:
    """A stage in which nothing is wrong."""

    config: Path
    stage: Stage
    cluster: Cluster
    spec: ModelSpec | None
    """The model that it starts from; None where nothing is known of it yet."""
    absent: tuple[str, ...]
    """What it cannot start without and is not there yet, a line each, with what is to be done."""
    unseen: tuple[str, ...]
    """What only the stage itself looks at."""

    @property
    def num_ranks(self) -> int:
        """Ranks of the trainer; an evaluation has none, and runs in one process."""
        return 1 if isinstance(self.stage, Evaluate) else self.cluster.trainer.ranks

    def refuse_absent(self) -> None:
        """Raises ConfigError where something is not there yet."""
        if len(self.absent) == 1:
            raise ConfigError(f"{self.config}: {self.absent[0]}")
        if self.absent:
            raise ConfigError(
                "\n  ".join([f"{self.config}: {len(self.absent)} things are not there yet", *self.absent])
            )


def look(
    config: Path,
    cluster: str,
    overrides: Sequence[str] = (),
    *,
    starting: bool = False,
    tokenised: bool = False,
    model: ModelSpec | None = None,
    made_before: bool = False,
) -> Look:
    """Everything that can be said of a stage without starting it.

    Args:
        starting: it is about to run, and reads long data itself first thing.
        tokenised: it resumes, with its conversations' tokens beside it: they need not be there any more.
        model: what is known of a model whose folder is not there yet.
        made_before: an earlier stage of the chain makes that folder.

    Raises:
        ConfigError, DataError, WeightMappingError, CheckpointError: something is wrong, or not built; in the order of
            this package, so that what raises is the first thing to mend.
    """
    stage, machine = load(config, cluster, overrides)
    spec = _model(stage) or model
    if spec is not None and isinstance(stage, SFT):
        spec = with_positions(spec, stage.max_positions)
    raise_if_any(config, ability_faults(stage, machine, spec))
    made_by: Mapping[str, str] = makers(config, overrides) or NO_MAKERS
    no_data = [] if tokenised and isinstance(stage, SFT) else missing_data(stage, made_by)
    no_weights = None if made_before else missing_weights(stage.model, made_by)
    leads = (launch := env.launch()) is None or launch.rank == 0
    absent = [*no_data, *filter(None, [no_weights])]
    if leads and not no_data and not (tokenised and isinstance(stage, SFT)):
        # A stage that starts now reads its conversations itself, before anything else.
        check_data(stage, spec, brief=starting and not absent)
    if leads and spec is not None:
        check_weights(stage, spec)
    return Look(config, stage, machine, spec, (*absent, *_missing_here(stage, machine, spec)), tuple(_unseen(stage)))


def look_at_chain(pipeline: Pipeline, cluster: str, run_dir: Path, overrides: Sequence[str]) -> list[Look]:
    """Each stage of a chain, with what earlier ones will make.

    Args:
        run_dir: of the chain; what it holds already counts as it is.

    Raises: as `look`, and ConfigError where an override concerns no stage.
    """
    for override in overrides:
        if not any(own_overrides(node, pipeline, [override]) for node in pipeline.stages):
            names = ", ".join(node.name for node in pipeline.stages)
            raise ConfigError(f"--set {override}: no stage of the pipeline ({names}) has such a key")
    looks: dict[str, Look] = {}
    for node in pipeline.stages:
        own = [*own_overrides(node, pipeline, overrides), *weights_handed_over(node, run_dir)]
        start = looks.get(node.start)
        looks[node.name] = look(
            node.config, cluster, own, model=start.spec if start else None, made_before=start is not None
        )
    return list(looks.values())


def own_overrides(node: Node, pipeline: Pipeline, overrides: Sequence[str]) -> list[str]:
    """The user's overrides that concern this stage."""
    names = {n.name for n in pipeline.stages}
    fields = {*STAGES[load_stage(node.config).stage].model_fields, "cluster"}
    own: list[str] = []
    for override in overrides:
        name, colon, rest = override.partition(":")
        if colon and name in names:
            own += [rest] if name == node.name else []
        elif override.partition("=")[0].split(".")[0] in fields:
            own.append(override)
    return own


def weights_handed_over(node: Node, run_dir: Path) -> list[str]:
    """The override that starts a stage from an earlier one's final weights."""
    return [f"model.path={json.dumps(str((run_dir / node.start / 'hf').resolve()))}"] if node.start else []


def _model(stage: Stage) -> ModelSpec | None:
    if stage.model.config is None and not (stage.model.path and stage.model.path.exists()):
        return None
    return read_stage_model(stage.model)


def _unseen(stage: Stage) -> list[str]:
    if not isinstance(stage, SFT):
        return []
    sections = [("data", stage.data), *([("validation", stage.validation)] if stage.validation else [])]
    return [
        f"{section}.dataset: {of.dataset!r}, split {of.split!r}, is on the hub or in its cache: not looked at here"
        for section, of in sections
        if on_the_hub(of)
    ]


def _missing_here(stage: Stage, cluster: Cluster, spec: ModelSpec | None) -> list[str]:
    """What this machine lacks where this command would start the ranks itself, all of them here."""
    if env.launch() is not None:
        return []
    if cluster.device == "cpu":
        return missing_memory(stage, cluster, spec) if spec is not None else []
    wanted, found = 1 if isinstance(stage, Evaluate) else cluster.trainer.ranks, num_gpus()
    if found >= wanted:
        return []
    return [
        f"cluster.device = cuda: the layout's {wanted} rank(s) take a GPU each, and this machine has {found}: run it "
        "where they are (torchrun, or slurm/rl_stage.sh)"
    ]
