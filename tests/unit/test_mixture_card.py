"""The data card of a set whose figures are worked out by hand."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from mixture_run import card, mixed, plain, sampled, write

from r1mega.data.mixed_rows import mixed_row
from r1mega.errors import DataError
from r1mega.stages.mixture_card import REPORT, REPORT_TOTAL


def cold_start(tmp_path: Path) -> Path:
    """A rejection stage's folder, and a set of two kinds of rows."""
    made = tmp_path / "traces"
    rows = [sampled(f"M{i}", "x" * length, tokens=length) for i, length in enumerate((10, 20, 30, 40))]
    rows += [
        sampled("C0", "x" * 100, domain="code", tokens=50, thinking="left_out",
                policy={"endpoint": "http://host/v1", "model": "v3", "start": "aa"},
                rewrite={"by": "template", "of_sha256": "00"}),
        sampled("C0", "y" * 50, domain="code", tokens=25, verdict={"by": "judge", "value": 1.0}),
    ]  # fmt: skip
    write(made / "rows.jsonl", rows)
    decided = [("math", "kept")] * 4 + [("math", "wrong")] * 3 + [("code", "kept")] * 2 + [("code", "truncated")]
    write(made / "decisions.jsonl", ({"domain": domain, "outcome": outcome} for domain, outcome in decided))
    (made / "summary.json").write_text(json.dumps({"stage": "rejection"}))
    write(tmp_path / "chat.jsonl", [plain("Hi", "Hello"), plain("Why?", "<think>Hm.</think>So.")])
    tables = '[[data]]\nfiles = ["traces/rows.jsonl"]\n[[data]]\nfiles = ["chat.jsonl"]\ndomain = "general"\n'
    return mixed(tmp_path, tables)


def test_the_report_s_figures_are_the_report_s():
    assert sum(REPORT.values()) == REPORT_TOTAL == 804_745


def test_the_figures(tmp_path: Path):
    of = card(cold_start(tmp_path))
    assert (of["rows"], of["questions"], of["imported"]) == (8, 7, 2)
    assert {name: domain["rows"] for name, domain in of["domains"].items()} == {
        "math": 4, "code": 2, "stem": 0, "logic": 0, "general": 2,
    }  # fmt: skip
    assert of["domains"]["code"]["questions"] == 1 and of["domains"]["math"]["share"] == 0.5
    lengths = of["domains"]["math"]["lengths"]["characters"]
    assert (lengths["known"], lengths["mean"], lengths["min"], lengths["max"]) == (4, 25.0, 10, 40)
    assert lengths["quantiles"]["0.5"] == 25.0 and lengths["quantiles"]["0.25"] == 17.5
    assert of["lengths"]["tokens"]["known"] == 6 and of["lengths"]["tokens"]["mean"] == (10 + 20 + 30 + 40 + 75) / 6
    assert of["domains"]["general"]["lengths"]["tokens"] == {"known": 0}
    assert of["thinking"] == {"written": 6, "left_out": 1, "none": 0, "not_known": 1}
    assert of["sources"] == {"a_source": 6, "chat.jsonl": 2}
    assert of["policies"] == [
        {"model": "dev2", "start": "5f", "weight_version": 0, "rows": 5},
        {"endpoint": "http://host/v1", "model": "v3", "start": "aa", "rows": 1},
    ]
    assert of["verdicts"] == {"rule:math": 5, "": 2, "judge": 1}
    assert of["rewritten"] == {"template": 1} and of["reviewed"] == {}


def test_a_histogram_counts_every_answer_in_its_bin(tmp_path: Path):
    of = card(cold_start(tmp_path))["domains"]["math"]["lengths"]["characters"]["histogram"]
    edges, counts = of["edges"], of["counts"]
    assert len(edges) == len(counts) + 1 and sum(counts) == 4
    for before, after in itertools.pairwise(edges):
        assert math.isclose(after / before, 10 ** (1 / 8))
    assert edges[0] == 10.0 and counts[0] == 1  # 10 itself; then 20, 30, 40
    lengths = (10, 20, 30, 40)
    assert counts == [sum(a - 1e-6 <= n < b - 1e-6 for n in lengths) for a, b in itertools.pairwise(edges)]


