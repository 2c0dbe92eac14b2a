"""What the real W&B gets of a run: its offline files, and what `wandb sync` uploads of all parts of a resumed run."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from wandb_server import Uploaded, recording

from r1mega import cli
from r1mega.config.watching import Wandb
from r1mega.recipe.load import load
from r1mega.runtime import wandb_folder, wandb_parts, wandb_process
from r1mega.runtime.events import Events
from r1mega.runtime.interrupt import Interrupted
from r1mega.runtime.mirror import mirrored
from r1mega.runtime.provenance import Lineage
from r1mega.runtime.run_dir import RunDir
from r1mega.runtime.tracking import Tracker

ROOT = Path(__file__).parents[2]
CONFIG = {"stage": {"stage": "grpo", "optimizer": {"lr": 0.5}}, "cluster": {"device": "cpu"}}
LINEAGE = Lineage("5" * 32, "7" * 32, ("00aa11bb22cc33dd",))
HOSTILE = '<img src=x onerror="alert(1)"> ünï\n$(reboot)'
WEIGHTS = b"weights, which nobody uploads"


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """With W&B, and without a word of it in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_RUN_GROUP", "WANDB_DATA_DIR"):
            patch.delenv(name, raising=False)
        yield


def begin(run_dir: Path) -> None:
    (run_dir / "samples").mkdir(parents=True)
    (run_dir.parent / "chain.json").write_text('{"id": "0a1b2c3d", "wall_seconds": 1.0}')
    (run_dir / "run.json").write_text(json.dumps({**LINEAGE.record(), "parts": []}))


def take_steps(run_dir: Path, steps: range, *, shown: Any, then: Mapping[int, Callable[[], None]] = {}) -> None:
    """As a stage does: a rollout before each odd step, an evaluation after step 4, and what else comes then."""
    tracker = Tracker(run_dir, shown)
    for step in steps:
        if step % 2:
            write_samples(run_dir, step - 1)
        tracker.log("train", step, {"loss": step / 8, "reward/total": float(step)})
        if step == 4:
            tracker.log("eval", step, {"eval/strict": 0.25, "result": {"no": "number"}})
        then.get(step, lambda: None)()
    tracker.close()


