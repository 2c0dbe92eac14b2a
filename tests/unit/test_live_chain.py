"""A chain as one picture; and what is said of runs: events counted, rewards with intervals, times and figures."""

import shutil
from pathlib import Path

import pytest
from watched_runs import NOW, event, look, told, train_row, write_lines, write_stage

from r1mega.report.live.chain import RunReader, stage_names
from r1mega.report.live.life import RunState
from r1mega.report.live.spans import figure, moment, span
from r1mega.report.live.status_text import as_json


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """One stage done, one that runs; a third is still to come."""
    write_stage(tmp_path / "base", kind="pretrain", started="2026-09-21T08:00:00+00:00", done=True)
    rows = [train_row(step) for step in range(1, 11)]
    write_stage(tmp_path / "a_rl", rows, started="2026-09-21T09:00:00+00:00", written=NOW - 4)
    (tmp_path / "chain.json").write_text('{"wall_seconds": 5.0, "stages": ["base", "a_rl", "eval"]}')
    return tmp_path


def test_a_chain_that_runs(chain: Path):
    facts = look(chain)
    assert facts.life.state is RunState.RUNNING and facts.done == 1 and facts.chain
    assert [stage.name for stage in facts.stages] == ["base", "a_rl", "eval"]
    assert facts.current is not None and facts.current.name == "a_rl"
    assert told(facts)["stages"] == ["done: base", "a_rl (grpo): running, step 10 of 400", "eval (to come): waiting"]


def test_stages_that_nobody_listed_come_in_the_order_in_which_they_began(chain: Path):
    (chain / "chain.json").write_text('{"wall_seconds": 5.0}')
    shutil.copytree(chain / "base", chain / ".superseded")
    assert stage_names(chain) == ["base", "a_rl"]
    (chain / "chain.json").write_text('{"stages": ["../../etc", "base"]}')
    assert stage_names(chain) == ["base", "a_rl"]
    assert stage_names(chain / "base") is None


def test_a_chain_ends_as_its_stage_did(chain: Path):
    write_stage(chain / "a_rl", [train_row(3)], events=[event("crashed", NOW - 999, "out of memory")])
    facts = look(chain)
    assert facts.life.state is RunState.FAILED and facts.life.why == "a_rl: crashed: out of memory"
    assert facts.current is not None and facts.current.name == "a_rl"
    assert told(facts)["happened"][0].startswith("a_rl: crashed: out of memory, 2026-09-21")
    write_stage(chain / "a_rl", [train_row(3)], done=True)
    (chain / "a_rl/events.jsonl").unlink()
    facts = look(chain)
    assert facts.life.state is RunState.SILENT and "eval to come" in facts.life.why
    write_stage(chain / "eval", kind="evaluate", done=True)
    (chain / "summary.json").write_text('{"stages": {"base": {}, "a_rl": {}, "eval": {}}}')
    assert look(chain).life.state is RunState.DONE


def test_what_is_done_is_read_once_until_it_changes(chain: Path, monkeypatch):
    from r1mega.report.live import chain as chains

    read: list[str] = []
    whole = chains.stage_facts
    monkeypatch.setattr(chains, "stage_facts", lambda stage, *more: read.append(stage.name) or whole(stage, *more))
    reader = RunReader(chain)
    reader.read(NOW)
    reader.read(NOW)
    assert read == ["base", "a_rl", "eval", "a_rl", "eval"]
    (chain / "base/summary.json").unlink()
    reader.read(NOW)
    assert read[5:] == ["base", "a_rl", "eval"]


# ---- words --------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read_are_told_of(tmp_path: Path):
    write_stage(tmp_path, [train_row(3)], written=NOW - 1)
    (tmp_path / "config.json").write_text('{"stage": ')
    (tmp_path / "run.json").write_text("[]")
    (tmp_path / "events.jsonl").mkdir()
    facts = look(tmp_path)
    assert [fault.split(" ")[0] for fault in facts.faults] == ["config.json", "run.json", "events.jsonl"]
    assert facts.current is not None and facts.current.step == 3


def test_events_are_counted_by_kind_with_the_last_ones_words(tmp_path: Path):
    events = [event("recovered-server", NOW - 90 + i, f"the {i}th", step=i) for i in range(3)]
    events += [event("collapsed", NOW - 95, "router 3"), event("started", NOW - 99)]
    write_stage(tmp_path, [train_row(5), {"kind": "recovery", "step": 1, "reason": "gone"}], events=events)
    happened = look(tmp_path).happened
    assert [(h.kind, h.count, h.text) for h in happened] == [
        ("collapsed", 1, "router 3"),
        ("recovered-server", 3, "the 2th"),
        ("started", 1, "words"),
    ]


def test_rows_of_metrics_tell_where_no_event_does(tmp_path: Path):
    rows = [
        train_row(5),
        {"kind": "recovery", "step": 4, "reason": "gone"},
        {"kind": "hacking", "step": 5, "text": "up"},
    ]
    write_lines(tmp_path / "metrics.jsonl", rows)
    assert [(h.kind, h.step, h.text) for h in look(tmp_path).happened] == [
        ("hacking", 5, "up"),
        ("recovered-server", 4, "gone"),
    ]


def test_a_reward_has_the_interval_of_its_last_lines(tmp_path: Path):
    """Four values 1, 2, 3, 4: mean 2.5, standard deviation 1.29099, t(3) = 3.18245: 2.5 +- 2.05426."""
    write_stage(tmp_path, [train_row(i, **{"reward/total": float(i)}) for i in range(1, 5)])
    reward = as_json(look(tmp_path))["stages"][0]["figures"]["reward"]
    assert reward["value"] == 4.0 and reward["mean"] == 2.5
    assert reward["low"] == pytest.approx(0.44574, abs=1e-4) and reward["high"] == pytest.approx(4.55426, abs=1e-4)


def test_times_and_figures():
    assert [span(s) for s in (3.21, 59, 119, 120, 3599, 3600, 86400, 200000)] == [
        "3.2 s", "59 s", "119 s", "2 min 00 s", "59 min 59 s", "1 h 00 min", "24 h 00 min", "2 d 7 h",
    ]  # fmt: skip
    assert [figure(x) for x in (0.0, 0.12345, 12345.6, 1e-7, 2e12)] == [
        "0",
        "0.1235",
        "12,346",
        "1.00e-07",
        "2.00e+12",
    ]
    assert moment(0) == "" and moment(NOW) == "2026-09-21 14:13:20 UTC" and span(float("nan")) == "an unknown time"
