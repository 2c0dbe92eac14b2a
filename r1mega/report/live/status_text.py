"""Where a run is, in lines for people and as JSON for scripts."""

import dataclasses
from collections.abc import Iterator
from statistics import fmean, stdev
from typing import Any

from r1mega.diagnostics.student_t import t_quantile
from r1mega.report.live.chain import RunFacts
from r1mega.report.live.facts import Happened, StageFacts
from r1mega.report.live.life import EXIT_CODES, RunState
from r1mega.report.live.log_digest import LogLine
from r1mega.report.live.spans import figure, moment, span
from r1mega.report.rows import number
from r1mega.report.text import visible

MOST_SHOWN = 8
"""Entries of a list in the terminal; how many more there are is said."""
MAX_CHARS = 600
NEWEST = (
    ("reward/total", "reward"),
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("response_length/mean", "tokens per answer"),
    ("kl/mean", "KL"),
    ("mismatch/max", "mismatch"),
    ("grad_norm", "gradient norm"),
)
"""(key of a line of training, how it is called)"""

WITH_INTERVAL = ("reward/total", "accuracy")
LATE_LINES, LEAST_LINES = 20, 4

Line = tuple[str, str, str]
"""What a fact is about ("" where it goes on), its words, and how it is to be taken: "", "good", "bad" or "soft"."""


def lines(facts: RunFacts) -> Iterator[Line]:
    """The status, a line a fact. No character of it drives a terminal."""
    for topic, text, tone in _lines(facts):
        yield topic, one_line(text), tone


def _lines(facts: RunFacts) -> Iterator[Line]:
    tones = {RunState.DONE: "good", RunState.RUNNING: "", RunState.WAITING: "soft"}
    num = len(facts.stages)
    what = f"chain of {num} stage{'s' * (num != 1)}, {facts.done} done" if facts.chain else "stage"
    kind = facts.stages[0].kind if not facts.chain and facts.stages else ""
    yield "run", f"{facts.path} ({kind or what})", ""
    yield "state", f"{facts.life.state.value}: {facts.life.why}", tones.get(facts.life.state, "bad")
    if facts.current is not None:
        yield from _of_stage(facts.current, facts)
    if facts.chain:
        done = [stage.name for stage in facts.stages if stage.life.state is RunState.DONE]
        others = [stage for stage in facts.stages if stage.life.state is not RunState.DONE]
        stages = [(f"done: {', '.join(done)}", "good")] if done else []
        yield from _listed("stages", [*stages, *((_stage_line(stage), _tone(stage)) for stage in others)], most=None)
    yield from _listed("waits for", [(text, "") for text in facts.waits])
    yield from _listed("look at", [(f"{a.what}: {a.text}", "bad") for a in facts.advice])
    yield from _listed("happened", [(_happened_line(h), _loud(h.level)) for h in facts.happened])
    yield from _listed("logs say", [(_said_line(s), _loud(s.level)) for s in facts.said])
    yield from _listed("logs", [(f"{x.path} ({_size(x.size)}{_when(x.written)})", "soft") for x in facts.logs])
    yield from _listed("unread", [(fault, "bad") for fault in facts.faults])


def _of_stage(stage: StageFacts, facts: RunFacts) -> Iterator[Line]:
    if stage.started:
        again = {0: "", 1: "", 2: ", started again once"}.get(stage.parts, f", started again {stage.parts - 1} times")
        yield "began", f"{stage.started.replace('T', ' ').replace('+00:00', ' UTC')}{again}", ""
    if where := progress(stage, facts.now):
        yield "at", where, ""
    if newest := figures(stage):
        yield "newest", ", ".join(f"{name} {_measured(told)}" for name, told in newest.items()), ""
    if held_out := _held_out(stage):
        bars = f" ({held_out['low']:.1%} to {held_out['high']:.1%})" if "low" in held_out else ""
        yield "held out", f"{held_out['value']:.1%}{bars} right in the format, after step {held_out['step']:.0f}", ""


def _held_out(stage: StageFacts) -> dict[str, float]:
    """The newest evaluation's share of right answers with its interval's ends; empty where there is none."""
    names = {"value": "eval/strict", "low": "eval/strict_low", "high": "eval/strict_high", "step": "step"}
    found = {name: value for name, key in names.items() if (value := number(stage.evaluated, key)) is not None}
    return found if {"value", "step"} <= found.keys() else {}


def progress(stage: StageFacts, now: float) -> str:
    """Step, phase and time left."""
    parts: list[str] = [stage.name]
    if stage.step is not None:
        of = f" of {stage.num_steps:,}" if stage.num_steps else ""
        share = f" ({stage.share:.0%})" if stage.share is not None else ""
        parts.append(f"step {stage.step:,}{of}{share}")
    if stage.life.state is RunState.RUNNING:
        phases = dict.fromkeys(beat.phase for beat in stage.beats if beat.phase and not beat.ended)
        for phase in phases:
            since = min(beat.since for beat in stage.beats if beat.phase == phase)
            parts.append(f"{phase} for {span(now - since)}")
        if not phases and stage.life.seen and now - stage.life.seen > 1:
            parts.append(f"last sign of life {span(now - stage.life.seen)} ago")
        if stage.seconds_a_step:
            parts.append(f"{span(stage.seconds_a_step)} a step")
        if stage.left_s is not None:
            parts.append(f"about {span(stage.left_s)} of steps left")
    elif stage.life.seen:
        parts.append(f"last sign of life {moment(stage.life.seen)}")
    if stage.saved is not None and stage.life.state is not RunState.DONE:
        parts.append(f"saved at step {stage.saved:,}")
    return ", ".join(parts)


