"""`check` answers as `run` would: every config with every cluster file, up to where a stage begins."""

import re
import tomllib
from pathlib import Path

import pytest
from check_and_run import ROOT, answer, stop_at_start

from r1mega import cli
from r1mega.config.inputs import MADE_BY
from r1mega.families.spec import ModelSpec, Row

CONFIGS = sorted(f for f in (ROOT / "configs").rglob("*.toml") if f.parent.name != "cluster")
CLUSTERS = sorted(f.stem for f in (ROOT / "configs/cluster").glob("*.toml"))
TABLES: dict[tuple[str, str, int, int], list[Row]] = {}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def tensors(spec: ModelSpec) -> list[Row]:
        """A table for all tests: DeepSeek-V3's takes a while to make."""
        which = spec.family, spec.head, spec.num_layers, spec.hidden_size
        if which not in TABLES:
            TABLES[which] = spec.rows(spec)
        return TABLES[which]

    monkeypatch.setattr(ModelSpec, "tensors", tensors)
    stop_at_start(monkeypatch, tmp_path / "cache")


def notes(said: str) -> list[str]:
    return [re.sub(r"^note: (\w+: (?=model|data|cluster))?", "", line) for line in said.splitlines()]


def is_chain(config: Path) -> bool:
    return "stages" in tomllib.loads(config.read_text())


def name_of(config: Path) -> str:
    return str(config.relative_to(ROOT / "configs").with_suffix(""))


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_check_and_run_agree(config: Path, cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checked = answer(lambda: cli.check(config, cluster), capsys)
    begin = cli.pipeline if is_chain(config) else cli.run
    ran = answer(lambda: begin(config, cluster, run_dir=tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists() or ran == (0, "")
    if checked[0]:
        assert ran == checked
        assert checked[0] == 2
    elif checked[1]:  # what is only not there yet
        assert ran[0] == 2
        assert any(note in ran[1] for note in notes(checked[1]))
    else:
        assert ran == (0, "")


@pytest.mark.parametrize("config", [c for c in CONFIGS if not is_chain(c)], ids=name_of)
def test_every_config_passes_on_the_cluster_its_head_names(config: Path, capsys: pytest.CaptureFixture[str]):
    """Weights, data and GPUs need not be there."""
    text = config.read_text()
    own = [line for line in text.splitlines() if MADE_BY not in line]
    small = not {"tiny", "smollm2"}.isdisjoint(config.parts)
    tables = sum(line.startswith("[[questions]]") or "reward_model" in line for line in own)
    assert len(own) <= (150 if not small else 72 if tables < 2 else 125)
    cluster = re.search(r"^# cluster: (\w+)$", text, re.MULTILINE)
    assert cluster or small, "a full-size config names its cluster file"
    code, said = answer(lambda: cli.check(config, cluster[1] if cluster else "laptop"), capsys)
    assert code == 0, said
    wanted = r"(not there yet|take a GPU each.*, and this machine has 0)"
    assert all(re.search(wanted, note) for note in notes(said)), said
