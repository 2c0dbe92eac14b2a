"""The form in which configs asked questions before [[questions]], refused with the new form written out."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from r1mega.data.sources.reasoning_gym import apportion

Table = Mapping[str, Any]
NOT_SAID = 0
"""`num` where the old config did not say it: left to the user."""


def old_questions(table: Table) -> list[str]:
    """What of the old form is in a stage's tables, with the new one ready to paste; nothing where nothing is."""
    evaluation = table.get("evaluation")
    evaluation = evaluation if isinstance(evaluation, Mapping) else {}
    found = [name for name in ("tasks", "num_questions", "duplicates", "too_long") if name in table]
    found += ["evaluation.num_questions"] if "num_questions" in evaluation else []
    questions = table.get("questions", ())
    if (isinstance(questions, str) and questions.strip()) or any(map(_is_old, _tables(questions))):
        found.append("questions")
    if not found:
        return []
    if (_is_new(questions) and "tasks" not in table) or (_is_new(evaluation.get("questions", ())) and found):
        return [_moved(name, table, evaluation) for name in found]
    new = "\n\n".join(_new_form(table, evaluation))
    are = "is" if len(found) == 1 else "are"
    return [f"{', '.join(found)} {are} of an earlier form: questions are tables, a source each. Instead:\n\n{new}\n"]


def _is_new(questions: Any) -> bool:
    tables = _tables(questions)
    return bool(tables) and not any(map(_is_old, tables))


def _is_old(source: Table) -> bool:
    """Whether a table of [[questions]] lists tasks, or does not say who judges its answers."""
    if source.get("kind") == "reasoning_gym":
        return "tasks" in source
    return source.get("kind") == "jsonl" and not {"verifier", "verifier_column"} & set(source)


def _moved(name: str, table: Table, evaluation: Table) -> str:
    """A setting of the old form beside tables of the new one, as `--set` of an old command line leaves it."""
    where = "evaluation.questions.0" if name.startswith("evaluation.") else "questions.0"
    if name in ("num_questions", "evaluation.num_questions"):
        value = evaluation["num_questions"] if name.startswith("evaluation.") else table[name]
        return f"{name}: is `num` of a table of questions: --set {where}.num={_toml(value)}"
    if name == "tasks":
        return "tasks: each is a table of questions: --set questions.0.family=..., --set questions.0.params={...}"
    if name == "questions":
        written = ", ".join(f"{key} = {_toml(value)}" for key, value in _old_file(str(table["questions"])).items())
        return f"questions: is a list of tables: --set 'questions=[{{{written}}}]'"
    return f"{name}: is a setting of each table of questions: --set {where}.{name}={_toml(table[name])}"


def _new_form(table: Table, evaluation: Table) -> list[str]:
    """The tables in place of the old form, in TOML."""
    tasks = _tables(table.get("tasks", ()))
    questions = table.get("questions", ())
    common = {name: table[name] for name in ("duplicates", "too_long") if name in table}
    if isinstance(questions, str):
        training = [_old_file(questions)]
    elif questions:
        training = [new for source in _tables(questions) for new in _of_source(source)]
    else:
        training = _of_tasks(tasks, table.get("num_questions", NOT_SAID)) if "num_questions" in table else []
    held_out = _of_tasks(tasks, evaluation.get("num_questions", NOT_SAID))
    of_evaluation = evaluation.get("questions")
    held_out = held_out if of_evaluation is None else [dict(source) for source in _tables(of_evaluation)]
    return [
        *(_written("questions", {**source, **common}) for source in training),
        *(_written("evaluation.questions", source) for source in held_out),
    ]


def _old_file(path: str) -> dict[str, Any]:
    """Its rows had `task`, `question` and `truth`, and some an `id` or an `entry`."""
    return {"kind": "jsonl", "path": path, "verifier_column": "task"}


def _of_source(source: Table) -> list[dict[str, Any]]:
    if not _is_old(source):
        return [dict(source)]
    if source.get("kind") == "jsonl":
        return [{**source, "verifier_column": "task"}]
    more = {name: value for name, value in source.items() if name not in ("kind", "tasks", "num")}
    return [{**made, **more} for made in _of_tasks(_tables(source["tasks"]), source.get("num", NOT_SAID))]


def _of_tasks(tasks: Sequence[Table], num: Any) -> list[dict[str, Any]]:
    """A table a task; its share of the number, by its weight."""
    weights = [task.get("weight", 1.0) for task in tasks]
    sound = isinstance(num, int) and all(isinstance(w, int | float) and w > 0 for w in weights) and bool(tasks)
    shares = apportion(num, weights) if sound else [num] * len(tasks)
    made: list[dict[str, Any]] = []
    for task, share in zip(tasks, shares, strict=True):
        source = {"kind": "reasoning_gym", "family": task.get("name", ""), "params": task.get("params"), "num": share}
        made.append({name: value for name, value in source.items() if value})
    return made


def _tables(value: Any) -> list[Table]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _written(name: str, source: Table) -> str:
    return "\n".join([f"[[{name}]]", *(f"{key} = {_toml(value)}" for key, value in source.items())])


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)