def test_what_earlier_stages_left_out_is_summed(tmp_path: Path):
    first = cold_start(tmp_path)
    (earlier,) = card(first)["earlier"]
    assert (Path(earlier["run"]).name, earlier["stage"]) == ("traces", "rejection")
    assert earlier["domains"] == {"code": {"kept": 2, "truncated": 1}, "math": {"kept": 4, "wrong": 3}}
    second = mixed(tmp_path, '[[data]]\nfiles = ["run/conversations.jsonl"]\n', name="second")
    stages = {Path(one["run"]).name: one for one in card(second)["earlier"]}
    assert list(stages) == ["traces", "run"]
    assert stages["run"]["domains"]["general"] == {"kept": 2} and stages["run"]["stage"] == "mixture"


def test_decisions_that_cannot_be_read_are_named(tmp_path: Path):
    write(tmp_path / "rows.jsonl", [sampled("Q", "A")])
    (tmp_path / "summary.json").write_text('{"stage": "rejection"}')
    (tmp_path / "decisions.jsonl").write_text('{"domain": "math", "outcome": "kept"}\n{"domain": "math"}\n')
    with pytest.raises(DataError, match=r"decisions\.jsonl, line 2: no object with domain and outcome"):
        mixed(tmp_path, '[[data]]\nfiles = ["rows.jsonl"]\n')
    assert not (tmp_path / "run/conversations.jsonl").exists()


def test_the_card_says_what_nobody_knows(tmp_path: Path):
    told = "\n".join(card(cold_start(tmp_path))["not_known"])
    for line in (
        "Tokens of 2 of 8 answers", "wrote the answers of 2 rows", "Whether 1 answers have a chain of thought",
        "Whether 2 answers are right", "What people would say of 8 rows", "share words with an evaluation",
        "before chat.jsonl was written",
    ):  # fmt: skip
        assert line in told
    assert "before rows.jsonl" not in told
    assert "of the model that answered, before a rewriting" in told


def test_the_page_for_people_has_the_report_beside_it(tmp_path: Path):
    told = (cold_start(tmp_path) / "card.md").read_text()
    assert "| math | 4 | 50.0% | 4 | 395,285 | 49.1% |" in told
    assert "| code | 2 | 25.0% | 1 | 211,129 | 26.2% |" in told
    assert "| all | 8 | 100% | 7 | 804,745 | 100% |" in told
    assert "traces (rejection):" in told
    assert "| domain | kept | truncated | wrong |" in told and "| math | 4 | 0 | 3 |" in told


def test_the_page_and_the_figures_show_the_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from r1mega.report.show import show

    run_dir = cold_start(tmp_path)
    show(run_dir)
    assert sorted(file.name for file in (run_dir / "figures").iterdir()) == ["set_domains.png", "set_lengths.png"]
    page = (run_dir / "report.html").read_text()
    for told in (page, capsys.readouterr().out):
        assert "4, 50.0% (49.1%)" in told and "2, 25.0% (22.1%)" in told
        assert "rows: math (report)" in told and "chain of thought: left out" in told
    assert page.count("data:image/png;base64,") == 2


def test_a_run_without_a_card_has_no_figures(tmp_path: Path):
    from r1mega.report import data_cards

    assert data_cards.draw(tmp_path) == [] and data_cards.table([tmp_path]) is None


@pytest.mark.parametrize("tokens", [True, -1, 10**30, "7"])
def test_a_length_that_is_none_is_not_known(tokens: Any):
    row = mixed_row(sampled("M", "x", tokens=tokens), "rows.jsonl", 1, "rows.jsonl, line 1", "")
    assert row.tokens is None
