"""A chain of stages: its config, its laws, and what is said of its stages before the first one starts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr

from r1mega.config.load import nearest, raise_if_any, read_toml, validate
from r1mega.config.section import AnchoredPath, Section
from r1mega.errors import ConfigError
from r1mega.pipeline.kept import ServerOfChain
from r1mega.pipeline.overrides import InFile, toml
from r1mega.pipeline.relations import Relation, faults_with
from r1mega.pipeline.relations import faults as relation_faults
from r1mega.pipeline.table import ModelScores, ModelTable
from r1mega.preflight.look import Look, look
from r1mega.recipe.load import recipe_of
from r1mega.recipe.recipe import Recipe


class Node(Section):
    """One stage of a pipeline."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the stage's run directory inside the pipeline's."""
    config: AnchoredPath
    """The stage config."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of this stage that are others than its config's, spelt as `--set` does: { "num_steps" = 40,
    "data.files" = ["rows.jsonl"] }. Relative paths count from the pipeline's file. `--set` goes before them."""
    cluster: str = ""
    """The cluster file that it runs on, where that is another than the chain's."""
    start: str = ""
    """The earlier stage whose final weights this one starts from; empty: the config says."""
    reads: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Setting -> what it names of an earlier stage, in the pipeline's run directory: { "data.files" =
    ["pairs/pairs.jsonl"] }, { "judge.model" = "judge/hf" }."""
    same_seconds_as: str = ""
    """The earlier stage whose training seconds bound this one's: a control at equal cost."""
    _folder: Path = PrivateAttr(default=Path())

    def model_post_init(self, context: Any) -> None:
        self._folder = Path((context or {}).get("folder", "."))

    def on(self, cluster: str) -> str:
        """The cluster file that it runs on, where the chain's is `cluster`."""
        return self.cluster or cluster

    def overrides(self) -> list[str]:
        """`set`, as overrides."""
        return [InFile.of(setting, value, self._folder) for setting, value in self.set.items()]

    def earlier(self) -> list[str]:
        """The stages that this one needs something of, each once."""
        named = [self.start, self.same_seconds_as, *(stage for _, stage, _ in self.files_read())]
        return list(dict.fromkeys(filter(None, named)))

    def handed(self, stage: str) -> list[str]:
        """The settings by which an earlier stage decides something in this one."""
        found = ["model.path"] if stage == self.start else []
        found += ["max_seconds"] if stage == self.same_seconds_as else []
        return found + [setting for setting, of, _ in self.files_read() if of == stage]

    def files_read(self) -> Iterator[tuple[str, str, str]]:
        """Setting, earlier stage, and what of it, of everything that `reads` names."""
        for setting, named in self.reads.items():
            for file in (named,) if isinstance(named, str) else named:
                stage, _, below = file.partition("/")
                yield setting, stage, below


class Pipeline(Section):
    """Stages run one after the other, each in a process of its own."""

    stages: tuple[Node, ...] = Field(min_length=1)
    table: ModelTable | None = None
    """What its evaluations are put together to at the end; None: nothing is."""
    relations: tuple[Relation, ...] = ()
    """Claims about the models of the table's evaluations, each judged at the end: tables [[relations]]."""
    server: ServerOfChain = ServerOfChain()
    """How its stages hand a rollout server on."""

    def faults(self) -> list[str]:
        """Faults of the chain by itself; its stages are looked at when it is about to run."""
        faults: list[str] = []
        seen: set[str] = set()
        for node in self.stages:
            if node.name in seen:
                faults.append(f"stages: two are named {node.name!r}")
            for field, name in (("start", node.start), ("same_seconds_as", node.same_seconds_as)):
                if name and name not in seen:
                    faults.append(f"stages.{node.name}.{field}: no earlier stage is named {name!r}")
            faults += [
                f"stages.{node.name}.reads.{setting}: no earlier stage is named {stage!r}; name one, and what of it "
                'is read: "pairs/pairs.jsonl"'
                for setting, stage, _ in node.files_read()
                if stage not in seen
            ]
            if not node.config.is_file():
                faults.append(f"stages.{node.name}.config: no file {node.config}")
            seen.add(node.name)
        names = [node.name for node in self.stages]
        if self.relations and self.table is None:
            faults.append("relations: there is no [table], whose evaluations they are judged by")
        return faults + (self.table.faults(names) if self.table else []) + relation_faults(self.relations)


def is_pipeline(path: Path) -> bool:
    """Whether a config chains stages, and is none itself. Raises ConfigError where it cannot be read."""
    table = read_toml(path)
    return "stages" in table and "stage" not in table


def load_pipeline(path: Path) -> Pipeline:
    """The pipeline config in `path`.

    Raises:
        ConfigError: as `recipe.load.load_recipe`.
    """
    table = read_toml(path)
    if "stages" not in table and "stage" in table:
        raise ConfigError(f"{path}: a stage, not a pipeline; `r1mega run {path}` runs it")
    pipeline = validate(Pipeline, table, path)
    raise_if_any(path, pipeline.faults())
    return pipeline


