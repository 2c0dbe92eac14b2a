"""The chain of stages: order, hand-over, resuming, and the check of held-out questions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1mega.errors import ConfigError, DataError, R1MegaError, RunDirError
from r1mega.pipeline import artefacts, chain, starting
from r1mega.pipeline.graph import Pipeline, load_pipeline
from r1mega.pipeline.overrides import for_shell
from r1mega.pipeline.plan import PipelineRun
from r1mega.recipe.load import load
from r1mega.recipe.pretrain import Pretrain
from r1mega.runtime import process
from r1mega.runtime.interrupt import Interrupted

DEMO = Path(__file__).parents[2] / "configs/tiny/r1_zero/demo.toml"


def run_chain(pipeline: Pipeline, run_dir: Path, overrides=(), *, resume: bool = False, **options) -> bool:
    return chain.run_chain(PipelineRun(pipeline, "laptop", run_dir, overrides), resume=resume, **options)


@pytest.fixture
def demo() -> Pipeline:
    return load_pipeline(DEMO)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Records what would run; every stage leaves a summary and its questions at once."""
    ran: list[tuple[str, list[str]]] = []

    def run_stage(plan, of, starts):
        ran.append((plan.node.name, plan.overrides))
        folder = of.run_dir / plan.node.name
        (folder / "checkpoints/step_1").mkdir(parents=True)
        (folder / "trained_on.jsonl").write_text('{"question": "1 + 1"}\n')
        (folder / "held_out.jsonl").write_text('{"question": "2 + 2"}\n')
        (folder / "summary.json").write_text(json.dumps({"seconds": 12.34}))
        return 0, None

    monkeypatch.setattr(chain, "_run_stage", run_stage)
    return ran


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(DEMO.parents[3])


def test_stages_run_in_order_each_from_the_one_named(tmp_path: Path, demo, stages):
    overrides = ["seed=3", "rl:num_steps=40", "wandb.mode=disabled"]
    run_chain(demo, tmp_path / "run", overrides)
    hf = [f'model.path="{tmp_path}/run/{name}/hf"' for name in ("base", "anneal", "control")]
    assert stages == [
        ("base", ["seed=3", "wandb.mode=disabled"]),
        ("anneal", ["seed=3", "wandb.mode=disabled", hf[0]]),
        ("rl", ["seed=3", "num_steps=40", "wandb.mode=disabled", hf[1]]),
        ("control", ["seed=3", "wandb.mode=disabled", hf[1], "max_seconds=12.3"]),
        ("control_eval", ["seed=3", "wandb.mode=disabled", hf[2]]),
    ]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert list(summary["stages"]) == ["base", "anneal", "rl", "control", "control_eval"]
    assert summary["questions"] == {"trained_on": 1, "held_out": 1, "overlap": 0}


def test_a_chain_has_an_id_before_its_first_stage_starts_and_keeps_it(tmp_path: Path, demo, monkeypatch):
    ids: list[str] = []

    def crashes(plan, of, starts):
        ids.append(json.loads((of.run_dir / "chain.json").read_text())["id"])
        return 1, None

    monkeypatch.setattr(chain, "_run_stage", crashes)
    for name, resume in (("run", False), ("run", True), ("other", False)):
        with pytest.raises(chain.StageCrashed):
            run_chain(demo, tmp_path / name, resume=resume)
    assert ids[0] == ids[1] != ids[2]


def test_resume_passes_over_what_is_done_with_the_same_config(tmp_path: Path, demo, stages, monkeypatch):
    monkeypatch.setattr(artefacts, "_lost", lambda *_: [])  # outputs: test_pipeline_artefacts.py
    base = tmp_path / "base"
    (base / "checkpoints/step_1").mkdir(parents=True)
    (base / "trained_on.jsonl").write_text("")
    (base / "summary.json").write_text("{}")
    stage, machine = load(DEMO.parent / "0_base.toml", "laptop")
    config = {"stage": stage.model_dump(mode="json"), "cluster": machine.model_dump(mode="json")}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunDirError, match="--resume"):
        run_chain(demo, tmp_path)
    run_chain(demo, tmp_path, resume=True)
    assert [name for name, _ in stages] == ["anneal", "rl", "control", "control_eval"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("control_eval:sampling.temprature=1", "did you mean 'temperature'"),
        ("nowhere=1", "no stage of the pipeline"),
        ("rl:objective.group_size=1", "objective.group_size"),
    ],
)
def test_every_stage_is_checked_before_the_first_runs(tmp_path: Path, demo, stages, override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        run_chain(demo, tmp_path / "run", [override])
    assert stages == []
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_used_is_one_message(tmp_path: Path, demo):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"cannot be used: (Not a directory|File exists)"):
        run_chain(demo, tmp_path / "file", resume=True)


