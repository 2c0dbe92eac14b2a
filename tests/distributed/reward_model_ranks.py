"""On every rank: a reward model trained for a few steps, at a layout such as dp=2 or none.

`of(FOLDER, OBJECTIVE/LAYOUT)` trains on FOLDER/OBJECTIVE.jsonl from the model in FOLDER/base, which `base(FOLDER)`
writes; the run directory is FOLDER/OBJECTIVE/LAYOUT.
"""

import sys
from pathlib import Path
from typing import Any

from layouts import parse

from r1mega.config.cluster import Cluster
from r1mega.trainer import mesh as meshes

sys.path.append(str(Path(__file__).parents[1] / "unit"))


def base(folder: Path, family: str) -> None:
    from judged_data import write_judge_base

    write_judge_base(folder / "base", family, meshes.start(parse(""), device="cpu", seed=0))


def of(folder: Path, case: str) -> None:
    from judged_data import rm_config

    from r1mega.runtime import env
    from r1mega.runtime.run_dir import RunDir
    from r1mega.stages import reward_model

    objective, _, layout = case.partition("/")
    machine = Cluster(device="cpu", trainer=parse(layout))
    changes: dict[str, Any] = {
        "max_steps": 3,
        "validation": {"share": 0.2, "every_steps": 2},
        "optimizer": {"lr": 3e-3},
    }
    config = rm_config(folder / "base", folder / f"{objective}.jsonl", objective, **changes)
    path = folder / objective / (layout or "one")
    path.mkdir(parents=True, exist_ok=True)
    launch = env.launch()
    if launch is None or launch.rank == 0:
        run_dir = RunDir(path, config, machine, resume=False)
    else:
        run_dir = RunDir.join(path, 60.0)
    try:
        reward_model.run(config, machine, run_dir)
    finally:
        run_dir.close()
