"""Health of experts: figures by hand, the definition of a collapse, what a stage leaves of them, the heat map."""

import json
import logging
from types import SimpleNamespace

import pytest

from r1mega.config.training import Experts
from r1mega.diagnostics.load_balance import CollapseWatch, metrics, summarise
from r1mega.errors import DataError
from r1mega.report import heatmap
from r1mega.samples import ExpertLoad, LayerLoad

EVEN, COLLAPSED = (25, 25, 25, 25), (50, 50, 0, 0)


def load(**layers: tuple[int, ...]) -> ExpertLoad:
    made = {
        n: LayerLoad(c, tokens=50, entropy=1.2, aux_loss=1.0, bias=0.1, bias_change=0.0) for n, c in layers.items()
    }
    return ExpertLoad(2, made)


def test_figures_are_means_and_the_worst_layer():
    found = metrics(load(a=EVEN, b=(40, 30, 20, 5)))  # 95 choices, even 23.75; 100 were made
    assert found["experts/dropped"] == 5
    assert found["experts/max_violation/worst"] == pytest.approx(40 / 23.75 - 1)
    assert found["experts/max_violation/mean"] == pytest.approx((40 / 23.75 - 1) / 2)
    assert found["experts/mean_violation/worst"] == pytest.approx((16.25 + 6.25 + 3.75 + 18.75) / 23.75 / 4)
    assert found["experts/least_load/worst"] == pytest.approx(5 / 23.75)
    assert found["experts/least_load/mean"] == pytest.approx((1 + 5 / 23.75) / 2)
    assert found["experts/entropy/worst"] == 1.2
    assert metrics(ExpertLoad(2, {})) == {}


def test_a_collapse_is_a_fault_that_lasts_and_is_said_once():
    watch = CollapseWatch(Experts(patience=3, min_load=0.05, max_share=0.9))
    assert [watch.see(load(a=COLLAPSED, b=EVEN)) for _ in range(2)] == [[], []]
    assert watch.see(load(a=EVEN, b=EVEN)) == []  # it recovers: the count begins anew
    assert [watch.see(load(a=COLLAPSED, b=EVEN)) for _ in range(2)] == [[], []]
    assert watch.see(load(a=COLLAPSED, b=EVEN)) == [
        "layer a: expert 2 gets 0 of the even load",
        "layer a: expert 0 is chosen by 100% of the tokens",
    ]
    assert [watch.see(load(a=COLLAPSED, b=EVEN)) for _ in range(5)] == [[]] * 5
    assert watch.see(load(a=EVEN, b=EVEN)) == []  # it recovers: another collapse is said again
    assert [len(watch.see(load(a=COLLAPSED, b=EVEN))) for _ in range(4)] == [0, 0, 2, 0]
    assert CollapseWatch(Experts(patience=1, min_load=0, max_share=1)).see(load(a=COLLAPSED)) == []


def test_a_stage_keeps_figures_loads_and_one_warning(tmp_path, caplog):
    from r1mega.stages.records import FirstRanksRecords

    shown: list[dict] = []
    mirror = SimpleNamespace(stands=lambda size: None, log=shown.append)
    run_dir = SimpleNamespace(path=tmp_path, expert_loads=tmp_path / "experts.jsonl", mirror=mirror)

    def records(**experts) -> FirstRanksRecords:
        return FirstRanksRecords(run_dir, SimpleNamespace(experts=Experts(**experts)))

    def logged(kind: str) -> list[dict]:
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["kind"] == kind]

    step = load(**{"1": COLLAPSED, "mtp 0": EVEN})
    with records(load_every=4, patience=2) as kept, caplog.at_level(logging.WARNING):
        for s in range(1, 9):
            kept.step(s, {"loss": 1.0}, step)
        kept.step(9, {"loss": 1.0}, None)
    *found, dense = logged("train")
    assert dense == {"kind": "train", "step": 9, "loss": 1.0}
    assert shown[-1] == dense and len(shown) == 10
    rows = logged("warning")
    assert all(f["experts/max_violation/worst"] == 1.0 for f in found)
    assert [(r["kind"], r["step"]) for r in rows] == [("warning", 2)]
    assert "collapsed router for 2 steps: layer 1: expert 2 gets 0 of the even load" in rows[0]["warning"]
    assert len(caplog.records) == 1
    lines = [json.loads(line) for line in (tmp_path / "experts.jsonl").read_text().splitlines()]
    want = {"top_k": 2, "tokens": 50, "load": {"1": list(COLLAPSED), "mtp 0": list(EVEN)}}
    assert lines == [{"step": 4, **want}, {"step": 8, **want}]
    with records(load_every=0, patience=1) as resumed:
        resumed.restore(json.loads(json.dumps(kept.state(9))), tmp_path)
        resumed.step(9, {}, step)
    assert len(logged("warning")) == 1  # it was said before
    with records(load_every=0, patience=3) as early:
        early.step(1, {}, step)
        early.step(2, {}, step)
    with records(load_every=0, patience=3) as late:
        late.restore(json.loads(json.dumps(early.state(2))), tmp_path)
        late.step(3, {}, step)
    assert [row["step"] for row in logged("warning")] == [2, 3]
    found[-1]["experts/dropped"] = 2
    assert summarise([{"loss": 1.0}, *found]) == {
        "max violation": 0.5,
        "max violation, worst layer": 1.0,
        "least load, worst layer": 0.0,
        "dropped choices": 2,
    }
    assert summarise([{"loss": 1.0}]) == {}


def test_the_heat_map_shows_what_is_farthest_from_even(tmp_path, monkeypatch):
    rows = [{"step": s, "load": {"1": [25, 25, 25, 25], "2": [0, 50, 50, 100]}} for s in (10, 20, 30)]
    layers, cells = heatmap._cells(rows)
    assert layers == ["1", "2"]
    assert cells == [[0.0] * 3] * 4 + [[-3.0] * 3, [0.0] * 3, [0.0] * 3, [1.0] * 3]
    monkeypatch.setattr(heatmap, "MAX_LINES", 4)
    monkeypatch.setattr(heatmap, "MAX_COLUMNS", 2)
    assert heatmap._cells(rows)[1] == [[0.0] * 2, [0.0] * 2, [-3.0] * 2, [1.0] * 2]
    assert heatmap.draw(tmp_path) is None
    file = tmp_path / "experts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = heatmap.draw(tmp_path)
    assert drawn == tmp_path / "figures/expert_load.png" and drawn.stat().st_size > 1000
    file.write_text('{"step": 1}\n')
    with pytest.raises(DataError, match="a row is not a step's loads"):
        heatmap.draw(tmp_path)
