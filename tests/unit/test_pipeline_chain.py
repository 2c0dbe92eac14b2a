"""The chain of stages: order, hand-over, resuming, and the check of held-out questions."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r1mega.errors import ConfigError, DataError, R1MegaError, RunDirError
from r1mega.pipeline import chain
from r1mega.pipeline.graph import Pipeline, load_pipeline
from r1mega.recipe.load import load
from r1mega.recipe.pretrain import Pretrain
from r1mega.runtime.interrupt import Interrupted

DEMO = Path(__file__).parents[2] / "configs/tiny/r1_zero/demo.toml"


@pytest.fixture
def demo() -> Pipeline:
    return load_pipeline(DEMO)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Records what would run; every stage leaves a summary and its questions at once."""
    ran: list[tuple[str, list[str]]] = []

    def run_stage(node, cluster, run_dir, overrides, verify):
        ran.append((node.name, overrides))
        folder = run_dir / node.name
        (folder / "checkpoints/step_1").mkdir(parents=True)
        (folder / "trained_on.jsonl").write_text('{"question": "1 + 1"}\n')
        (folder / "held_out.jsonl").write_text('{"question": "2 + 2"}\n')
        (folder / "summary.json").write_text(json.dumps({"seconds": 12.34}))

    monkeypatch.setattr(chain, "_run_stage", run_stage)
    return ran


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(DEMO.parents[3])


def test_stages_run_in_order_each_from_the_one_named(tmp_path: Path, demo, stages):
    overrides = ["seed=3", "rl:num_steps=40", "wandb.mode=disabled"]
    chain.run_chain(demo, "laptop", tmp_path / "run", overrides, resume=False)
    hf = [f'model.path="{tmp_path}/run/{name}/hf"' for name in ("base", "anneal", "control")]
    assert stages == [
        ("base", ["seed=3", "wandb.mode=disabled"]),
        ("anneal", ["seed=3", "wandb.mode=disabled", hf[0]]),
        ("rl", ["seed=3", "num_steps=40", "wandb.mode=disabled", hf[1]]),
        ("control", ["seed=3", "wandb.mode=disabled", hf[1], "max_seconds=12.3"]),
        ("control_eval", ["seed=3", hf[2]]),  # it has no wandb section
    ]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert list(summary["stages"]) == ["base", "anneal", "rl", "control", "control_eval"]
    assert summary["questions"] == {"trained_on": 1, "held_out": 1, "overlap": 0}


def test_resume_passes_over_what_is_done_with_the_same_config(tmp_path: Path, demo, stages):
    base = tmp_path / "base"
    (base / "checkpoints/step_1").mkdir(parents=True)
    (base / "trained_on.jsonl").write_text("")
    (base / "summary.json").write_text("{}")
    stage, machine = load(DEMO.parent / "0_base.toml", "laptop")
    config = {"stage": stage.model_dump(mode="json"), "cluster": machine.model_dump(mode="json")}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunDirError, match="--resume"):
        chain.run_chain(demo, "laptop", tmp_path, [], resume=False)
    with pytest.raises(RunDirError, match=r"finished with another config.*\n.*seed: 0 -> 5"):
        chain.run_chain(demo, "laptop", tmp_path, ["seed=5"], resume=True)
    chain.run_chain(demo, "laptop", tmp_path, [], resume=True)
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
        chain.run_chain(demo, "laptop", tmp_path / "run", [override], resume=False)
    assert stages == []
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_used_is_one_message(tmp_path: Path, demo):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match=r"cannot be used: (Not a directory|File exists)"):
        chain.run_chain(demo, "laptop", tmp_path / "file", [], resume=True)


def test_a_held_out_question_that_was_trained_on_is_found(tmp_path: Path, demo, stages):
    chain.run_chain(demo, "laptop", tmp_path, [], resume=False)
    (tmp_path / "base/trained_on.jsonl").write_text('{"question": "2 + 2"}\n')
    with pytest.raises(DataError, match=r"1 held-out questions were trained on, such as '2 \+ 2'"):
        chain._check_held_out(tmp_path, demo)
    (tmp_path / "base/trained_on.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        chain._check_held_out(tmp_path, demo)


def command(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Makes every stage run this Python code instead of the program."""
    popen = subprocess.Popen
    monkeypatch.setattr(chain.subprocess, "Popen", lambda _, **how: popen([sys.executable, "-c", code], **how))


@pytest.mark.parametrize(("code", "error"), [(2, R1MegaError), (1, chain.StageCrashed), (137, chain.StageCrashed)])
def test_a_failing_stage_stops_the_chain(tmp_path: Path, demo, monkeypatch, code: int, error: type[Exception]):
    command(monkeypatch, f"raise SystemExit({code})")
    with pytest.raises(error, match="stage base"):
        chain.run_chain(demo, "laptop", tmp_path / "run", [], resume=False)


def test_an_ignored_ctrl_c_is_not_handed_on(tmp_path: Path, demo, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, "import os, signal\nos.kill(os.getppid(), signal.SIGINT)\nraise SystemExit(2)\n")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(R1MegaError, match="stage base cannot go on"):
            chain.run_chain(demo, "laptop", tmp_path / "run", [], resume=False)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_reaches_the_stage_and_is_waited_for(tmp_path: Path, demo, monkeypatch: pytest.MonkeyPatch):
    mark = tmp_path / "saved"
    command(
        monkeypatch,
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(143)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(300)\n",
    )
    with pytest.raises(Interrupted, match="stage base was stopped") as error:
        chain.run_chain(demo, "laptop", tmp_path / "run", [], resume=False)
    assert error.value.signum == signal.SIGTERM
    assert mark.exists()


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
        chain.run_chain(demo, "laptop", tmp_path / "run", ["base:model.path=/no/weights"], resume=False)
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
    monkeypatch.setattr(Pretrain, "leaves", lambda self: ("conversations.jsonl",))
    chain.run_chain(reading(tmp_path, "base", "conversations.jsonl"), "laptop", tmp_path / "run", [], resume=False)
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
        chain.run_chain(alone, "laptop", tmp_path / "run", ["seed=1"], resume=False)
    assert stages == []


def test_what_an_earlier_stage_does_not_leave_behind_cannot_be_read(tmp_path: Path, stages):
    said = r"stages.sft.reads.data.files: base/pairs.jsonl: stage base leaves hf behind"
    with pytest.raises(ConfigError, match=said):
        chain.run_chain(reading(tmp_path, "base", "pairs.jsonl"), "laptop", tmp_path / "run", [], resume=False)
    with pytest.raises(ConfigError, match=r"stages.sft.reads.data.files: no earlier stage is named 'bse'"):
        reading(tmp_path, "bse", "hf")
    assert stages == []
