"""A row's life as a tree of lines, and what came of a run's rows, for people."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from r1mega.pipeline.trace_all import TraceCounts

CHARACTERS = 160
"""Of a message that are shown."""
Branch = tuple[str, "Sequence[Branch]"]
"""A line and what hangs below it."""


def of_row(life: Mapping[str, Any]) -> str:
    """Of `life.trace`."""
    return "\n".join(_lines(_tree(life)))


def of_all(found: TraceCounts, run_dir: Path) -> str:
    """Of `trace_all.trace_all`."""
    return "\n".join(_tallied(found, run_dir))


def _tallied(found: TraceCounts, run_dir: Path) -> Iterator[str]:
    resolved = found.rows - found.num_broken
    share = 100 * resolved / max(found.rows, 1)
    yield f"{run_dir}: {found.rows:,} rows {found.what}, {resolved:,} resolve ({share:.4g}%)"
    yield f"  {found.sampled:,} to an answer in a journal, {found.imported:,} to a row of a file that was imported"
    yield f"  {found.edited:,} edited and {found.accepted:,} accepted by people, {found.rewritten:,} written anew"
    for who, num in found.checkpoints.most_common():
        yield f"  {num:,} answered by {who}"
    for file, num in found.unread.items():
        yield f"  {num:,} imported from {file}, which is not there as JSONL to be looked at"
    yield from (f"note: {note}" for note in found.notes)
    for kind, num in found.faults.most_common():
        yield f"{num:,} broken: {kind}"
    for place, faults in found.broken:
        yield from (_here(fault if fault.startswith(place) else f"{place}: by {fault}") for fault in faults)
    if found.num_broken > len(found.broken):
        yield f"and {found.num_broken - len(found.broken):,} more"
    if not found.rows:
        yield "no row to trace"


def _tree(life: Mapping[str, Any]) -> Branch:
    """A row's life, for people."""
    head, branches = _row(life)
    since: list[Branch] = [(f"stands in {_here(place)} as well", ()) for place in life["also_in"]]
    since += [(f"was made row {of['sha256'][:12]}, {_here(of['place'])}", ()) for of in life["became"]]
    since += [(f"{of['outcome']} by {_here(of['run_dir'])} ({of['stage']})", ()) for of in life["read_by"]]
    faults = [(f"{_here(of['row'])}: {of['kind']}: {of['what']}", ()) for of in life["faults"]]
    end: list[Branch] = [("does not resolve", faults)] if faults else [("resolves", ())]
    return head, [*branches, *since, *end]


def _row(life: Mapping[str, Any]) -> tuple[str, list[Branch]]:
    """A row and what it was made of."""
    head = f"row {life['sha256'][:12]}{'' if life['intact'] else ', CHANGED since'}: {_here(life['place'])}"
    found: list[Branch] = [(f"{turn['role']}: {_short(turn['content'])}", ()) for turn in life.get("messages", ())]
    found += [(f"{name}: {_short(life[name])}", ()) for name in ("prompt", "chosen", "rejected") if name in life]
    found += [(f"{name}: {_short(life[name])}", ()) for name in ("response", "safe", "gap", "votes") if name in life]
    if question := life.get("question"):
        found.append((f"question {_fields(question)}", ()))
    found += [(f"{name}: {_fields(life[name])}", ()) for name in ("verdict", "judge", "thinking") if life.get(name)]
    if filters := _object(life.get("filters")):
        found.append(("filters", [(f"{name}: {_short(value)}", ()) for name, value in filters.items()]))
    if review := _object(life.get("review")):
        before = [(f"before: {turn['role']}: {_short(turn['content'])}", ()) for turn in review.get("original") or ()]
        found.append((f"{review.get('decision')} by {review.get('reviewer') or 'somebody without a name'}", before))
    if (rewrite := life.get("rewrite")) and not review:
        found.append((f"written anew: {_fields(rewrite)}", ()))
    if imported := _object(life.get("imported")):
        found.append((f"imported from {imported.get('file')}, line {imported.get('line')}", ()))
    found += [_row(parent) for parent in life["from"]]
    found += [_rollout(rollout, life) for rollout in life["rollouts"]]
    return head, found + [_checkpoint(of) for of in life["checkpoints"]]


def _rollout(of: Mapping[str, Any], life: Mapping[str, Any]) -> Branch:
    name = f"{of['of']}: " if "of" in of else ""
    if "journal" not in of:
        return f"{name}answer {of['answer']}, seed {of['seed']}: {of['fault']}", ()
    asked = [("asked as " + _short(life["asked_as"]), ())] if life["asked_as"] else []
    judged = "that of the part that was judged"
    return f"{name}answer {of['answer']}: {_here(of['journal'])}, line {of['line']}", [
        *asked,
        (f"prompt's tokens {of['prompt_tokens_digest']}, seed {of['seed']}", ()),
        (f"sampling {_fields(of['sampling'])}", ()),
        (f"its text is the row's: sha256 {of['text_sha256'][:12] or judged}", ()),
    ]


def _checkpoint(of: Mapping[str, Any], word: str = "answered by") -> Branch:
    made, below = of.get("made_by"), list[Branch]()
    below.append((f"weights {of['digest']}{': ' + _here(of['folder']) if of.get('folder') else ''}", ()))
    if made:
        below.append((f"run {made['run']}, recipe {made['recipe']}, commit {str(made['commit'])[:12]}", ()))
    if of.get("started_from"):
        below.append(_checkpoint(of["started_from"], "which began as"))
    return f"{word} {_here(of['who'])}", below


def _lines(branch: Branch, before: str = "", below: str = "") -> Iterator[str]:
    text, branches = branch
    yield before + text
    for number, inner in enumerate(branches, 1):
        last = number == len(branches)
        yield from _lines(inner, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


def _here(place: str) -> str:
    """A path, or what begins with one, as it is seen from here."""
    return place.removeprefix(f"{Path.cwd()}/")


def _object(part: Any) -> Mapping[str, Any]:
    """What a row says, where it has the form that stages write; nothing otherwise."""
    return cast(Mapping[str, Any], part) if isinstance(part, Mapping) else {}


def _fields(of: Any) -> str:
    if not isinstance(of, Mapping):
        return _short(of)
    return ", ".join(f"{name} {_short(value)}" for name, value in of.items() if value not in ("", None))


def _short(value: Any) -> str:
    """One line of a value, in which nothing steers a terminal."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = "".join(c if c.isprintable() else " " for c in text[: CHARACTERS * 2])
    shown = " ".join(shown.split())
    return shown if len(text) <= CHARACTERS else f"{shown[:CHARACTERS]} ... ({len(text):,} characters)"
