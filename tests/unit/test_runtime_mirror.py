"""Whatever W&B does, the run goes on, and says what was not logged there."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from r1mega.config.watching import Wandb
from r1mega.runtime import mirror, tracking
from r1mega.runtime.mirror import choose_mode

ROOT = Path(__file__).parents[2]
CONFIG = {"stage": {"stage": "sft", "seed": 3}, "cluster": {"device": "cpu"}}
ROWS = 3

PLANTED = """
import json, os, pathlib, sys, time

def act(point):
    for what in os.environ["PLANTED"].split():
        where, _, fault = what.partition("=")
        if where == point:
            print("planted", what, flush=True)
            if fault == "raise":
                raise RuntimeError("planted fault\\nof two lines")
            elif fault == "exit":
                sys.exit(3)
            elif fault == "die":
                os._exit(9)
            elif fault == "ask":
                raise RuntimeError("on stdin there is " + repr(sys.stdin.read()))
            else:
                time.sleep(600)

def Settings(**given):
    return given

def login(**given):
    return "key" in os.environ["PLANTED"].split()

def teardown():
    act("teardown")

class Run:
    starting_step = 0
    def __init__(self, given):
        self.given = given
        self.file = pathlib.Path(given["dir"], "wandb", given["mode"] + ".jsonl")
        self.rows = 0
    def define_metric(self, *names, **given):
        act("define")
    def log(self, row, step, commit):
        self.rows += 1
        act(f"log{self.rows}")
        with self.file.open("a") as file:
            print(json.dumps(row | {"_step": step}), file=file)
    def mark_preempting(self):
        self.given["preempted"] = True
    def finish(self, exit_code=None):
        act("finish")
        with self.file.open("a") as file:
            given = {name: of for name, of in self.given.items() if name != "settings"}
            print(json.dumps(given | {"exit_code": exit_code}), file=file)

def init(**given):
    act("init")
    act(given["mode"])
    return Run(given)
"""
"""In wandb's place: does what the words POINT=FAULT of $PLANTED say, and writes down what it is given."""


