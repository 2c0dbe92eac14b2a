"""A chain's stages as jobs: what each begins with and leaves, held against the chain that runs them itself."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_chain import NAMES, SmallChain
from typer.testing import CliRunner

from r1mega.cli import app
from r1mega.errors import ConfigError, RunDirError
from r1mega.pipeline import chain as chains
from r1mega.pipeline import jobs
from r1mega.pipeline.overrides import for_shell
from r1mega.pipeline.plan import ALL, Selection
from r1mega.preflight.look import Look

NEEDS = {"base": [], "pairs": ["base"], "rm": ["base", "pairs"], "sft": ["base"], "rl": ["sft", "rm"], "eval": ["rl"],
         "control": ["base", "rl"], "other": []}  # fmt: skip
"""Of PIPELINE in small_chain.py."""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallChain:
    chain = SmallChain(tmp_path, monkeypatch)
    chain.write()
    return chain


def jobs_of(small: SmallChain, *overrides: str, asked: Selection = ALL):
    chain = small.chain(*overrides, asked=asked)
    plans = chain.plan(glance=True)
    looks = [Look(p.node.config, p.recipe, p.machine, None, (), (), ()) for p in plans]
    return {job.name: job for job in jobs.jobs_of(chain, plans, looks, small.folder / "chain.toml", {})}


def run_jobs(small: SmallChain, *overrides: str, names=NAMES) -> list[str]:
    """Each stage as its job would: begin, the recorder in place of `r1mega run`, end. The stages that ran."""
    small.ran.clear()
    for name in names:
        chain = small.chain(*overrides)
        if jobs.begin(chain, name):
            small._run_stage(chain.of(next(n for n in chain.pipeline.stages if n.name == name)), chain, None)
        jobs.end(chain, name, 2.0)
    return list(small.ran)


def test_a_job_a_stage_after_what_it_needs(small: SmallChain):
    made = jobs_of(small, "sft:num_epochs=2")
    assert {name: list(job.after) for name, job in made.items()} == NEEDS
    one = made["rl"]
    shared = ("--cluster", str(small.folder / "cluster.toml"), "--run-dir", str(small.run_dir))
    shared += ("--set", "sft:num_epochs=2")
    chain = str(small.folder / "chain.toml")
    assert (one.script, one.arguments) == ("slurm/chain_stage.sh", (chain, "rl", *shared))
    assert one.here == ("chain-stage", "run", chain, "rl", *shared)
    assert one.options == ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2")
    assert (one.run_dir, one.logs) == (small.run_dir / "rl", small.run_dir / ".jobs")


def test_jobs_leave_what_the_chain_leaves_and_find_done_what_it_has_done(small: SmallChain):
    """In another order than the chain's, as jobs may end: `other`, and `control` before `eval`."""
    order = ["other", "base", "sft", "pairs", "rm", "rl", "control", "eval"]
    assert run_jobs(small, names=order) == order
    left = json.loads((small.run_dir / "summary.json").read_text())
    assert left["wall_seconds"] == 16.0 and list(left["stages"]) == NAMES
    assert small.run() == []
    assert jobs_of(small) == {}
    summary = json.loads((small.run_dir / "summary.json").read_text())
    assert {**summary, "wall_seconds": 0} == {**left, "wall_seconds": 0}
    # And the other way round: what the chain has run anew, the jobs pass over.
    ran = small.run("sft:seed=9")
    assert ran == ["sft", "rl", "eval"]  # control: as many seconds as before
    assert run_jobs(small, "sft:seed=9") == []


def test_what_begins_anew_is_what_depends_on_a_change(small: SmallChain):
    small.run()
    made = jobs_of(small, "pairs:sampling.max_new_tokens=9")
    assert {name: job.after for name, job in made.items()} == {
        "pairs": (), "rm": ("pairs",), "rl": ("rm",), "eval": ("rl",), "control": ("rl",),
    }  # fmt: skip
    assert run_jobs(small, "pairs:sampling.max_new_tokens=9") == ["pairs", "rm", "rl", "eval"]
    assert sorted(path.name for path in (small.run_dir / ".superseded").iterdir()) == [
        "eval.1", "pairs.1", "rl.1", "rm.1"
    ]  # fmt: skip


def test_a_chain_is_summed_up_only_where_all_of_it_is_done_as_it_is_asked_for(small: SmallChain):
    small.run()
    (small.run_dir / "summary.json").unlink()
    assert not jobs.end(small.chain("base:seed=3"), "other", 1.0)
    assert not (small.run_dir / "summary.json").exists()
    assert jobs.end(small.chain(), "other", 1.0)


