"""What becomes of an optimiser step whose numbers are wrong, as [health] says: decided once, equal on every rank.

    health.begin(taught)                                # what was left out and passed over before
    figures = health.take(policy, step, learned, lr)    # in the place of policy.optim_step(lr)

Loss and gradient norm are judged before the update is taken. A rank that holds a part of the model, or of the data,
may be the only one to meet a number that is none: all ranks are asked, and the first decides.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Protocol

from r1mega.config.training import Health
from r1mega.diagnostics.spikes import finite, spike
from r1mega.errors import DivergenceError, RolledBackError
from r1mega.runtime import files, incidents
from r1mega.runtime.incidents import TEXTS, Incident
from r1mega.runtime.run_dir import RunDir
from r1mega.stages.records import Carried, Records
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy

log = logging.getLogger(__name__)

NAMED = 8
"""Documents or questions that a message names; the file that it points to has all of them."""
EVENTS = {"log": "spike", "skip": "skipped-step", "drop_data": "dropped-data", "roll_back": "rolled-back"}
"""Action -> kind of event. A stop is one anyhow, with the message it ends in."""
DONE = {
    "log": "the step is taken",
    "skip": "its update is not taken",
    "drop_data": "its update is not taken, and what it learnt from does not come again",
}


class Taught(Protocol):
    """What the steps of a stage learn from. Every rank has one, and all call its methods at the same steps."""

    @property
    def what(self) -> str:
        """What they are, for people, such as "documents"."""
        ...

    def names(self, step: int) -> list[str]:
        """Of what the step after `step` steps learns from, on all ranks; rank 0's answer counts."""
        ...

    def texts(self, step: int) -> list[dict[str, Any]]:
        """The same for people to read, a row each; rank 0's answer counts."""
        ...

    def leave_out(self, names: Sequence[str]) -> None:
        """Let these not come again, from the next step on. Those of a run that resumes are told before its place."""
        ...

    def pass_over(self, since: int, steps: int) -> None:
        """Let the steps after `since` learn from what comes so many steps further on."""
        ...

    def undo(self, to: int) -> None:
        """On rank 0: what was made by the weights after `to` steps' will not have been."""
        ...