def look_at_chain(
    pipeline: Pipeline, cluster: str, run_dir: Path, overrides: Sequence[str], *, elsewhere: bool = False
) -> list[Look]:
    """Each stage of a chain, with what earlier ones will make.

    Args:
        run_dir: of the chain; what it holds already counts as it is.
        elsewhere: as `look`.

    Raises: as `look`, and ConfigError where an override concerns no stage, or one reads what an earlier one does not
        leave behind.
    """
    refuse_unmeant(pipeline, overrides)
    looks: dict[str, Look] = {}
    for node in pipeline.stages:
        own = [*own_overrides(node, pipeline, overrides), *handed_over(node, run_dir)]
        own += ["max_seconds=1"] if node.same_seconds_as else []  # how many is known when that stage has ended
        start = looks.get(node.start)
        raise_if_any(node.config, list(_never_made(node, {name: seen.recipe for name, seen in looks.items()})))
        looks[node.name] = look(
            node.config, node.on(cluster), own, model=start.spec if start else None, made_before=start is not None,
            awaited={(run_dir / stage / below).resolve() for _, stage, below in node.files_read()},
            elsewhere=elsewhere,
        )  # fmt: skip
    _refuse_unscored(pipeline, {name: seen.recipe for name, seen in looks.items()})
    return list(looks.values())


def refuse_unfit(pipeline: Pipeline, recipes: Mapping[str, Recipe]) -> None:
    """Raises ConfigError where stages, by their settings alone, do not fit each other: one reads what an earlier one
    does not leave behind, or table or relations name what no evaluation has.

    Args:
        recipes: of its stages, by their names.
    """
    for node in pipeline.stages:
        raise_if_any(node.config, list(_never_made(node, recipes)))
    _refuse_unscored(pipeline, recipes)


def _refuse_unscored(pipeline: Pipeline, recipes: Mapping[str, Recipe]) -> None:
    """Raises ConfigError where table or relations name what no evaluation has."""
    if pipeline.table is None:
        return
    evaluations = ModelScores(pipeline.table, recipes)
    if faults := evaluations.faults() + faults_with(pipeline.relations, evaluations):
        raise ConfigError("\n  ".join([f"the pipeline's evaluations: {len(faults)} fault(s)", *faults]))


def _never_made(node: Node, recipes: Mapping[str, Recipe]) -> Iterator[str]:
    """What a stage needs of earlier ones that these do not leave behind, or that it has no setting for."""
    needed = [(f"reads.{setting}", stage, below) for setting, stage, below in node.files_read()]
    for what, stage, below in [*([("start", node.start, "hf")] if node.start else []), *needed]:
        leaves = recipes[stage].leaves()
        if below not in leaves:
            some = f"leaves {', '.join(leaves)} behind" if leaves else "leaves nothing behind that a stage reads"
            yield f"stages.{node.name}.{what}: {stage}/{below}: stage {stage} {some}{nearest(below, leaves)}"
    if node.same_seconds_as and "max_seconds" not in recipe_of(read_toml(node.config), node.config).model_fields:
        yield (
            f"stages.{node.name}.same_seconds_as: its config has no max_seconds, which this would set: it bounds "
            "stages that train"
        )


def refuse_unmeant(pipeline: Pipeline, overrides: Sequence[str]) -> None:
    """Raises ConfigError where an override concerns no stage."""
    for override in overrides:
        if not any(_concerning(node, pipeline, [override]) for node in pipeline.stages):
            names = ", ".join(node.name for node in pipeline.stages)
            raise ConfigError(f"--set {override}: no stage of the pipeline ({names}) has such a key")


def own_overrides(node: Node, pipeline: Pipeline, overrides: Sequence[str]) -> list[str]:
    """What this stage's settings are otherwise than in its config: by the pipeline's file, then by the user's
    overrides that concern it."""
    return [*node.overrides(), *_concerning(node, pipeline, overrides)]


def _concerning(node: Node, pipeline: Pipeline, overrides: Sequence[str]) -> list[str]:
    names = {n.name for n in pipeline.stages}
    fields = {*recipe_of(read_toml(node.config), node.config).model_fields, "cluster"}
    own: list[str] = []
    for override in overrides:
        name, colon, rest = override.partition(":")
        if colon and name in names:
            own += [rest] if name == node.name else []
        elif override.partition("=")[0].split(".")[0] in fields:
            own.append(override)
    return own


def handed_over(node: Node, run_dir: Path) -> list[str]:
    """The overrides that start a stage from an earlier one's final weights, and name what else it reads of them."""
    named = {"model.path": f"{node.start}/hf"} if node.start else {}
    return [f"{setting}={toml(_within(run_dir, of))}" for setting, of in {**named, **node.reads}.items()]


def _within(run_dir: Path, named: str | tuple[str, ...]) -> str | list[str]:
    if isinstance(named, str):
        return str((run_dir / named).resolve())
    return [str((run_dir / file).resolve()) for file in named]
