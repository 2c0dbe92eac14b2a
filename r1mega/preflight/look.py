"""The one function that decides for `r1mega check` and `r1mega run`, on a stage."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mega.config.cluster import Cluster
from r1mega.config.inputs import NO_MAKERS, makers, missing, missing_weights
from r1mega.config.load import raise_if_any
from r1mega.errors import ConfigError
from r1mega.families.registry import read_stage_model
from r1mega.families.spec import ModelSpec
from r1mega.layout.device_laws import layout_faults
from r1mega.layout.engine_laws import engine_layout_faults, transport_notes
from r1mega.preflight.data import check_data
from r1mega.preflight.reward_models import check_reward_models
from r1mega.preflight.weights import check_weights
from r1mega.recipe.load import load
from r1mega.recipe.memory import memory_by_state, missing_memory
from r1mega.recipe.recipe import Recipe
from r1mega.rollout.command import gpus_of
from r1mega.rollout.installed import fault_of
from r1mega.runtime import env
from r1mega.runtime.resources import num_gpus


@dataclass(frozen=True)
class Look:
    """A stage in which nothing is wrong."""

    config: Path
    recipe: Recipe
    cluster: Cluster
    spec: ModelSpec | None
    """The model that it starts from; None where nothing is known of it yet."""
    absent: tuple[str, ...]
    """What it cannot start without and is not there yet, a line each, with what is to be done."""
    unseen: tuple[str, ...]
    """What only the stage itself looks at."""
    notes: tuple[str, ...]
    """What is not wrong, and may well not be meant."""

    @property
    def num_ranks(self) -> int:
        """Processes of the stage itself."""
        return self.recipe.ranks(self.cluster)

    def fits(self, machine: Cluster) -> bool:
        """Whether the stage could run on another layout than `cluster`'s as well."""
        by_itself = layout_faults(machine) + engine_layout_faults(machine)
        return not (by_itself or self.recipe.faults_on(machine, self.spec))

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
    resumed: bool = False,
    model: ModelSpec | None = None,
    made_before: bool = False,
    awaited: Collection[Path] = (),
    elsewhere: bool = False,
) -> Look:
    """Everything that can be said of a stage without starting it.

    Args:
        starting: it is about to run, and reads long data itself first thing.
        resumed: it goes on from a checkpoint, and may do without data that it keeps in its run directory.
        model: what is known of a model whose folder is not there yet.
        made_before: an earlier stage of the chain makes that folder.
        awaited: files and folders of data that an earlier stage of the chain makes.
        elsewhere: it will run on other machines that share this one's file system; what this one lacks is no fault.

    Raises:
        ConfigError, DataError, WeightMappingError, CheckpointError: something is wrong, or not built; in the order of
            this package, so that what raises is the first thing to mend.
    """
    recipe, machine = load(config, cluster, overrides)
    spec = _model(recipe) or model
    if spec is not None:
        spec = recipe.adapted(spec)
    leads = (launch := env.launch()) is None or launch.rank == 0
    raise_if_any(config, [*recipe.faults_on(machine, spec), *(recipe.faults_of_code() if leads else [])])
    made_by: Mapping[str, str] = makers(config, overrides) or NO_MAKERS
    needs_data = not (resumed and recipe.keeps_data)
    to_come = {path for path in awaited if not path.exists()}
    data = [one for one in recipe.inputs() if not one.model]
    models = [one for one in recipe.inputs() if one.model]
    no_data = missing([i for i in data if i.path not in to_come], made_by) if needs_data else []
    no_models = missing([i for i in models if i.path not in to_come], made_by)
    no_weights = None if made_before else missing_weights(recipe.begins_with, made_by)
    absent = [*no_data, *no_models, *filter(None, [no_weights])]
    if leads and needs_data and not no_data and not to_come.intersection(i.path for i in data):
        # A stage that starts now reads long data itself, before anything else.
        check_data(recipe, spec, brief=starting and not absent)
    if leads and spec is not None:
        check_weights(recipe, spec)
    if leads:
        check_reward_models(recipe)
    if not elsewhere:
        absent += [*_missing_here(recipe, machine, spec), *recipe.lacks()]
    shared = memory_by_state(recipe.holds(), machine, spec) if spec is not None else []
    told = transport_notes(machine) if recipe.trains and recipe.samples else []
    notes = [*recipe.notes(), *told, *(f"a GPU that trainer and engine share, {line}" for line in shared)]
    return Look(config, recipe, machine, spec, tuple(absent), tuple(recipe.unseen()), tuple(notes))


def _model(recipe: Recipe) -> ModelSpec | None:
    model = recipe.begins_with
    if model.config is None and not (model.path and model.path.exists()):
        return None
    return read_stage_model(model, recipe.head)


def _missing_here(recipe: Recipe, cluster: Cluster, spec: ModelSpec | None) -> list[str]:
    """What this machine lacks where this command would start the ranks itself, all of them here."""
    if env.launch() is not None:
        return []
    if cluster.device == "cpu":
        return missing_memory(recipe.holds(), cluster, spec) if spec is not None else []
    return _missing_gpus(recipe, cluster)


def _missing_gpus(recipe: Recipe, cluster: Cluster) -> list[str]:
    """GPUs, or a vLLM for them, that ranks and servers would not find here."""
    where = "run it where they are (torchrun, or slurm/rl_stage.sh)"
    ranks, found = recipe.ranks(cluster) if recipe.trains else 0, num_gpus()
    if ranks > found:
        return [
            f"cluster.device = cuda: the layout's {ranks} rank(s) take a GPU each, and this machine has {found}: "
            f"{where}"
        ]
    if not recipe.serves or cluster.rollout.launch or cluster.rollout.attendants:
        return []
    layout, gpus = cluster.rollout, gpus_of(cluster, trains=recipe.trains)
    if not gpus or max(gpus) >= found:
        servers = f"{layout.servers} server(s) of tp x dp = {layout.tp * layout.dp} rank(s)"
        beside = f" beside the trainer's {ranks}" if ranks and cluster.placed != "colocated" else ""
        return [
            f"cluster.device = cuda: the layout's {servers} take a GPU each{beside}, and this machine has {found}: "
            f"{where}"
        ]
    fault = fault_of(layout, "cuda")
    return [] if fault is None else [fault]