def write_samples(run_dir: Path, step: int) -> None:
    rows = [
        {"step": step, "question": HOSTILE, "truth": "3", "text": f"{step}.{i} " + "x" * 5000 * (i == 2),
         "reward": i / 2, "parts": {"format": 1.0}, "tokens": 7, "status": "scored", "reason": "",
         "finish_reason": "stop"}
        for i in range(10)
    ]  # fmt: skip
    (run_dir / f"samples/step_{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_checkpoint(run_dir: Path, step: int, crc32: int) -> None:
    folder = run_dir / f"checkpoints/step_{step}"
    folder.mkdir(parents=True)
    (folder / "policy.json").write_text(json.dumps({"crc32": crc32}))
    (folder / "__0_0.distcp").write_bytes(WEIGHTS)


def rewind(run_dir: Path, step: int) -> None:
    """As a resumed run does."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["step"] <= step))
    for file in (run_dir / "samples").glob("*"):
        if int(file.stem.removeprefix("step_")) > step:
            file.unlink()


def sync(run_dir: Path, uploaded: Uploaded, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *options, str(run_dir / "wandb")],
        env=os.environ | uploaded.environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


SETTINGS = Wandb(
    mode="offline", project="small", entity="team", tags=("tiny", "test"), transcripts=4, transcripts_every=4
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run in three parts. The first took six steps, and the checkpoint of the fourth is what is left of it; in
    the second W&B was killed after step 7; the third went on to the end."""
    run_dir = tmp_path_factory.mktemp("runs") / "chain/rl"
    begin(run_dir)

    def collapse(load: float, step: int) -> None:
        Events(run_dir).say("collapsed", f"layer 3: expert 5 gets {load} of the even load", step=step)

    with pytest.raises(Interrupted), mirrored(run_dir, SETTINGS, CONFIG) as shown:
        saves = {4: lambda: save_checkpoint(run_dir, 4, crc32=111), 5: lambda: collapse(0.004, 5)}
        take_steps(run_dir, range(1, 7), shown=shown, then=saves)
        raise Interrupted(signal.SIGTERM, "saved")
    rewind(run_dir, 4)
    with mirrored(run_dir, SETTINGS, CONFIG) as shown:
        kill = partial(kill_after_row, run_dir, 7, shown)
        take_steps(run_dir, range(5, 10), shown=shown, then={5: lambda: collapse(0.0071, 5), 7: kill})
    with mirrored(run_dir, SETTINGS, CONFIG) as shown:
        take_steps(run_dir, range(10, 12), shown=shown)
        Events(run_dir).say("hacking", "reward rises, accuracy does not", step=11)
        Events(run_dir).say("requeued", "a note, of which nobody is alarmed")
        save_checkpoint(run_dir, 10, crc32=222)
        (run_dir / "hf").mkdir()
        (run_dir / "hf/model.safetensors").write_bytes(WEIGHTS)
        (run_dir / "summary.json").write_text(json.dumps({"eval": {"after": {"strict": {"mean": 0.375}}}}))
        (run_dir / "card.json").write_text(json.dumps({"domains": {"math": {"rows": 3, "share": 0.6}}}))
        row = {
            "id": "q1",
            "domain": "math",
            "samples": [{"status": "scored", "value": v, "answer": "<b>"} for v in (1, 0)],
        }
        (run_dir / "results.jsonl").write_text(json.dumps(row) + "\n")
    return run_dir


def kill_after_row(run_dir: Path, step: int, shown: Any) -> None:
    """When W&B's own file has it: what it has not written when it is killed is lost there."""
    deadline = time.monotonic() + 120 + wandb_process.FLUSH_S
    while step not in [row.get("step") for part in wandb_parts.parts_of(run_dir) for row in wandb_parts.rows(part)]:
        assert time.monotonic() < deadline, "no such row"
        time.sleep(0.2)
    os.killpg(shown._child.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def uploaded(run_dir: Path) -> Any:
    with recording() as server:
        assert "Syncing 3 run(s)" in sync(run_dir, server)
        yield server


def scalar(uploaded: Uploaded) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in uploaded.rows if row["kind"] in ("train", "eval")]


def test_every_row_of_every_part_is_there_once_in_order(uploaded: Uploaded):
    """Steps 5 and 6 were taken twice; 8 and 9 come with the third part, which found that they lack."""
    assert scalar(uploaded) == [
        *[("train", s) for s in (1, 2, 3, 4)], ("eval", 4), ("train", 5), ("train", 6),
        *[("train", s) for s in (5, 6, 7)], *[("train", s) for s in (8, 9)], *[("train", s) for s in (10, 11)],
    ]  # fmt: skip
    assert uploaded.order == sorted(set(uploaded.order)) and sorted(uploaded.lines) == list(
        range(len(uploaded.lines))
    )
    of_five = [row for row in uploaded.rows if (row["kind"], row["step"]) == ("train", 5)]
    assert [(row["part"], row["loss"]) for row in of_five] == [(1, 0.625), (2, 0.625)]


def test_it_is_one_run_in_the_chains_group(uploaded: Uploaded):
    assert {asked["name"] for asked in uploaded.runs} == {LINEAGE.runs[0]}
    first = uploaded.runs[0]
    assert (first["groupName"], first["jobType"], first["tags"]) == ("chain-0a1b2c3d", "grpo", ["tiny", "test"])
    assert (first["project"], first["entity"]) == ("small", "team")
    config = json.loads(uploaded.runs[-1]["config"])
    assert config["optimizer"]["value"] == {"lr": 0.5} and config["cluster"]["value"] == {"device": "cpu"}
    (everything,) = (entry for entry in config["_wandb"]["value"]["m"] if entry.get("2") == "*")
    assert everything["5"] and {"1": "step"}.items() <= config["_wandb"]["value"]["m"][everything["5"] - 1].items()
    assert uploaded.ends == [143, 1, 0]  # preempted, killed, done


def test_transcripts_are_bounded_tables_of_text(uploaded: Uploaded):
    rows = [row for row in uploaded.rows if row["kind"] == "transcripts"]
    assert [row["step"] for row in rows] == [0, 4, 8]  # rollouts at 0, 2, 4 ... and every fourth step
    assert {(row["transcripts/shown"], row["transcripts/of"]) for row in rows} == {(4, 10)}
    table = json.loads(uploaded.files[rows[1]["transcripts"]["path"]])
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["text"].split()[0] for row in shown] == ["4.0", "4.2", "4.5", "4.7"]
    assert {row["question"] for row in shown} == {HOSTILE} and shown[3]["reward"] == 3.5
    assert len(shown[1]["text"]) < wandb_folder.CHARACTERS + 100 and shown[1]["text"].endswith(
        "x… [1,004 more characters]"
    )


