"""Variables of a cluster file in the processes that they are for, without Slurm; what was not entered is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1mega.config.cluster import Cluster
from r1mega.config.environment import Environment
from r1mega.rollout.attendant import NodePart
from r1mega.rollout.command import ServerPlace
from r1mega.rollout.server import Server
from r1mega.runtime import environment
from r1mega.runtime.run_dir import RunDir

TABLE = {
    "variables": {"NCCL_DEBUG": "WARN", "NCCL_ODD": "a b$(x)"},
    "trainer": {"NVTE_FLASH_ATTN": "1", "NCCL_DEBUG": "INFO"},
    "rollout": {"VLLM_LOGGING_LEVEL": "WARNING"},
}
SAYS = """
import json, os
from r1mega.config.environment import Environment
from r1mega.runtime import environment
print("begins", os.getpid(), flush=True)
environment.enter(Environment.model_validate_json(os.environ["TABLE"]))
names = ("NCCL_DEBUG", "NCCL_ODD", "NVTE_FLASH_ATTN", "VLLM_LOGGING_LEVEL")
print(json.dumps({name: os.environ.get(name) for name in names}))
"""
"""In place of r1mega/cli.py."""


def entered(tmp_path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that enters TABLE, as `python -m r1mega.cli` does, with these variables around it."""
    package = tmp_path / "r1mega"
    package.mkdir()
    for name in (Path(__file__).parents[2] / "r1mega").iterdir():
        (package / name.name).symlink_to(name)
    (package / "cli.py").unlink()
    (package / "cli.py").write_text(SAYS)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("NCCL_", "NVTE_", "VLLM_"))}
    around = {**clean, **variables, "TABLE": json.dumps(TABLE), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "r1mega.cli", "run"]
    return subprocess.run(command, env=around, cwd=tmp_path, capture_output=True, text=True, check=True)


def test_a_run_starts_itself_anew_with_a_trainers_variables_once(tmp_path):
    done = entered(tmp_path, NCCL_DEBUG="TRACE")
    first, second, said = done.stdout.splitlines()
    assert first == second and first.startswith("begins ")  # the same process
    assert json.loads(said) == {**TABLE["variables"], **TABLE["trainer"], "VLLM_LOGGING_LEVEL": None}
    assert done.stderr == (
        "note: NCCL_DEBUG is 'TRACE' in the environment and 'INFO' by the cluster file, which holds\n"
    )


def test_one_whose_batch_script_has_set_them_does_not_start_anew(tmp_path):
    done = entered(tmp_path, NCCL_DEBUG="INFO", NCCL_ODD="a b$(x)", NVTE_FLASH_ATTN="1")
    assert len(done.stdout.splitlines()) == 2 and done.stderr == ""


def place_of(**table: object) -> ServerPlace:
    return ServerPlace.of(Cluster(device="cpu", environment=Environment.model_validate(table)), trains=True)


def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: ServerPlace) -> Server:
    """One that has not been started."""
    (tmp_path / "config.json").write_text('{"vocab_size": 8}')
    (tmp_path / "tokenizer.json").touch()
    monkeypatch.setattr("r1mega.rollout.server.fault_of", lambda *_: None)
    monkeypatch.setattr(Server, "start", lambda _: None)
    made = Server(
        tmp_path, Cluster(device="cpu").rollout, max_model_len=8, seed=0, log_file=tmp_path / "l", place=place
    )
    made.port, made._addresses = 1, ["10.0.0.2"]
    return made


def test_a_server_has_its_own_variables_and_none_of_the_trainers(tmp_path, monkeypatch):
    for name, value in {**TABLE["variables"], **TABLE["trainer"], "KEPT": "1"}.items():
        monkeypatch.setenv(name, value)  # as in a trainer's process
    made = server(tmp_path, monkeypatch, place_of(**TABLE))
    found = made._environment()
    assert (found["NCCL_DEBUG"], found["NCCL_ODD"], found["VLLM_LOGGING_LEVEL"]) == ("WARN", "a b$(x)", "WARNING")
    assert "NVTE_FLASH_ATTN" not in found and found["KEPT"] == "1"
    assert found["GLOO_SOCKET_IFNAME"] == "lo" and found["OMP_NUM_THREADS"] == "1"


