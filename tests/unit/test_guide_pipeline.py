"""docs/guides/pipeline.md: its chain, table and relations are what `check` takes; its options are there."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from r1mega import cli
from r1mega.errors import ConfigError
from r1mega.evaluation.compare import LEAST_DIFFERENT
from r1mega.pipeline.graph import load_pipeline, look_at_chain

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/pipeline.md").read_text(encoding="utf-8")
STAGES, TABLE, RELATIONS = re.findall(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^(r1mega pipeline .*?) +#", GUIDE, re.M)
ROWS = """
[[stages]]
name = "rows"
config = "0_rows.toml"
"""
EVALUATE = """
stage = "evaluate"
[models]
base = "/nowhere/base"
[sampling]
max_new_tokens = 48
[columns]
reasoning = { domains = ["math"] }
instructions = { domains = ["helpful"] }
[evaluation]
every_steps = 1
[[evaluation.questions]]
kind = "reasoning_gym"
family = "chain_sum"
params = { min_terms = 3, max_terms = 4, min_digits = 1, max_digits = 1 }
num = 40
[[evaluation.questions]]
kind = "constraints"
max_words = 4
max_constraints = 3
num = 40
domain = "helpful"
"""


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's file, with a stage that makes the rows its SFT reads."""
    tiny = ROOT / "configs/tiny"
    base = (tiny / "r1/0_base.toml").read_text().replace("../qwen2.json", str(tiny / "qwen2.json"))
    (tmp_path / "0_base.toml").write_text(base)
    sft = (tiny / "sft/1_qwen2.toml").read_text().replace("../qwen2.json", str(tiny / "qwen2.json"))
    (tmp_path / "1_sft.toml").write_text(sft)
    (tmp_path / "6_eval.toml").write_text(EVALUATE)
    (tmp_path / "plain.jsonl").write_text('{"prompt": "1 + 1 =", "response": "2"}\n')
    (tmp_path / "0_rows.toml").write_text('stage = "mixture"\n[[data]]\nfiles = ["plain.jsonl"]\ndomain = "math"\n')
    first, _, rest = STAGES.partition("\n\n")
    (tmp_path / "chain.toml").write_text("\n".join([first, ROWS, rest, TABLE, RELATIONS]))
    monkeypatch.chdir(ROOT)
    return tmp_path / "chain.toml"


def test_the_chain_is_one(chain: Path):
    pipeline = load_pipeline(chain)
    looks = look_at_chain(pipeline, "laptop", chain.parent / "run", [])
    assert [node.name for node in pipeline.stages] == ["base", "rows", "longer", "sft", "eval"]
    assert looks[2].recipe.model_dump()["num_steps"] == 1500
    assert pipeline.table is not None and pipeline.table.label("longer") == "Base, 1,500 steps"
    assert [part.claimed for part in pipeline.relations[0].all] == ["higher", "not_lower"]


def test_names_are_found_before_anything_runs(chain: Path):
    chain.write_text(chain.read_text().replace('column = "reasoning"', 'column = "sums"'))
    with pytest.raises(ConfigError, match="no evaluation has a column 'sums'"):
        look_at_chain(load_pipeline(chain), "laptop", chain.parent / "run", [])


def test_its_options_are_there_and_its_number_is_the_codes():
    said = CliRunner().invoke(cli.app, ["pipeline", "--help"], env={"COLUMNS": "200"}).output
    options = {word for command in COMMANDS for word in command.split() if word.startswith("--")}
    assert options == {"--cluster", "--dry-run", "--resume"}
    assert all(option in said for option in (*options, "--from", "--until", "--only", "--set"))
    assert "Fewer than six questions" in GUIDE and LEAST_DIFFERENT == 6


def test_its_lines_for_slurm_are_taken(chain: Path, monkeypatch: pytest.MonkeyPatch):
    lines = re.findall(r"^slurm/pipeline.sh chain.toml (.*?)(?: +#.*)?$", GUIDE, re.M)
    assert len(lines) == 2
    run_dir = chain.parent / "run"
    for line in lines:
        words = ["launch", str(chain), "--run-dir", str(run_dir), *line.replace("--dry-run", "").split(), "--dry-run"]
        done = CliRunner().invoke(cli.app, words)
        assert done.exit_code == 0, done.exception
    jobs = [line for line in done.stdout.splitlines() if line.startswith("job_")]
    assert [("--partition=gpu" in job, "--time=04:00:00" in job) for job in jobs] == [(True, False)] * 4 + [
        (True, True)
    ]
    shown = re.findall(r"^r1mega jobs runs/chain(.*?) +#", GUIDE, re.M)
    assert [line.split() for line in shown] == [[], ["--logs", "sft"], ["--cancel"]]
    assert not run_dir.exists()