def test_weights_are_referenced_and_stay_where_they_are(run_dir: Path, uploaded: Uploaded):
    found = {(one["artifactTypeName"], meta["step"]): meta for one in uploaded.artifacts if one["artifactTypeName"] in
             ("checkpoint", "model") and (meta := json.loads(one["metadata"]))}  # fmt: skip
    assert sorted(found) == [("checkpoint", 4), ("checkpoint", 10), ("model", 11)]
    saved = found["checkpoint", 4]
    assert saved["crc32"] == 111 and saved["path"] == str(run_dir / "checkpoints/step_4")
    assert saved["policy"] == LINEAGE.policy(4) and saved["digest"] == LINEAGE.policies(4)[0]
    assert len([one for one in uploaded.artifacts if one["artifactTypeName"] == "checkpoint"]) == 2, "once each"
    assert not [name for name, data in uploaded.files.items() if WEIGHTS in data]
    references = [
        entry.ref for part in wandb_parts.parts_of(run_dir) for record in wandb_parts.records(part)
        if record.HasField("artifact") for entry in record.artifact.manifest.contents if entry.ref
    ]  # fmt: skip
    assert f"file://{run_dir}/hf/model.safetensors" in references and len(references) == 5
    staged = [
        entry.local_path for part in wandb_parts.parts_of(run_dir) for record in wandb_parts.records(part)
        if record.HasField("artifact") for entry in record.artifact.manifest.contents if entry.local_path
    ]  # fmt: skip
    assert staged and all(path.startswith(f"{run_dir}/wandb/") for path in staged)


def test_one_alert_for_each_cause(uploaded: Uploaded):
    assert [(alert["title"].split(":")[0], alert["severity"]) for alert in uploaded.alerts] == [
        ("collapsed, step 5", "ERROR"), ("hacking, step 11", "ERROR"),
    ]  # fmt: skip
    assert "expert 5 gets 0.004" in uploaded.alerts[0]["text"]


def test_the_summary_card_and_judged_answers_are_there(uploaded: Uploaded):
    assert uploaded.summary["final/eval/after/strict/mean"] == 0.375 and uploaded.summary["eval/strict"] == 0.25
    tables = {row["kind"]: json.loads(uploaded.files[row[row["kind"]]["path"]]) for row in uploaded.rows
              if row["kind"] in ("data_card", "judged_answers", "events")}  # fmt: skip
    assert tables["data_card"]["data"] == [["math", 3, 0.6]]
    answers = dict(zip(tables["judged_answers"]["columns"], tables["judged_answers"]["data"][0], strict=True))
    assert (answers["mean"], answers["answer"]) == (0.5, "<b>")
    assert [row[1] for row in tables["events"]["data"]] == ["collapsed", "collapsed", "hacking", "requeued"]


def test_what_is_sent_again_takes_its_own_place(run_dir: Path, uploaded: Uploaded):
    before = uploaded.rows
    sync(run_dir, uploaded, "--include-synced")
    assert [row["_step"] for row in uploaded.rows] == [row["_step"] for row in before]
    assert scalar(uploaded) == [(row["kind"], row["step"]) for row in before if row["kind"] in ("train", "eval")]


def test_the_service_of_a_process_that_starts_the_run_is_not_its_own(tmp_path: Path, monkeypatch, caplog):
    """That one's service is gone here; W&B itself would look for it. And settings that show nothing show nothing."""
    monkeypatch.setenv("WANDB_SERVICE", f"3-{os.getpid()}-unix-{tmp_path}/gone")
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    begin(tmp_path / "chain/run")
    less = Wandb(mode="offline", transcripts=0, references=False, alerts=False)
    with caplog.at_level(logging.WARNING), mirrored(tmp_path / "chain/run", less, CONFIG) as shown:
        take_steps(tmp_path / "chain/run", range(1, 4), shown=shown)
        save_checkpoint(tmp_path / "chain/run", 2, crc32=1)
        Events(tmp_path / "chain/run").say("hacking", "reward rises", step=2)
    (part,) = wandb_parts.parts_of(tmp_path / "chain/run")
    found = list(wandb_parts.records(part))
    assert {record.run.run_group for record in found if record.HasField("run")} == {"mine"}
    assert [row["step"] for row in wandb_parts.rows(part) if row["kind"] == "train"] == [1, 2, 3]
    assert not [row for row in wandb_parts.rows(part) if row["kind"] == "transcripts"]
    assert not [
        r for r in found if r.HasField("alert") or (r.HasField("artifact") and r.artifact.type == "checkpoint")
    ]
    assert not caplog.text


