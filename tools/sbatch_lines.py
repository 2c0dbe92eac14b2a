"""How each full-size stage, and the whole chain, is submitted to Slurm; written as golden files.

    python tools/sbatch_lines.py          # writes tests/unit/goldens/launch/NAME.sh: a file a cluster, one a chain

A change of a golden file is a change of what runs on a cluster: look at it before it is committed.
"""

import argparse
import sys
from pathlib import Path

try:
    from r1mega.config.cluster import Cluster
    from r1mega.config.inputs import CLUSTER, default_run_dir
    from r1mega.launchers.job import StageJob
    from r1mega.launchers.slurm import SlurmLauncher
    from r1mega.pipeline.graph import load_pipeline
    from r1mega.pipeline.jobs import job_of_stage, jobs_of
    from r1mega.pipeline.plan import PipelineRun
    from r1mega.preflight.look import Look
    from r1mega.recipe.load import load
    from r1mega.recipe.recipe import Recipe
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"sbatch_lines: {said}", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests/unit/goldens/launch"
CHAIN, CHAIN_CLUSTER = Path("configs/r1/pipeline.toml"), "h800_v3"


def stages() -> dict[str, list[Path]]:
    """Cluster file -> the full-size configs that name it, as paths from the repository's root."""
    found: dict[str, list[Path]] = {}
    for file in sorted((ROOT / "configs").rglob("*.toml")):
        if cluster := CLUSTER.search(file.read_text(encoding="utf-8")):
            found.setdefault(cluster[1], []).append(file.relative_to(ROOT))
    return found


def lines() -> dict[str, str]:
    """The golden files' texts, by their names. To be called in the repository's root, where no full-size run is."""
    slurm, texts = SlurmLauncher(ROOT), dict[str, str]()
    for cluster, configs in stages().items():
        jobs = [_job(config, cluster) for config in configs]
        texts[f"{cluster}.sh"] = slurm.script(jobs)
    chain = PipelineRun(load_pipeline(CHAIN), CHAIN_CLUSTER, default_run_dir(CHAIN))
    plans = chain.plan(glance=True)
    looks = [_unseen(plan.node.config, plan.recipe, plan.machine) for plan in plans]
    texts["pipeline.sh"] = slurm.script(jobs_of(chain, plans, looks, CHAIN, {}))
    return texts


def _job(config: Path, cluster: str) -> StageJob:
    seen = _unseen(config, *load(config, cluster))
    return job_of_stage(seen, cluster, default_run_dir(config), [], [])


def _unseen(config: Path, recipe: Recipe, machine: Cluster) -> Look:
    """As if it had been looked at, which takes seconds and decides none of the lines here."""
    return Look(config, recipe, machine, None, (), (), ())


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for name, text in lines().items():
        (GOLDENS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
