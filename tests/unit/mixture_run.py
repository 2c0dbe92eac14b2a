"""Files of rows, and runs of the mixture stage over them. Rows are signed here by hashlib and json alone."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from r1mega.config.cluster import Cluster
from r1mega.recipe.load import load_recipe
from r1mega.recipe.mixture import MakeMixture
from r1mega.runtime.run_dir import RunDir

Row = dict[str, Any]


def signature(row: Row) -> str:
    rest = {name: value for name, value in row.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sampled(question: str, answer: str, *, domain: str = "math", tokens: int = 7, **provenance: Any) -> Row:
    """A row as a rejection stage writes it."""
    row: Row = {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "provenance": {
            "question": {"id": "q", "source": "a_source", "domain": domain, "verifier": "math"},
            "policy": {"model": "dev2", "start": "5f", "weight_version": 0, "asked_as": "{question}"},
            "sampling": {"temperature": 1.0, "n": 4, "seed": 0},
            "answer": {"index": 0, "seed": 1, "tokens": tokens, "text_sha256": "00"},
            "verdict": {"by": "rule:math", "value": 1.0},
            "filters": {},
            "thinking": "written",
            "from": [],
            **provenance,
        },
    }
    return {**row, "sha256": signature(row)}


def plain(question: str, answer: str) -> Row:
    return {"prompt": question, "response": answer}


def write(file: Path, rows: Iterable[Row]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def read(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def recipe_of(folder: Path, tables: str, overrides: Sequence[str] = ()) -> MakeMixture:
    config = folder / "mixture.toml"
    config.write_text(f'stage = "mixture"\n{tables}')
    recipe = load_recipe(config, overrides)
    assert isinstance(recipe, MakeMixture)
    return recipe


def mixed(
    folder: Path, tables: str, overrides: Sequence[str] = (), *, name: str = "run", resume: bool = False
) -> Path:
    """The run directory, `folder`/`name`, of a finished run over tables of a config that lies in `folder`."""
    from r1mega.stages.mixture import run

    recipe, machine = recipe_of(folder, tables, overrides), Cluster(device="cpu")
    directory = RunDir(folder / name, recipe, machine, resume=resume)
    try:
        run(recipe, machine, directory)
    finally:
        directory.close()
    return folder / name


def set_of(run_dir: Path) -> list[Row]:
    return read(run_dir / "conversations.jsonl")


def card(run_dir: Path) -> Row:
    return json.loads((run_dir / "card.json").read_text())


def said(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """First and last turn of each."""
    return [(row["messages"][0]["content"], row["messages"][-1]["content"]) for row in rows]