def test_online_rows_come_behind_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """W&B has a higher number than this run knows of, and throws away what comes below it."""
    begin(tmp_path / "run")
    with recording() as server:
        server.runs.append({"name": LINEAGE.runs[0]})
        server.lines[0] = {"_step": 50, "kind": "train", "step": 9}
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with mirrored(tmp_path / "run", Wandb(mode="online", transcripts=0), CONFIG) as shown:
            take_steps(tmp_path / "run", range(10, 12), shown=shown)
        assert [(row["_step"], row["step"]) for row in server.rows if row["kind"] == "train"] == [
            (50, 9), (51, 10), (52, 11),
        ]  # fmt: skip
        # The network went before the last row had left this machine, whose own file of that part has it.
        (lost,) = [place for place, row in server.lines.items() if row["_step"] == 52]
        for place in [place for place in server.lines if place >= lost]:
            del server.lines[place]
        server.summary |= {"_step": 51}
        with mirrored(tmp_path / "run", Wandb(mode="online", transcripts=0), CONFIG) as shown:
            take_steps(tmp_path / "run", range(12, 13), shown=shown)
        assert [(row["part"], row["step"]) for row in server.rows if row["kind"] == "train" and "part" in row] == [
            (1, 10), (2, 11), (2, 12),
        ]  # fmt: skip


def test_how_a_stage_ends_is_known_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The event of its crash comes after its last row, and before W&B is told that the run is over."""
    monkeypatch.chdir(ROOT)
    recipe, machine = load(ROOT / "configs/tiny/r1_zero/0_base.toml", "laptop", ["wandb.mode=offline"])

    def crashes(recipe: Any, machine: Any, run_dir: RunDir) -> None:
        Tracker(run_dir.path, run_dir.mirror).log("train", 1, {"loss": 0.5})
        raise RuntimeError("no luck")

    monkeypatch.setattr(cli, "imported", lambda entry: crashes)
    monkeypatch.setattr(cli.openmp, "restart_with_preload", lambda: None)
    with pytest.raises(RuntimeError, match="no luck"):
        cli._run_stage(recipe, machine, tmp_path / "run", resume=False, verify_inputs=False)
    (part,) = wandb_parts.parts_of(tmp_path / "run")
    found = list(wandb_parts.records(part))
    assert [record.alert.title for record in found if record.HasField("alert")] == ["crashed: no luck"]
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [1]
    assert [row["loss"] for row in wandb_parts.rows(part)] == [0.5]

    def ends(recipe: Any, machine: Any, run_dir: RunDir) -> None:
        Tracker(run_dir.path, run_dir.mirror)
        run_dir.hf.mkdir()

    monkeypatch.setattr(cli, "imported", lambda entry: ends)
    monkeypatch.setattr(cli, "_report_of_done", lambda path: None)
    cli._run_stage(recipe, machine, tmp_path / "run", resume=True, verify_inputs=False)
    _, part = wandb_parts.parts_of(tmp_path / "run")
    found = list(wandb_parts.records(part))
    (model,) = (r.artifact for r in found if r.HasField("artifact") and r.artifact.type == "model")
    assert json.loads(model.metadata)["step"] == 1, "of the step that an earlier part took"
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]


def test_what_cannot_be_shown_is_said_once_and_the_rows_go_on(tmp_path: Path, caplog):
    begin(tmp_path / "chain/run")
    with caplog.at_level(logging.WARNING), mirrored(tmp_path / "chain/run", SETTINGS, CONFIG) as shown:
        take_steps(tmp_path / "chain/run", range(1, 4), shown=shown)
        (tmp_path / "chain/run/samples/step_0.jsonl").write_text("{torn\n")
    (part,) = wandb_parts.parts_of(tmp_path / "chain/run")
    assert [row["step"] for row in wandb_parts.rows(part) if row["kind"] == "train"] == [1, 2, 3]
    assert caplog.text.count("W&B: transcripts: JSONDecodeError") == 1 and "not logged" not in caplog.text