def figures(stage: StageFacts) -> dict[str, dict[str, float]]:
    """What people look at first in the newest line of training, by name: its "value"; of rewards also the "mean" of
    the last lines, "num" in number, with its 95% interval from "low" to "high" by their spread."""
    found: dict[str, dict[str, float]] = {}
    for key, name in NEWEST:
        if (value := number(stage.newest, key)) is None:
            continue
        found[name] = {"value": value}
        late = [v for row in stage.recent if (v := number(row, key)) is not None][-LATE_LINES:]
        if key in WITH_INTERVAL and len(late) >= LEAST_LINES:
            mean, half = fmean(late), t_quantile(len(late) - 1) * stdev(late) / len(late) ** 0.5
            found[name] |= {"mean": mean, "low": mean - half, "high": mean + half, "num": float(len(late))}
    return found


def _measured(told: dict[str, float]) -> str:
    if "mean" not in told:
        return figure(told["value"])
    ends = f"{figure(told['low'])} to {figure(told['high'])}"
    return f"{figure(told['value'])} (mean of the last {told['num']:.0f}: {figure(told['mean'])}, {ends})"


def _stage_line(stage: StageFacts) -> str:
    steps = ""
    if stage.step is not None and stage.life.state is not RunState.DONE:
        steps = f", step {stage.step:,}" + (f" of {stage.num_steps:,}" if stage.num_steps else "")
    return f"{stage.name} ({stage.kind or 'to come'}): {stage.life.state.value}{steps}"


def _tone(stage: StageFacts) -> str:
    state = stage.life.state
    return {RunState.DONE: "good", RunState.RUNNING: "", RunState.WAITING: "soft"}.get(state, "bad")


def _happened_line(happened: Happened) -> str:
    where = f"{happened.where}: " if happened.where else ""
    step = f" (step {happened.step:,})" if happened.step is not None else ""
    times = f"{happened.count} x " if happened.count > 1 else ""
    return f"{where}{times}{happened.kind}{step}: {happened.text}{_when(happened.last)}"


def _said_line(said: LogLine) -> str:
    return f"{said.file.name}: {said.count} x {one_line(said.text, 160)}{_when(said.last)}"


def _loud(level: str) -> str:
    return "bad" if level == "alert" else ""


def _listed(topic: str, entries: list[tuple[str, str]], most: int | None = MOST_SHOWN) -> Iterator[Line]:
    shown = entries if most is None else entries[:most]
    for i, (text, tone) in enumerate(shown):
        yield topic if i == 0 else "", text, tone
    if len(shown) < len(entries):
        yield "", f"and {len(entries) - len(shown)} more", "soft"


def _when(seconds: float) -> str:
    said = moment(seconds)
    return f", {said}" if said else ""


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB" if num_bytes >= 2**20 else f"{max(1, num_bytes / 2**10):,.0f} KiB"


def one_line(text: str, most: int = MAX_CHARS) -> str:
    """`text` on one line of bounded length, without a character that drives a terminal."""
    cut = text[: most + 1]
    shown = visible(" ".join(cut.split("\n")))
    return f"{shown[: most - 1]}…" if len(cut) > most or len(shown) > most * 2 else shown


def as_json(facts: RunFacts) -> dict[str, Any]:
    """The same for scripts, by name; times in seconds since 1970."""
    stages = [_stage_json(stage) for stage in facts.stages]
    return {
        "run_dir": str(facts.path),
        "time": facts.now,
        "chain": facts.chain,
        "state": facts.life.state.value,
        "why": facts.life.why,
        "exit_code": EXIT_CODES[facts.life.state],
        "last_sign_of_life": facts.life.seen or None,
        "current": facts.current.name if facts.current else None,
        "stages": stages,
        "waits_for": list(facts.waits),
        "advice": [dataclasses.asdict(a) for a in facts.advice],
        "happened": [{**dataclasses.asdict(h), "last": h.last or None} for h in facts.happened],
        "logs_say": [{**dataclasses.asdict(s), "file": str(s.file)} for s in facts.said],
        "logs": [{"path": str(log.path), "bytes": log.size, "written": log.written} for log in facts.logs],
        "faults": list(facts.faults),
    }


def _stage_json(stage: StageFacts) -> dict[str, Any]:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": stage.life.state.value,
        "why": stage.life.why,
        "last_sign_of_life": stage.life.seen or None,
        "step": stage.step,
        "num_steps": stage.num_steps,
        "share": stage.share,
        "saved_step": stage.saved,
        "seconds_a_step": stage.seconds_a_step,
        "seconds_left": stage.left_s,
        "started": stage.started or None,
        "starts": stage.parts,
        "job": dataclasses.asdict(stage.job) if stage.job else None,
        "ranks": [dataclasses.asdict(beat) for beat in stage.beats],
        "figures": figures(stage),
        "held_out": _held_out(stage),
    }