@pytest.fixture(autouse=True)
def _without_a_word_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory whose W&B is the planted one."""
    package = tmp_path / "planted/wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{ROOT}")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def track(run: Path, mode: str, rows: int = ROWS) -> None:
    with mirror.mirrored(run, Wandb.model_validate({"mode": mode}), CONFIG) as shown:
        tracker = tracking.Tracker(run, shown)
        for step in range(rows):
            tracker.log("train", step, {"loss": step / 4, "text": "no number"})
        tracker.close()


def logged(run: Path, mode: str) -> list[dict]:
    file = run / f"wandb/{mode}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


GONE = "its process has ended"
FAULTS = [  # what is planted, wandb.mode, rows logged offline, what is said
    ("", "auto", 3, ""),
    ("online=raise key", "auto", 3, "it does not start online (RuntimeError: planted fault of two lines)"),
    ("online=exit key", "auto", 3, "it does not start online (SystemExit: 3)"),
    ("online=die", "online", 3, f"it does not start online ({GONE}"),
    ("online=hang", "online", 3, "it does not start online (no answer within"),
    ("init=raise", "online", 0, "RuntimeError: planted fault of two lines. Metrics go to"),
    ("offline=ask", "offline", 0, "RuntimeError: on stdin there is ''"),
    ("log1=raise", "offline", 0, "RuntimeError: planted fault"),
    ("log3=exit", "offline", 2, "SystemExit: 3"),
    ("log2=die", "offline", 1, GONE),
    ("log3=hang", "offline", 2, "no answer within"),
    ("finish=raise", "offline", 3, "the run's end failed there (RuntimeError: planted fault"),
    ("finish=hang", "offline", 3, "the run's end failed there (no answer within"),
    ("teardown=die", "offline", 3, f"the run's end failed there ({GONE}"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "mode", "kept", "said"), FAULTS)
def test_a_fault_of_wandb_is_a_warning(
    planted: Path, monkeypatch, caplog, fault: str, mode: str, kept: int, said: str
):
    monkeypatch.setenv("PLANTED", fault)
    if "hang" in fault:  # a start must not fall under it on a slow machine
        name = "START_TIMEOUT_S" if "online" in fault else "CLOSE_TIMEOUT_S" if "finish" in fault else "ROW_TIMEOUT_S"
        monkeypatch.setattr(mirror, name, 5.0 if "online" in fault else 1.0)
        if "finish" in fault:
            monkeypatch.setattr(mirror.threading.Thread, "join", _patient_join)
    track(planted, mode)
    rows = [json.loads(line) for line in (planted / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [0.0, 0.25, 0.5]
    offline = [row for row in logged(planted, "offline") if "loss" in row]
    assert offline == [
        {"loss": step / 4, "step": step, "kind": "train", "part": 1, "_step": step} for step in range(kept)
    ]
    assert said in caplog.text and ("planted" in caplog.text or not said.startswith("RuntimeError: p"))
    assert (f"{ROWS - kept} of {ROWS} rows were not logged" in caplog.text) == (kept < ROWS)
    assert bool(caplog.text) == bool(said)


def _patient_join(thread, timeout=None, *, join=mirror.threading.Thread.join):
    join(thread, timeout and 60.0)


def test_a_key_sends_rows_online_and_a_resumed_run_joins_them(planted: Path, monkeypatch):
    monkeypatch.setenv("PLANTED", "key")
    track(planted, "auto", rows=1)
    track(planted, "auto", rows=1)
    (one, first), (two, second) = logged(planted, "online")[:2], logged(planted, "online")[2:]
    assert first["id"] == second["id"] and (first["resume"], second["resume"]) == ("allow", "allow")
    assert [(row["_step"], row["part"]) for row in (one, two)] == [(0, 1), (1, 2)]


def test_an_unwritable_folder_is_a_warning(planted: Path, monkeypatch, caplog):
    monkeypatch.setenv("PLANTED", "")
    (planted / "wandb").touch()
    track(planted, "offline")
    assert "3 of 3 rows were not logged" in caplog.text and str(planted / "wandb") in caplog.text


def test_a_run_that_is_over_does_not_wait_for_ever(planted: Path, monkeypatch, caplog):
    monkeypatch.setenv("PLANTED", "init=hang")
    monkeypatch.setattr(mirror, "CLOSE_TIMEOUT_S", 0.5)
    track(planted, "offline")
    assert "left behind" in caplog.text and "3 of 3 rows were not logged" in caplog.text


def test_signals_to_all_of_a_run_leave_its_rows(planted: Path, monkeypatch):
    """Slurm sends SIGTERM to every process of a job step."""
    monkeypatch.setenv("PLANTED", "")
    with mirror.mirrored(planted, Wandb(mode="offline"), CONFIG) as shown:
        tracker = tracking.Tracker(planted, shown)
        tracker.log("train", 1, {"loss": 1.0})
        while not logged(planted, "offline"):
            time.sleep(0.02)
        child: Any = shown and shown._child
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.killpg(child.pid, number)
        tracker.log("train", 2, {"loss": 2.0})
    assert [row.get("loss") for row in logged(planted, "offline")] == [1.0, 2.0, None]


MODES = [  # wandb.mode, WANDB_MODE, what holds, what is said
    ("auto", None, "auto", ""),
    ("auto", "", "auto", ""),
    ("auto", "disabled", "disabled", "WANDB_MODE=disabled"),
    ("auto", "dryrun", "offline", "WANDB_MODE=dryrun"),
    ("auto", "Online", "online", "WANDB_MODE=Online"),
    ("auto", "nonsense", "offline", "'nonsense' in the environment is none of disabled, offline, online"),
    ("disabled", "nonsense", "disabled", "'nonsense'"),
    ("offline", "offline", "offline", ""),
    ("online", "run", "online", ""),
    ("online", "offline", "offline", "wandb.mode is 'online' and WANDB_MODE in the environment 'offline'"),
    ("offline", "online", "offline", "shows less"),
    ("online", "disabled", "disabled", "shows less"),
    ("disabled", "online", "disabled", "shows less"),
]


@pytest.mark.parametrize(("setting", "variable", "held", "said"), MODES)
def test_the_mode_of_setting_and_environment(setting, variable, held: str, said: str):
    mode, told = choose_mode(setting, {} if variable is None else {"WANDB_MODE": variable})
    assert mode == held and said in told and bool(told) == bool(said)


def test_a_disabled_run_starts_nothing(planted: Path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    track(planted, "auto")
    assert not (planted / "wandb").exists() and not (planted / "logs").exists()
    assert "W&B is disabled: WANDB_MODE=disabled in the environment" in caplog.text


@pytest.mark.slow
def test_a_key_without_a_network_leaves_files(tmp_path: Path, monkeypatch, caplog):
    """The real wandb; port 9 is closed."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(mirror, "CLOSE_TIMEOUT_S", 400.0)
    track(tmp_path, "auto")
    (record,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"loss" in record.read_bytes()
    assert "W&B is offline: it does not start online" in caplog.text and "not logged" not in caplog.text
