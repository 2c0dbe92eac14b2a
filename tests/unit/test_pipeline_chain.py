"""The chain of stages: order, hand-over, resuming, and the check of held-out questions."""

import json
from pathlib import Path

import pytest

from r1mega.config.load import load_pipeline
from r1mega.config.schema import Pipeline
from r1mega.errors import ConfigError, DataError, R1MegaError, RunDirError
from r1mega.pipeline import chain

DEMO = Path(__file__).parents[2] / "configs/tiny/r1_zero/demo.toml"


@pytest.fixture
def demo() -> Pipeline:
    return load_pipeline(DEMO)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Records what would run; every stage leaves a summary and its questions at once."""
    ran: list[tuple[str, list[str]]] = []

    def run_stage(node, cluster, run_dir, overrides):
        ran.append((node.name, overrides))
        folder = run_dir / node.name
        folder.mkdir()
        (folder / "trained_on.jsonl").write_text('{"question": "1 + 1"}\n')
        (folder / "held_out.jsonl").write_text('{"question": "2 + 2"}\n')
        (folder / "summary.json").write_text(json.dumps({"seconds": 12.34}))

    monkeypatch.setattr(chain, "_run_stage", run_stage)
    return ran


def test_stages_run_in_order_each_from_the_one_named(tmp_path: Path, demo, stages):
    chain.run_chain(demo, "laptop", tmp_path / "run", ["seed=3", "rl:num_steps=40"], resume=False)
    hf = [f'model.path="{tmp_path}/run/{name}/hf"' for name in ("base", "control")]
    assert stages == [
        ("base", ["seed=3"]),
        ("rl", ["seed=3", "num_steps=40", hf[0]]),
        ("control", ["seed=3", hf[0], "max_seconds=12.3"]),
        ("control_eval", ["seed=3", hf[1]]),
    ]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert list(summary["stages"]) == ["base", "rl", "control", "control_eval"]
    assert summary["questions"] == {"trained_on": 1, "held_out": 1, "overlap": 0}


def test_resume_passes_over_what_is_done(tmp_path: Path, demo, stages):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/summary.json").write_text("{}")
    with pytest.raises(RunDirError, match="--resume"):
        chain.run_chain(demo, "laptop", tmp_path, [], resume=False)
    chain.run_chain(demo, "laptop", tmp_path, [], resume=True)
    assert [name for name, _ in stages] == ["rl", "control", "control_eval"]


def test_a_held_out_question_that_was_trained_on_is_found(tmp_path: Path, demo, stages):
    chain.run_chain(demo, "laptop", tmp_path, [], resume=False)
    (tmp_path / "base/trained_on.jsonl").write_text('{"question": "2 + 2"}\n')
    with pytest.raises(DataError, match=r"1 held-out questions were trained on, such as '2 \+ 2'"):
        chain.run_chain(demo, "laptop", tmp_path, [], resume=True)


def test_a_failing_stage_stops_the_chain(tmp_path: Path, demo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(DEMO.parents[3])
    with pytest.raises(R1MegaError, match="stage base left with exit code 2"):
        chain.run_chain(demo, "laptop", tmp_path / "run", ["base:no_such_key=1"], resume=False)
    assert not (tmp_path / "run/rl").exists()


def test_a_chain_names_only_earlier_stages(tmp_path: Path):
    (tmp_path / "c.toml").write_text(
        '[[stages]]\nname = "a"\nconfig = "a.toml"\nstart = "b"\n[[stages]]\nname = "a"\nconfig = "c.toml"\n'
    )
    with pytest.raises(ConfigError) as error:
        load_pipeline(tmp_path / "c.toml")
    for part in ("no earlier stage is named 'b'", "two are named 'a'", f"no file {tmp_path}/a.toml"):
        assert part in str(error.value)
