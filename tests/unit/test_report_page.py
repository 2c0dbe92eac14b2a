"""The page of a run: what stands on it, that it loads nothing, and that no text of a model breaks out of it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from r1mega.config.scheduled import Scheduled
from r1mega.config.section import Section
from r1mega.errors import DataError
from r1mega.evaluation.metrics import Graded, summarise
from r1mega.report import figures, page
from r1mega.report.catalogue import CAPTIONS
from r1mega.report.rows import early_and_late, read_rows
from r1mega.report.runs import stage_dirs
from r1mega.report.settings import _walk, settings
from r1mega.report.text import cut, pieces, visible

HOSTILE = "<script>alert(1)</script></td></table></pre><img src=http://a.b/c onerror=x>{{ 7 * 7 }}\x1b[31m\u202eback"
CONFIG = {
    "stage": {
        "stage": "grpo",
        "seed": 3,
        "tasks": [{"name": "chain_sum", "weight": 1.0, "params": {"min_terms": 5}}],
        "num_steps": 40,
        "objective": {"group_size": 16, "kl_coef": 0.5, "clip_low": 0.2, "of_another_version": "<b>"},
    },
    "cluster": {"device": "cpu", "trainer": {"threads": 2, "tp": 1}},
}


class Page(HTMLParser):
    """Text of a page, its tags with their attributes, and whether they are balanced."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setitem(figures.STYLE, "figure.dpi", 40)


def result(right: int, of: int = 4) -> dict:
    return summarise([Graded(str(q), q < right, q < right, True, False, "think", 20) for q in range(of)]).to_json()


def start(when: str, **changed) -> dict:
    command = ["r1mega", "run", "--cluster", "mine.toml", "configs/tiny/1_rl.toml"]
    versions = {"torch": "2.13.0", "vllm": "0.32.0"}
    return {"commit": "abc123", "versions": versions, "seed": 3, "command": command, "started": when} | changed


def train(step: int, **metrics) -> dict:
    return {"kind": "train", "step": step, "loss": 0.5, "seconds/update": 2.0, "tokens": 100, **metrics}


def answer(question: str, text: str, accuracy: float = 0.0, **other) -> dict:
    parts = {"accuracy": accuracy, "format": 0.0}
    row = {"question": question, "truth": "2", "text": text, "reward": accuracy, "parts": parts, "tokens": 9}
    return row | {"status": "scored", "finish_reason": "stop"} | other


