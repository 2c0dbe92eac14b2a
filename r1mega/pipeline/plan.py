"""What a chain will do: which of its stages are asked for, in what state each is, and what runs because of what."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from r1mega.config.cluster import Cluster
from r1mega.config.load import nearest
from r1mega.errors import ConfigError, RunDirError
from r1mega.pipeline.artefacts import Glance, Standing, State, standing
from r1mega.pipeline.graph import Node, Pipeline, handed_over, own_overrides
from r1mega.recipe.load import load
from r1mega.recipe.recipe import Recipe
from r1mega.runtime.digests import Digests


@dataclass(frozen=True)
class Selection:
    """Which stages may run; what others have left is read as it is."""

    first: str | None = None
    last: str | None = None
    only: str | None = None

    def names(self, pipeline: Pipeline) -> list[str]:
        """The stages that are asked for, in their order.

        Raises:
            ConfigError: there is no such stage, or there is none between the two.
        """
        known = [node.name for node in pipeline.stages]
        options = {"--from": self.first, "--until": self.last, "--only": self.only}
        for option, name in options.items():
            if name is not None and name not in known:
                raise ConfigError(
                    f"{option} {name}: no stage is named so; there are {', '.join(known)}{nearest(name, known)}"
                )
        if self.only is not None:
            if self.first is not None or self.last is not None:
                raise ConfigError(f"--only {self.only} is one stage: leave out --from and --until")
            return [self.only]
        begin = known.index(self.first) if self.first is not None else 0
        end = known.index(self.last) if self.last is not None else len(known) - 1
        if end < begin:
            raise ConfigError(f"--from {self.first} --until {self.last}: {self.last} comes before {self.first}")
        return known[begin : end + 1]


ALL = Selection()


@dataclass(frozen=True)
class Planned:
    """A stage and what is to become of it."""

    node: Node
    recipe: Recipe
    machine: Cluster
    overrides: list[str]
    standing: Standing
    waits_for: tuple[str, ...]
    """Earlier stages it needs something of that are not done; what that will be is not known before."""
    asked: bool

    @property
    def runs(self) -> Literal["yes", "no", "perhaps"]:
        """Whether it will run; perhaps: if what it reads comes out as something else, or is found to be."""
        if not self.asked:
            return "no"
        if self.standing.state is State.DONE:
            return "perhaps" if self.waits_for else "no"
        return "perhaps" if self.standing.state is State.UNKNOWN else "yes"

    def told(self) -> str:
        """What will happen, and why, for people."""
        state, why = self.standing.state, self.standing.reasons
        after = f" after {' and '.join(self.waits_for)}" if self.waits_for else ""
        if not self.asked:
            return f"not asked for ({'done' if self.runs_never() else state.value + after})"
        if self.waits_for and state in (State.DONE, State.UNKNOWN):
            return f"is looked at{after}: done if what it reads is the same then, otherwise begins anew"
        return f"{state.value}{after}{': ' if why else ''}{why}"

    def runs_never(self) -> bool:
        """Whether it is done, whatever is asked for."""
        return self.standing.state is State.DONE and not self.waits_for


@dataclass(frozen=True)
class PipelineRun:
    """Stages, where they run, and with which settings."""

    pipeline: Pipeline
    cluster: str
    run_dir: Path
    overrides: Sequence[str] = ()
    asked: Selection = ALL
    verify_inputs: bool = False

    def plan(self, *, glance: bool = False, names: Collection[str] | None = None) -> list[Planned]:
        """Of every stage, in order.

        Args:
            glance: take no time, and write nothing; a stage that would take some "is looked at".
            names: of these stages alone, and with each all that it needs.

        Raises:
            ConfigError: a stage's settings are wrong, or no such stage is asked for.
            RunDirError, DataError: as `artefacts.standing`.
        """
        asked, plans = self.asked.names(self.pipeline), dict[str, Planned]()
        for node in self.pipeline.stages:
            if names is not None and node.name not in names:
                continue
            waits = [name for name in node.earlier() if not plans[name].runs_never()]
            plans[node.name] = self.of(node, waits_for=waits, asked=node.name in asked, glance=glance)
        return list(plans.values())

    def of(self, node: Node, *, waits_for: Collection[str] = (), asked: bool = True, glance: bool = False) -> Planned:
        """Of one stage."""
        own = [*own_overrides(node, self.pipeline, self.overrides), *self._handed_over(node, waits_for)]
        recipe, machine = load(node.config, node.on(self.cluster), own)
        folder = self.run_dir / node.name
        digests = Glance(folder) if glance else Digests(folder, verify=self.verify_inputs)
        to_come = [setting for name in waits_for for setting in node.handed(name)]
        found = standing(folder, recipe, machine, digests, to_come=to_come)
        return Planned(node, recipe, machine, own, found, tuple(waits_for), asked)

    def _handed_over(self, node: Node, waits_for: Collection[str]) -> list[str]:
        """What earlier stages decide: the weights to start from, what is read and the time it may take."""
        handed = handed_over(node, self.run_dir)
        if node.same_seconds_as and node.same_seconds_as not in waits_for:
            seconds = read_summary(self.run_dir / node.same_seconds_as)["seconds"]
            handed.append(f"max_seconds={max(seconds, 0.1):.1f}")
        return handed

    def refuse_what_is_needed(self, plans: Sequence[Planned]) -> None:
        """Raises RunDirError where a stage that is asked for needs one that is neither asked for nor done."""
        by_name: Mapping[str, Planned] = {plan.node.name: plan for plan in plans}
        for plan in plans:
            for name in plan.waits_for if plan.asked else ():
                needed = by_name[name]
                if not needed.asked and needed.standing.state is not State.UNKNOWN:
                    told = dataclasses.replace(needed, asked=True).told()
                    raise RunDirError(
                        f"{plan.node.name} needs what stage {name} leaves in {self.run_dir / name}, and that is not "
                        f"done ({told}): ask for {name} as well"
                    )


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a stage that is done."""
    return json.loads((folder / "summary.json").read_text())