def test_what_r1mega_gives_a_server_holds_against_the_variables_of_all(tmp_path, monkeypatch):
    made = server(tmp_path, monkeypatch, place_of(variables={"GLOO_SOCKET_IFNAME": "ib0"}))
    assert made._environment()["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_server_on_another_node_is_ordered_with_its_variables(tmp_path, monkeypatch):
    machine = Cluster(device="cpu", environment=Environment.model_validate(TABLE))
    machine = machine.model_copy(update={"rollout": machine.rollout.model_copy(update={"attendants": "/f"})})
    made = server(tmp_path, monkeypatch, ServerPlace.of(machine, trains=True))
    ordered = made._parts()[NodePart(0, 0, 0)]["environment"]
    assert ordered["VLLM_LOGGING_LEVEL"] == "WARNING" and ordered["NCCL_DEBUG"] == "WARN"
    assert "NVTE_FLASH_ATTN" not in ordered


def test_what_was_not_entered_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LOADEDMODULES", "gcc/13:cuda-tools/1")
    said = environment.not_entered(Environment(modules=("gcc", "cuda", "cuda-tools/1"), venv=tmp_path))
    assert len(said) == 2
    assert said[0].startswith("cluster.environment.modules: cuda is not loaded here")
    assert said[1].startswith(f"cluster.environment.venv: {tmp_path} is not the environment of {sys.executable}")
    assert environment.not_entered(Environment(venv=Path(sys.prefix))) == []
    assert environment.not_entered(Environment(conda=sys.prefix)) == []
    monkeypatch.delenv("CONDA_DEFAULT_ENV", raising=False)
    assert "environment.conda: other is not" in environment.not_entered(Environment(conda="other"))[0]
    container = {"kind": "apptainer", "image": "/i.sif"}
    table = Environment.model_validate({"container": container})
    assert "container: not inside /i.sif, whose interpreter is /opt/" in environment.not_entered(table)[0]
    table = Environment.model_validate({"container": {**container, "python": sys.executable}})
    assert environment.not_entered(table) == []
    assert environment.not_entered(Environment()) == []


def test_run_json_has_what_each_start_ran_in_and_no_secret(tmp_path, monkeypatch):
    from r1mega.recipe.load import load

    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    recipe, machine = load(Path("configs/tiny/r1_zero/0_base.toml"), "laptop")
    for name in [name for name in os.environ if name.startswith(("NCCL_", "HF_", "WANDB_", "OMP_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        **TABLE["variables"], "NCCL_FOUND": "1", "HF_TOKEN": "s3cr3t", "WANDB_API_KEY": "s3cr3t", "OTHER": "s3cr3t",
        "LOADEDMODULES": "gcc/13:cuda/13.0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for start, table in enumerate(({**TABLE, "container": {"kind": "pyxis", "image": "/i.sqsh"}}, {})):
        machine = machine.model_copy(update={"environment": Environment.model_validate(table)})
        RunDir(tmp_path / "run", recipe, machine, resume=bool(start)).close()
        (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n')
    text = (tmp_path / "run/run.json").read_text()
    first, second = (part["environment"] for part in json.loads(text)["parts"])
    assert "s3cr3t" not in text and "HF_TOKEN" not in text
    assert first["python"] == sys.executable and first["container"] == "/i.sqsh"
    assert first["modules"] == ["gcc/13", "cuda/13.0"]
    found = {name: value for name, value in first["variables"].items() if name.startswith(("NCCL", "NVTE"))}
    assert found == {**TABLE["variables"], "NCCL_FOUND": "1"}  # NVTE_FLASH_ATTN has not been entered
    assert first["servers"] == {**TABLE["variables"], **TABLE["rollout"]}
    assert (second["container"], second["servers"]) == ("", {})
    assert json.loads((tmp_path / "run/config.json").read_text())["cluster"]["environment"]["variables"] == {}


def test_a_stage_of_a_chain_is_forked_with_its_variables(monkeypatch):
    from r1mega.pipeline.starting import Starts

    given = {}
    starts = Starts([])
    starts._preloaded = type("", (), {"start": lambda _, arguments, variables, *__: given.update(variables)})()
    starts._fork(["run"], {"NCCL_A": "b"})
    assert given["NCCL_A"] == "b" and "PYTHONDONTWRITEBYTECODE" not in given