def write_run(run_dir: Path, *, parts=None, rows=None, summary=None, samples=None, config=None) -> Path:
    run_dir.mkdir(parents=True)
    for name, value in (("run", {"parts": parts} if parts else None), ("summary", summary), ("config", config)):
        if value is not None:
            (run_dir / f"{name}.json").write_text(json.dumps(value))
    if rows is not None:
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step, some in (samples or {}).items():
        (run_dir / "samples").mkdir(exist_ok=True)
        (run_dir / f"samples/step_{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return run_dir


def made(run_dir: Path, *drawn: Path) -> Page:
    return Page(page.write(run_dir, drawn).read_text(encoding="utf-8"))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished RL stage that was resumed once, recovered twice, and sampled something vile."""
    recoveries = [
        {"kind": "recovery", "step": s, "seconds": 12.34567, "reason": f"server {s} <died>", "server": None}
        for s in (1, 2)
    ]
    rows = [train(1), {"kind": "eval", "step": 1, "eval/strict": 0.5}, *recoveries, train(2)]
    evals = {"before": result(1), "after": result(3), "greedy_before": result(2), "greedy_after": result(4)}
    return write_run(
        tmp_path / "chain/rl",
        parts=[start("2026-01-01T10:00:00"), start("2026-01-02T10:00:00", commit="def456+dirty")],
        rows=rows,
        config=CONFIG,
        summary={"stage": "grpo", "seconds": 4321.0, "steps": 2, "mismatch": {"max": 2e-5}, "eval": evals},
        samples={
            0: [answer("1 + 1 =", "it is seven"), answer("1 + 1 =", "second answer"), answer(HOSTILE, "x")],
            # As a number 10 is later than 2, as a file name it is not.
            2: [answer("1 + 1 =", "in the middle")],
            10: [
                answer("new", "<think>1+1=2</think><answer>2</answer>", 1.0),
                answer("1 + 1 =", HOSTILE),
                answer("failed", "?", status="failed", parts={}),
            ],
        },
    )


def test_steps_whose_numbers_were_wrong_are_told_and_counted(tmp_path: Path):
    rows = [train(1), train(2) | {"loss": None, "skipped": 1.0}]
    rows += [
        {"kind": "incident", "step": s, "what": "spike", "action": "log", "text": f"loss {s} <far> above"}
        for s in range(1, 61)
    ]
    run = write_run(tmp_path / "run", rows=rows, config=CONFIG)
    left = {"step": 2, "what": "non_finite", "action": "drop_data", "text": "loss nan", "data": ["4", "7"]}
    (run / "incidents.jsonl").write_text(json.dumps(left) + "\n")
    seen = made(run)
    assert "step 60: loss 60 <far> above (log)" in seen.text and "step 11: loss 11" in seen.text
    assert "step 1: the first of 10 more steps whose numbers were wrong" in seen.text
    assert "step 10: loss" not in seen.text  # the last fifty
    for what, count in (("steps whose data was dropped", 1), ("documents or questions dropped", 2)):
        assert f"numbers that went wrong: {what}{count}" in "".join(seen.text.split("\n"))


def test_a_finished_run(run_dir: Path):
    seen = made(run_dir)
    for part in ("chain / rl", "configs/tiny/1_rl.toml", "abc123 → def456+dirty", "torch 2.13.0, vllm 0.32.0"):
        assert part in seen.text, part
    for part in ("started and resumed: 2 parts", "2026-01-01T10:00:00", "2026-01-02T10:00:00"):
        assert part in seen.text, part
    shares = ("25.0% (1.6 to 86.9)", "75.0% (13.1 to 98.4)", "50.0% (6.1 to 93.9)")
    for part in (*shares, "100%, 75%", "4,321", "2.0e-05", "4, 4"):
        assert part in seen.text, part
    assert "ot finished" not in seen.text


def test_every_figure_is_inline_and_says_what_to_look_for(run_dir: Path):
    seen = made(run_dir, *figures.draw(run_dir))
    assert [img["alt"] for img in seen.named("img")] == ["pass_at_1", "loss"]
    assert all(str(img["src"]).startswith("data:image/png;base64,iVBORw0KGgo") for img in seen.named("img"))
    assert CAPTIONS["pass_at_1"] in seen.text and CAPTIONS["loss"] in seen.text and CAPTIONS["kl"] not in seen.text


def test_recoveries_stand_in_a_table(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    text = made(run_dir).text
    assert "2 in all." in text and "12.3457" in text and "server 1 <died>" in text and "server 2 <died>" in text
    monkeypatch.setattr(page, "MAX_RECOVERIES", 1)
    text = made(run_dir).text
    assert "2 in all; the last 1 are shown" in text and "server 1 <died>" not in text and "server 2 <died>" in text


def test_settings_are_all_there_beside_their_defaults(run_dir: Path):
    tables = settings(run_dir)
    assert list(tables) == ["", "tasks.0", "tasks.0.params", "objective", "cluster", "cluster.trainer"]
    found = {f"{table}.{s.name}".lstrip("."): s for table, some in tables.items() for s in some}
    assert {name for name, setting in found.items() if setting.changed} == {
        "seed", "objective.kl_coef", "cluster.trainer.threads",
    }  # fmt: skip
    assert (found["objective.kl_coef"].value, found["objective.kl_coef"].default) == ("0.5", "0.001")
    assert found["objective.group_size"].default is None and "G: answers" in found["objective.group_size"].says
    assert found["objective.of_another_version"].value == "<b>"
    seen = made(run_dir)
    assert all(s.name in seen.text and s.value in seen.text and s.says in seen.text for s in found.values())
    assert sum(tr.get("class") == "changed" for tr in seen.named("tr")) == 3


def test_a_setting_is_held_against_the_default_of_the_table_it_stands_in():
    class Inner(Section):
        size: int = 1

    class Outer(Section):
        inner: Inner = Inner(size=5)
        maybe: Inner | None = None

    values = {"inner": {"size": 5}, "maybe": None}
    assert [(table, s.default) for table, s in _walk(values, Outer, "")] == [("inner", "5"), ("", "null")]
    assert [(table, s.default) for table, s in _walk({"maybe": {"size": 5}}, Outer, "")] == [("maybe", "1")]


def test_a_schedule_is_one_setting_and_its_default_a_number():
    class Inner(Section):
        weight: Scheduled[float] = Scheduled.always(1.0)
        share: Scheduled[float] | None = None

    tables = [{"value": 0.5}, {"value": 2.0, "last_steps": 4}]
    for weight, share in ((1.0, None), (tables, 2.0), (0.5, tables)):
        values = Inner.model_validate({"weight": weight, "share": share}).model_dump(mode="json")
        (_, one), (_, other) = _walk(values, Inner, "")
        assert (one.value, one.default, one.changed) == (json.dumps(weight), "1.0", weight != 1.0)
        assert (other.value, other.default, other.changed) == (json.dumps(share), "null", share is not None)


def test_answers_early_and_late(run_dir: Path):
    shown = early_and_late(run_dir, 2)
    assert {step: [row["text"] for row in rows] for step, rows in shown.items()} == {
        0: ["it is seven", "x"],
        10: [HOSTILE, "<think>1+1=2</think><answer>2</answer>"],
    }
    seen = made(run_dir)
    classes = [a["class"] for a in seen.named("article")]
    assert classes == ["answer wrong", "answer wrong", "answer wrong", "answer right", "answer no-verdict"]
    assert "second answer" not in seen.text and "in the middle" not in seen.text
    assert "(failed) · truth 2 · reward none" in " ".join(seen.text.split())
    assert "<think>1+1=2</think><answer>2</answer>" in seen.text


def test_no_text_of_a_model_breaks_out(run_dir: Path):
    seen = made(run_dir)  # its parser has found the tags balanced
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html and not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert visible(HOSTILE) in seen.text, "shown as it is, {{ }} and all, but for what does not show"
    assert "\x1b" not in html and "\u202e" not in html and r"\x1b" in seen.text and r"\u202e" in seen.text
    assert all(c.isprintable() or c == "\n" for c in html)


def test_nothing_is_loaded_from_elsewhere(run_dir: Path):
    seen = made(run_dir)
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<[^>]+\b(src|href|action|srcset)\s*=\s*[\"']?\s*(https?:)?//", html)
    assert not re.search(r"@import|url\(", html)
    assert not seen.named("link") and not seen.named("script") and not seen.named("iframe")
    policy = next(meta["content"] for meta in seen.named("meta") if "http-equiv" in meta)
    assert str(policy).startswith("default-src 'none'")


def test_a_run_that_goes_on_is_shown_as_far_as_it_got(tmp_path: Path):
    rows = [{"kind": "eval", "step": 0, "eval/strict": 0.25, "result": result(1)}, train(1), train(2)]
    run_dir = write_run(tmp_path / "rl", parts=[start("2026-01-01")], rows=rows, config=CONFIG)
    text = made(run_dir).text
    assert "Not finished: step 2 of 40" in " ".join(text.split()) and "started once" in text
    assert "rl: before" in text and "rl: so far" not in text

    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "eval", "step": 2, "eval/strict": 0.75, "result": result(3)}) + "\n")
        file.write(json.dumps(train(3, **{"mismatch/max": 3e-5})) + '\n{"kind": "tr')
    text = made(run_dir).text
    assert "rl: so far, step 2" in text and "75.0% (13.1 to 98.4)" in text and "3.0e-05" in text


def test_a_run_that_has_only_begun(tmp_path: Path):
    run_dir = write_run(tmp_path / "rl", parts=[start("2026-01-01")], config=CONFIG)
    text = made(run_dir).text
    assert "nothing measured yet" in text and "No evaluation yet" in text and "abc123" in text


def test_a_pipeline_shows_its_stages_in_the_order_in_which_they_began(tmp_path: Path):
    evals = {"before": result(1), "after": result(3)}
    for name, when, summary in (
        ("rl", "2026-01-02", {"stage": "grpo", "steps": 2, "eval": evals}),
        ("base", "2026-01-01", {"stage": "pretrain", "steps": 2}),
        ("after", "2026-01-03", {"stage": "evaluate", "eval": {"after": result(2)}}),
        ("late", "2026-01-04", None),
    ):
        rows = [] if name == "after" else [train(1), train(2)]
        write_run(tmp_path / "chain" / name, parts=[start(when)], rows=rows, summary=summary)
    (tmp_path / "chain/rl/hf").mkdir()
    (tmp_path / "chain/rl/hf/config.json").write_text("{}")
    of_a_stage = figures.draw(tmp_path / "chain/base")
    of_the_chain = tmp_path / "chain/figures/rl_and_control.png"
    of_the_chain.parent.mkdir()
    of_the_chain.write_bytes(b"png")
    seen = made(tmp_path / "chain", *of_a_stage, of_the_chain)
    sections = [s["id"] for s in seen.named("section")]
    assert [path.name for path in stage_dirs(tmp_path / "chain")] == ["base", "rl", "after", "late"]
    assert [a["href"] for a in seen.named("a")] == [f"#{name}" for name in sections] and len(sections) == 4
    assert "not finished: no summary.json yet" in seen.text
    assert re.search(r"rl: before\s*rl: after\s*after\n", seen.text), "an evaluation by itself has one column"
    assert [img["alt"] for img in seen.named("img")] == ["rl_and_control", "loss"]

    whole = {"stages": {"rl": {}, "base": {}}, "questions": {"held_out": 4, "trained_on": 1200, "overlap": 0}}
    (tmp_path / "chain/summary.json").write_text(json.dumps(whole))
    seen = made(tmp_path / "chain")
    assert len(seen.named("section")) == 2 and "ot finished" not in seen.text and "1,200 trained on" in seen.text


def test_where_there_is_no_run(tmp_path: Path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "hf", tmp_path / "absent"):
        with pytest.raises(DataError, match="no run here"):
            page.write(folder, [])
    assert not list(tmp_path.glob("**/report.html"))


def test_text_that_does_not_show_is_told_from_text_that_does():
    assert pieces("<think>a\x00\u200b</think>") == [
        ("tag", "<think>"), ("text", "a"), ("code", r"\x00\u200b"), ("tag", "</think>"),
    ]  # fmt: skip
    assert pieces("a < b and c > d\n<｜end▁of▁sentence｜>")[-1] == ("tag", "<｜end▁of▁sentence｜>")
    assert visible("x\ud800\ufe0f\u3164é\n") == "x\\ud800\\ufe0f\\u3164é\n"
    assert cut("abc", 3) == "abc"
    assert cut("a" * 60 + "b" * 40, 30) == "a" * 20 + "\n… 70 characters left out …\n" + "b" * 10


def test_what_is_read_of_samples_is_bounded(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n' * 100)
    assert len(read_rows(file)) == 100
    assert len(read_rows(file, max_chars=25)) == 3


def test_every_table_scrolls_by_itself_on_a_narrow_screen(tmp_path):
    """Or the browser would cut it off, or make the whole page as wide as its widest table."""
    template = (Path(page.__file__).with_name("page.html")).read_text()
    assert template.count("<table") == template.count('<div class="scroll"><table') > 4
    style = template[: template.index("</style>")]
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", style)
    narrow = style[style.index("@media (max-width: 45rem)") :]
    assert re.search(r"\.figures th:first-child \{ position: sticky; left: 0", narrow)  # a figure keeps its name
    assert 'name="viewport" content="width=device-width' in template