def test_a_held_out_question_that_was_trained_on_is_found(tmp_path: Path, demo, stages):
    run_chain(demo, tmp_path)
    (tmp_path / "base/trained_on.jsonl").write_text('{"question": "2 + 2"}\n')
    with pytest.raises(DataError, match=r"1 held-out questions were trained on, such as '2 \+ 2'"):
        chain._check_held_out(tmp_path, demo)
    (tmp_path / "base/trained_on.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        chain._check_held_out(tmp_path, demo)


def command(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Makes every stage run this Python code instead of the program; `chain` in it is the chain's process."""
    spawn = process.spawn
    code = f"chain = {os.getpid()}\n{code}"
    monkeypatch.setattr(starting, "can_be_forked", lambda plan: False)
    monkeypatch.setattr(process, "spawn", lambda _, **how: spawn([sys.executable, "-c", code], **how))


@pytest.mark.parametrize(("code", "error"), [(2, R1MegaError), (1, chain.StageCrashed), (137, chain.StageCrashed)])
def test_a_failing_stage_stops_the_chain(tmp_path: Path, demo, monkeypatch, code: int, error: type[Exception]):
    command(monkeypatch, f"raise SystemExit({code})")
    with pytest.raises(error, match="stage base"):
        run_chain(demo, tmp_path / "run")


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (1, 3), (137, 3), (75, 3)])
def test_a_stage_that_crashed_is_started_again_if_so_asked(tmp_path: Path, demo, monkeypatch, code: int, starts: int):
    command(monkeypatch, f"open({str(tmp_path / 'starts')!r}, 'a').write('.')\nraise SystemExit({code})")
    with pytest.raises((R1MegaError, chain.StageCrashed)):
        run_chain(demo, tmp_path / "run", retries=2)
    assert (tmp_path / "starts").read_text() == "." * starts


def test_a_stage_that_is_killed_is_started_again_and_goes_on(tmp_path: Path, demo, monkeypatch, capsys):
    mark = tmp_path / "was_here"
    command(
        monkeypatch,
        f"import os, pathlib\nmark = pathlib.Path({str(mark)!r})\nif mark.exists(): raise SystemExit(2)\n"
        "mark.touch()\nos.kill(os.getpid(), 9)",
    )
    with pytest.raises(R1MegaError, match="stage base cannot go on"):
        run_chain(demo, tmp_path / "run", retries=1)
    assert "stage base left with exit code 137; started again, 0 more times at most" in capsys.readouterr().out
    seconds = json.loads((tmp_path / "run/chain.json").read_text())["wall_seconds"]
    with pytest.raises(R1MegaError):
        run_chain(demo, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/chain.json").read_text())["wall_seconds"] > seconds > 0
    assert json.loads((tmp_path / "run/chain.json").read_text())["stages"] == [n.name for n in demo.stages]


def test_an_ignored_ctrl_c_is_not_handed_on(tmp_path: Path, demo, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "import os, signal\nos.kill(chain, signal.SIGINT)\nraise SystemExit(2)\n")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(R1MegaError, match="stage base cannot go on"):
            run_chain(demo, tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_reaches_the_stage_and_is_waited_for(tmp_path: Path, demo, monkeypatch: pytest.MonkeyPatch):
    mark = tmp_path / "saved"
    command(
        monkeypatch,
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(143)))\n"
        "os.kill(chain, signal.SIGTERM)\ntime.sleep(300)\n",
    )
    with pytest.raises(Interrupted, match="stage base was stopped") as error:
        run_chain(demo, tmp_path / "run")
    assert error.value.signum == signal.SIGTERM
    assert mark.exists()


def test_a_stage_ends_with_a_chain_that_is_killed(tmp_path: Path):
    """The chain's process has no moment in which to end it."""
    pid, ended = tmp_path / "pid", tmp_path / "ended"
    stage = (
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit(143)))\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(300)\n"
    )
    program = (
        "import pathlib, sys\nfrom r1mega.pipeline import chain, starting\n"
        "from r1mega.pipeline.graph import load_pipeline\n"
        "from r1mega.pipeline.plan import PipelineRun\nfrom r1mega.runtime import process\n"
        "spawn, starting.can_be_forked = process.spawn, lambda plan: False\n"
        f"process.spawn = lambda _, **how: spawn([sys.executable, '-c', {stage!r}], **how)\n"
        f"pipeline = load_pipeline(pathlib.Path({str(DEMO)!r}))\n"
        f"chain.run_chain(PipelineRun(pipeline, 'laptop', pathlib.Path({str(tmp_path / 'run')!r})), resume=False)\n"
    )
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    until(lambda: pid.is_file() and pid.read_text())
    started.kill()
    started.wait()
    until(ended.exists)
    until(lambda: not Path(f"/proc/{pid.read_text()}").exists())


def until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_chain_names_only_earlier_stages(tmp_path: Path):
    (tmp_path / "c.toml").write_text(
        '[[stages]]\nname = "a"\nconfig = "a.toml"\nstart = "b"\n[[stages]]\nname = "a"\nconfig = "c.toml"\n'
    )
    with pytest.raises(ConfigError) as error:
        load_pipeline(tmp_path / "c.toml")
    for part in ("no earlier stage is named 'b'", "two are named 'a'", f"no file {tmp_path}/a.toml"):
        assert part in str(error.value)


