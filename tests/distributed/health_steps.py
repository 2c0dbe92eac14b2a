"""On every rank: a run at a layout, in whose second step one rank alone meets a gradient that is no number.

`of(FOLDER, LAYOUT/ACTION/DIES)`: four steps of the skeleton, saved every two, started again while it goes back; with
DIES it ends once in its third step and is resumed. What each start and each rank has seen goes to FOLDER/NAME.json,
where NAME is the argument with "-" for "/".
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from layouts import parse, spec

from r1mega.algos.likelihood import likelihood_loss
from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import Cluster
from r1mega.config.section import RunSettings
from r1mega.config.training import Batch, Experts, Health, Optimizer, Save
from r1mega.errors import RolledBackError
from r1mega.runtime import incidents
from r1mega.runtime.run_dir import RunDir
from r1mega.samples import Document
from r1mega.trainer import mesh as meshes


class Recite(RunSettings):
    """The settings of a stage of fixed documents, two for each data-parallel rank and step."""

    stage: Literal["recite"] = "recite"
    optimizer: Optimizer = Optimizer(lr=1e-3)
    batch: Batch = Batch(chunk_tokens=64)
    health: Health = Health()
    experts: Experts = Experts()
    save: Save = Save(every_steps=2)


class Told:
    """What a step learns from is its number; batches are passed over as they are told."""

    what = "numbers"

    def __init__(self) -> None:
        self.passed = list[tuple[int, int]]()

    def index(self, step: int) -> int:
        return step + sum(steps for since, steps in self.passed if step >= since)

    def names(self, step: int) -> list[str]:
        return [str(self.index(step))]

    def texts(self, step: int) -> list[dict[str, Any]]:
        return [{"number": self.index(step)}]

    def leave_out(self, names: Sequence[str]) -> None: ...

    def pass_over(self, since: int, steps: int) -> None:
        self.passed.append((since, steps))

    def undo(self, to: int) -> None: ...


def documents(index: int, share: int) -> list[Document]:
    ids = [[3 + (7 * i + 5 * j + 11 * index + 3 * share) % 380 for j in range(20 + i)] for i in range(2)]
    return [Document(Int32s(d), 1, {"weight": Float32s.repeated(1 / 80, len(d) - 1)}) for d in ids]


def digest(policy: Any) -> dict[str, str]:
    """Of the weights and biases, and of the optimiser's moments and counts."""
    weights, moments = hashlib.sha256(), hashlib.sha256()
    for name, tensor in policy.state().items():
        weights.update(name.encode() + tensor.detach().numpy().tobytes())
    for part in policy.optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            moments.update(str(group["step"]).encode())
            for param in group["params"]:
                for tensor in part.optimizer.state[param].values():
                    moments.update(tensor.numpy().tobytes())
    return {"weights": weights.hexdigest(), "moments": moments.hexdigest()}


def of(folder: Path, argument: str) -> None:
    layout, action, dies = argument.split("/")
    mesh = meshes.start(parse(layout), device="cpu", seed=0)
    config = Recite(health=Health.model_validate({"non_finite": action}))
    path, starts = folder / argument.replace("/", "-"), list[dict[str, Any]]()
    for start in range(3):
        path.mkdir(exist_ok=True)
        cluster = Cluster(device="cpu", trainer=mesh.layout)
        run_dir = RunDir(path, config, cluster, resume=start > 0) if mesh.first else None
        mesh.barrier()
        seen: dict[str, Any] = {"before": [], "after": [], "error": ""}
        try:
            _recite(config, run_dir or RunDir.join(path, 10.0), mesh, seen, dies=bool(dies) and start == 0)
        except (RolledBackError, ZeroDivisionError) as error:
            seen["error"] = f"{type(error).__name__}: {error}"
        finally:
            if run_dir:
                run_dir.close()
        starts.append({"ranks": mesh.gather(seen)})
        if not seen["error"]:
            break
    if mesh.first:
        found = [one.__dict__ for one in incidents.read(path)]
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        path.with_suffix(".json").write_text(json.dumps({"starts": starts, "incidents": found, "rows": rows}))


def _recite(config: Recite, run_dir: RunDir, mesh: Any, seen: dict[str, Any], *, dies: bool) -> None:
    from r1mega.stages.run import TrainingRun
    from r1mega.trainer.policy import Policy

    told = Told()
    with TrainingRun(config, run_dir, mesh, num_steps=4) as run:
        policy = Policy.build(
            spec(), mesh, config.optimizer, config.batch, mtp="joint", mtp_loss_weight=0.3, expert_bias_rate=1e-3,
            seed=0,
        )  # fmt: skip
        run.begin(policy, first_weights=lambda: None, tokenizer=None, taught=told)
        for step in run.steps():
            learned = policy.forward_backward(documents(told.index(step), mesh.data_rank), likelihood_loss)
            if told.index(step) == 1 and mesh.rank == mesh.world_size - 1:
                gradient = next(p.main_grad for n, p in policy.network.named_parameters() if "experts" in n)  # type: ignore[attr-defined]
                gradient.view(-1)[0] = math.nan
            if dies and step == 2:
                raise ZeroDivisionError
            seen["before"].append(digest(policy))
            with contextlib.ExitStack() as stack:
                stack.callback(lambda: seen["after"].append(digest(policy)))
                learned |= run.update(learned, 1e-3)
            run.after_step(learned | {"tokens": 82}, 0.0)