class StepHealth(Carried):
    """Judges the steps of one run."""

    def __init__(
        self,
        settings: Health,
        mesh: Mesh,
        run_dir: RunDir,
        records: Records,
        *,
        whole: int,
        waits: Callable[[], None],
    ) -> None:
        """
        Args:
            whole: a run goes back to a multiple of so many steps.
            waits: returns when no checkpoint is being written any more.
        """
        self._settings, self._mesh, self._run_dir, self._records = settings, mesh, run_dir, records
        self._whole, self._waits = whole, waits
        self._windows: dict[str, list[float]] = {"loss": [], "grad_norm": []}
        self._found = mesh.from_first(lambda: incidents.read(run_dir.path))
        self._taught: Taught | None = None

    # ---- what a run goes on with ------------------------------------------------------------------------

    def begin(self, taught: Taught | None) -> None:
        """Know what steps learn from, which is told what was left out and passed over so far."""
        self._taught = taught
        for one in self._found if taught else ():
            self._tell(one)

    def state(self, step: int) -> dict[str, Any]:
        return {"health": {name: list(window) for name, window in self._windows.items()}}

    def restore(self, state: Mapping[str, Any], checkpoint: Path) -> None:
        for name, values in state.get("health", {}).items():  # a run of an older version has none
            self._windows[name] = list(values)

    def _tell(self, one: Incident) -> None:
        assert self._taught is not None
        if one.action == "drop_data":
            self._taught.leave_out(one.data)
        elif one.action == "roll_back":
            self._taught.pass_over(one.to, one.passed)

    # ---- a step -----------------------------------------------------------------------------------------

    def take(self, policy: Policy, step: int, learned: Mapping[str, float], lr: float) -> dict[str, float]:
        """Apply the gradient that the policy has accumulated, or not. Every rank calls this.

        Args:
            step: steps taken before.
            learned: the step's metrics, with its loss, as `Policy.forward_backward` returns them.

        Returns:
            grad_norm, before clipping, and lr; and `skipped`, 1, where the update was not taken.

        Raises:
            DivergenceError: the settings say so, or `limit` is reached; nothing has changed.
            RolledBackError: the run is to be started again, and goes on from an earlier checkpoint.
        """
        found: list[Incident | None] = []

        def accept(norm: float) -> bool:
            found.append(self._judged(step, {"loss": learned["loss"], "grad_norm": norm}))
            return found[0] is None or found[0].action == "log"

        norm = policy.optim_step(lr, accept=accept)
        figures = {"loss": learned["loss"], "grad_norm": norm}
        (incident,) = found
        if incident is not None:
            self._act(step, incident, figures)
        if incident is None or incident.action == "log":
            for name, value in figures.items():
                self._windows[name] = [*self._windows[name], value][-self._settings.window :]
            return {"grad_norm": norm, "lr": lr}
        return {"grad_norm": norm, "lr": lr, "skipped": 1.0}

    def _judged(self, step: int, figures: Mapping[str, float]) -> Incident | None:
        wrong = self._mesh.any(not finite(figures))
        return self._mesh.from_first(lambda: self._decided(step, figures, wrong=wrong))

    def _decided(self, step: int, figures: Mapping[str, float], *, wrong: bool) -> Incident | None:
        """What to do about a step's figures; wrong: on some rank one of them is not finite."""
        settings = self._settings
        if wrong:
            what, action = "non_finite", settings.non_finite
            text = f"loss {figures['loss']:.4g}, gradient norm {figures['grad_norm']:.4g}"
        elif settings.spike == "off":
            return None
        else:
            bounds = {"loss": settings.loss_z, "grad_norm": settings.grad_norm_z}
            if (seen := spike(figures, self._windows, bounds, settings.window)) is None:
                return None
            what, action, text = "spike", settings.spike, str(seen)
        acted = sum(one.action in incidents.COUNTED for one in self._found)
        if action in incidents.COUNTED and acted >= settings.limit:
            action, text = "stop", f"{text}, after {acted} steps that were not taken as they came (health.limit)"
        return Incident(step + 1, what, action, text)

    # ---- what is done about it --------------------------------------------------------------------------

    def _act(self, step: int, incident: Incident, figures: Mapping[str, float]) -> None:
        """Write down what was decided, tell, and do it. Raises as `take`."""
        named, where = "", ""
        if incident.action != "log" and self._taught is not None:
            names, rows = self._taught.names(step), self._taught.texts(step)
            incident = self._mesh.from_first(lambda: replace(incident, data=tuple(names)))
            file = self._run_dir.path / TEXTS / f"step_{incident.step}.jsonl"
            self._mesh.from_first(lambda: _write(file, rows))
            more = f" and {len(incident.data) - NAMED} more" if len(incident.data) > NAMED else ""
            named = f"it learnt from {self._taught.what} {', '.join(incident.data[:NAMED])}{more}"
            where = f"; their texts are in {file}"
        if incident.action == "roll_back":
            incident = self._back_to(step, incident)
        if incident.action in incidents.COUNTED:
            self._found.append(incident)
            self._mesh.from_first(lambda: incidents.write(self._run_dir.path, self._found))
        self._records.log("incident", incident.step, incidents.row(incident, figures))
        done = DONE.get(incident.action) or (
            f"the run goes back to step {incident.to}" if incident.action == "roll_back" else "the run stops"
        )
        said = f"{incident.text}: {done}{'; ' + named + where if named else ''}"
        if incident.action in EVENTS:
            self._records.event(EVENTS[incident.action], incident.step, said, what=incident.what)
        if incident.action in ("stop", "roll_back"):
            self._end(step, incident, f"step {incident.step}: {incident.text}{'; ' + named + where if named else ''}")
        if self._mesh.first:
            log.warning("step %d: %s", incident.step, said)
        if self._taught is not None:
            self._tell(incident)

    def _back_to(self, step: int, incident: Incident) -> Incident:
        """The incident with the step that the run goes back to, which is its newest checkpoint then."""
        self._waits()

        def chosen() -> int:
            saved = [to for to in self._run_dir.saved_steps() if to % self._whole == 0]
            to = saved[-1] if saved else 0
            if self._taught is not None:
                self._taught.undo(to)
            for later in self._run_dir.saved_steps():
                if later > to:
                    files.remove_folder(self._run_dir.checkpoint(later))
            return to

        to = self._mesh.from_first(chosen)
        return replace(incident, to=to, passed=step + 1 - to)

    def _end(self, step: int, incident: Incident, said: str) -> NoReturn:
        if incident.action == "roll_back":
            raise RolledBackError(
                f"{said}. The run goes back to step {incident.to} and passes over the data of {incident.passed} "
                "step(s): start it again with --resume, as launchers do by themselves"
            )
        how = (
            "lower optimizer.lr or lengthen optimizer.warmup_steps in a new run, or go on with --resume and "
            f'health.{incident.what} = "skip", "drop_data" or "roll_back" ([health] says what each does)'
        )
        raise DivergenceError(
            f"{said}. The update was not taken, and nothing was saved since the last checkpoint: look at what the "
            f"step learnt from; {how}"
        )


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    files.make_folder(file.parent)
    files.write_jsonl(file, rows)