def test_weights_that_are_not_there_are_missed_before_anything_runs(tmp_path: Path, demo, stages):
    with pytest.raises(ConfigError, match=r"0_base.toml: model.path: /no/weights is not there yet"):
        run_chain(demo, tmp_path / "run", ["base:model.path=/no/weights"])
    assert stages == []


READS = """
[[stages]]
name = "base"
config = "ROOT/configs/tiny/r1_zero/0_base.toml"

[[stages]]
name = "sft"
config = "ROOT/configs/tiny/sft/1_deepseek_v3.toml"
start = "base"
reads = { "data.files" = ["STAGE/FILE"] }
"""


def reading(folder: Path, stage: str, file: str) -> Pipeline:
    """A chain whose second stage reads a file of the first one's."""
    text = READS.replace("ROOT", str(DEMO.parents[3])).replace("STAGE", stage).replace("FILE", file)
    (folder / "c.toml").write_text(text)
    return load_pipeline(folder / "c.toml")


def test_a_stage_is_told_where_what_it_reads_of_an_earlier_one_will_be(tmp_path: Path, stages, monkeypatch):
    monkeypatch.setattr(Pretrain, "leaves", lambda self: ("hf", "conversations.jsonl"))
    run_chain(reading(tmp_path, "base", "conversations.jsonl"), tmp_path / "run")
    folder = tmp_path / "run/base"
    assert stages[1] == ("sft", [f'model.path="{folder}/hf"', f'data.files=["{folder}/conversations.jsonl"]'])


def test_a_file_that_is_not_made_yet_is_missed_where_no_stage_makes_it(tmp_path: Path, stages):
    """As above, but that nobody is said to make it: it counts as one to be put there."""
    chained = reading(tmp_path, "base", "hf")
    alone = chained.model_copy(
        update={"stages": (chained.stages[0], chained.stages[1].model_copy(update={"reads": {}}))}
    )
    with pytest.raises(
        ConfigError, match=r"data\.files: .*conversations.jsonl: not there yet; made by `python tools"
    ):
        run_chain(alone, tmp_path / "run", ["seed=1"])
    assert stages == []


def test_what_an_earlier_stage_does_not_leave_behind_cannot_be_read(tmp_path: Path, stages):
    said = r"stages.sft.reads.data.files: base/pairs.jsonl: stage base leaves hf behind"
    with pytest.raises(ConfigError, match=said):
        run_chain(reading(tmp_path, "base", "pairs.jsonl"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"stages.sft.reads.data.files: no earlier stage is named 'bse'"):
        reading(tmp_path, "bse", "hf")
    assert stages == []


def test_settings_in_the_chains_file_go_to_the_stage_with_paths_from_there(tmp_path: Path, stages, monkeypatch):
    """The user's own go before them; the process of a stage, whose working directory is another, gets full paths."""
    (tmp_path / "rows.jsonl").write_text("")
    text = READS.replace("ROOT", str(DEMO.parents[3])).partition("reads")[0]
    text += (
        'set = { "data.files" = ["rows.jsonl"], "data.max_tokens" = 128, num_epochs = 2, optimizer = { lr = 1e-4 }}'
    )
    (tmp_path / "c.toml").write_text(text)
    plan = PipelineRun(load_pipeline(tmp_path / "c.toml"), "laptop", tmp_path / "run", ["sft:num_epochs=3"]).plan()[1]
    assert plan.recipe.data.files == (tmp_path / "rows.jsonl",)
    assert (plan.recipe.data.max_tokens, plan.recipe.num_epochs, plan.recipe.optimizer.lr) == (128, 3, 1e-4)
    assert for_shell(plan.overrides, plan.recipe) == [
        f'data.files=["{tmp_path}/rows.jsonl"]', "data.max_tokens=128", "num_epochs=2", 'optimizer={"lr" = 0.0001}',
        "num_epochs=3", f'model.path="{tmp_path}/run/base/hf"',
    ]  # fmt: skip
    monkeypatch.chdir("/")
    parsed = load(
        plan.node.config, str(DEMO.parents[3] / "configs/cluster/laptop.toml"), for_shell(plan.overrides, plan.recipe)
    )
    assert parsed[0] == plan.recipe


def test_a_dry_run_imports_no_torch(tmp_path: Path):
    program = (
        "import sys\nfrom r1mega import cli\n"
        f"sys.argv = ['r1mega', 'pipeline', {str(DEMO)!r}, '--dry-run', '--run-dir', {str(tmp_path / 'run')!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "print({'torch', 'megatron', 'transformers', 'vllm', 'pyarrow', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=DEMO.parents[3])
    assert done.stdout.splitlines()[-1] == "set()", done
    assert done.stdout.startswith("base          begins\nanneal        begins after base\n")
    assert not (tmp_path / "run").exists()
