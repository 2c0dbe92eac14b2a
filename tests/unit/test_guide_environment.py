"""docs/guides/environment.md and containers/README.md: their tables are what a cluster file takes."""

import re
import tomllib
from pathlib import Path

from r1mega.config import variables
from r1mega.config.environment import Checks, Environment
from r1mega.runtime.node_report import XIDS

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs/guides/environment.md"


def tables(file: Path) -> list[Environment]:
    blocks = re.findall(r"^```toml\n(.*?)^```", file.read_text(), flags=re.M | re.S)
    return [Environment.model_validate(tomllib.loads(block)["environment"]) for block in blocks]


def test_the_tables_are_taken_as_they_stand():
    guide, readme = tables(GUIDE)[0], tables(ROOT / "containers/README.md")[0]
    assert guide.of_trainer["NVTE_FUSED_ATTN"] == "1" and "VLLM_LOGGING_LEVEL" not in guide.of_trainer
    assert guide.venv == Path("/shared/envs/r1mega") and guide.modules == ("cuda/13.0",)
    assert readme.container is not None and readme.container.kind == "pyxis"
    assert Environment.model_validate({"conda": "r1mega"}).conda == "r1mega"


def test_what_it_says_is_refused_is_refused():
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MY_KEY", "RANK", "MASTER_PORT", "OMP_NUM_THREADS"):
        assert variables.fault_of(name)
    assert variables.fault_of("NCCL_DEBUG") is None and not variables.recorded("HF_TOKEN")


def test_the_defaults_of_the_checks_are_what_they_are():
    assert tables(GUIDE)[1].checks == Checks()
    assert sorted(Checks.model_fields) == sorted(tables(GUIDE)[1].checks.model_fields_set)
    assert all(f" {number}" in GUIDE.read_text().replace(",", "").replace("(Xid", "") for number in XIDS)