def test_a_job_runs_its_stage_with_the_words_of_the_chain(small: SmallChain):
    """What the earlier stages decide included: their weights, and how long a control may take."""
    small.run()
    (small.run_dir / "control/summary.json").unlink()
    (small.run_dir / "rl/summary.json").write_text(json.dumps({"stage": "grpo", "seconds": 77.77}))
    words = jobs.begin(small.chain("control:seed=4", "control:num_steps=9"), "control")
    control = small.chain("control:seed=4", "control:num_steps=9").plan()[NAMES.index("control")]
    assert words[:4] == [str(small.folder / "stages/control.toml"), str(small.run_dir / "control"), "--cluster",
                         str(small.folder / "cluster.toml")]  # fmt: skip
    settings = [word for word in words[4:] if word != "--set"]
    assert settings == for_shell(control.overrides, control.recipe)
    assert {"seed=4", "num_steps=9", "max_seconds=77.8", f'model.path="{small.run_dir}/base/hf"'} == set(settings)


def test_a_stage_whose_need_is_not_done_is_refused(small: SmallChain):
    small.run(asked=Selection(last="pairs"))
    with pytest.raises(RunDirError, match=r"rl needs what stage sft leaves .* not done \(begins"):
        jobs.begin(small.chain(), "rl")
    with pytest.raises(ConfigError, match="nowhere: no stage is named so; there are base, pairs"):
        jobs.begin(small.chain(), "nowhere")
    (small.run_dir / "chain.json").unlink()
    assert jobs.begin(small.chain(), "rm")[0].endswith("rm.toml")
    assert json.loads((small.run_dir / "chain.json").read_text())["id"]  # before the stage asks whose it is
    assert jobs.begin(small.chain(), "pairs") == []


def test_where_a_stage_runs_is_known_before_anything_of_it_is_there(small: SmallChain):
    chain = small.folder / "chain.toml"
    chain.write_text(chain.read_text().replace('name = "rm"', 'name = "rm"\ncluster = "other"'))
    overrides = ("rm:cluster.trainer.threads=1", "cluster.trainer.dp=2", "pairs:cluster.trainer.threads=3", "seed=1")
    assert jobs.place(small.chain(*overrides), "rm") == [
        str(small.folder / "stages/rm.toml"), "--cluster", "other", "--set", "cluster.trainer.threads=1", "--set",
        "cluster.trainer.dp=2",
    ]  # fmt: skip


def test_on_this_machine_a_job_is_begun_run_and_ended(small: SmallChain, monkeypatch: pytest.MonkeyPatch):
    codes, commands = [3, 0], list[list[str]]()

    def spawn(command, **options):
        commands.append(command[3:])
        if (code := codes.pop(0)) == 0:
            chain = small.chain()
            small._run_stage(chain.of(chain.pipeline.stages[0]), chain, None)
        return SimpleNamespace(poll=lambda: code, returncode=code)

    monkeypatch.setattr(jobs.process, "spawn", spawn)
    assert jobs.run(small.chain(), "base") == 3
    assert not (small.run_dir / "base/outputs.json").exists()
    assert jobs.run(small.chain(), "base") == 0
    assert (small.run_dir / "base/outputs.json").is_file()
    assert jobs.run(small.chain(), "base") == 0  # done: nothing is started
    config, run_dir = str(small.folder / "stages/base.toml"), str(small.run_dir / "base")
    cluster = str(small.folder / "cluster.toml")
    assert commands == [["run", config, "--run-dir", run_dir, "--cluster", cluster, "--resume"]] * 2


def test_two_jobs_at_once_wait_for_each_other(small: SmallChain, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "WAIT_S", 0.3)
    with chains.held(small.run_dir), pytest.raises(RunDirError, match="another chain is running"):
        jobs.begin(small.chain(), "base")


def test_what_the_script_reads_ends_in_null_bytes_and_nothing_else_is_said(small: SmallChain):
    line = ["chain-stage", "begin", str(small.folder / "chain.toml"), "base", "--run-dir", str(small.run_dir),
            "--cluster", str(small.folder / "cluster.toml"), "--set", "base:seed=3"]  # fmt: skip
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0
    assert done.stdout.split("\0") == [
        str(small.folder / "stages/base.toml"), str(small.run_dir / "base"), "--cluster",
        str(small.folder / "cluster.toml"), "--set", "seed=3", "",
    ]  # fmt: skip
    assert "== base: base.toml: begins" in done.stderr
    small.run()
    assert CliRunner().invoke(app, [*line[:-2]]).stdout == ""
    line[1] = "end"
    assert CliRunner().invoke(app, [*line[:-2], "--seconds", "3"]).stdout == "done\n"
