"""What finished chains of several seeds came to: their tables and relations beside each other.

Of each chain: the table of its models (mean, ends of the 95% interval, questions), every relation with its paired
differences, seconds of each stage, digests of what each began as, of its recipe and of what it left, and commit,
versions and device. Of all: on which seeds a relation holds, and which are reversed on all of them. A seed is one
observation; whether a relation holds beyond these seeds is not said.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness

from r1mega.pipeline.outcome import HOLDS
from r1mega.runtime.files import write_json

Json = dict[str, Any]


class NotAChain(Exception):
    """A folder that is no finished chain with relations; says which, and what is missing."""


def read(file: Path) -> Json:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotAChain(f"{file}: {error}; give the run directories of finished chains") from error


def chain(folder: Path) -> Json:
    """One chain, as the output has it.

    Raises NotAChain where it has not finished, or has no relations.
    """
    summary = read(folder / "summary.json")
    if not summary.get("relations"):
        raise NotAChain(f"{folder / 'summary.json'}: no relations in it; its pipeline has no [[relations]]")
    records = {name: read(folder / name / "run.json") for name in summary["stages"]}
    parts = [part for record in records.values() for part in record["parts"]]
    return {
        "seed": one(part["seed"] for part in parts),
        "commit": one(part["commit"] for part in parts),
        "versions": one(part["versions"] for part in parts),
        "device": one(part["device"] for part in parts),
        "wall_seconds": round(summary["wall_seconds"], 1),
        "seconds": {name: round(of.get("seconds") or 0.0, 1) for name, of in summary["stages"].items()},
        "starts": {name: len(record["parts"]) for name, record in records.items()},
        "digests": {
            name: {"start": record["start"], "recipe": record["recipe"], **outputs(folder / name)}
            for name, record in records.items()
        },
        "table": table(summary["table"]),
        "relations": {relation["claim"]: told(relation) for relation in summary["relations"]},
    }


def one(values: Any) -> Any:
    """What all have in common; a list of the different ones where they have nothing."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


def outputs(stage: Path) -> dict[str, str]:
    """Digests of what a stage left behind, by name; none of a stage that ran outside a chain."""
    file = stage / "outputs.json"
    return {name: of["digest"] for name, of in read(file)["outputs"].items()} if file.is_file() else {}


def table(made: Json) -> Json:
    """Row -> column -> [mean, low, high, questions]; the digest of the weights beside them."""
    return {
        row["label"]: {
            "weights": row["weights"],
            **{
                made["columns"][column]: [round(cell[name], 4) for name in ("mean", "low", "high")]
                + [cell["num_questions"]]
                for column, cell in row["cells"].items()
                if "mean" in cell
            },
        }
        for row in made["rows"]
    }


def told(relation: Json) -> Json:
    return {
        "outcome": relation["outcome"],
        "reversed": relation["reversed"],
        "parts": [
            {
                **{name: part[name] for name in ("a", "b", "column", "is", "margin", "holds", "reversed")},
                **(
                    {"why": part["why"]}
                    if "why" in part
                    else {
                        "difference": [round(part["difference"][name], 4) for name in ("mean", "low", "high")],
                        "questions": part["num_questions"],
                    }
                ),
            }
            for part in relation["parts"]
        ],
    }


def over_seeds(chains: Sequence[Json]) -> Json:
    """Of every relation: on how many of the seeds it holds and is reversed.

    Raises NotAChain where two chains are of one seed, or do not claim the same.
    """
    seeds = [chain["seed"] for chain in chains]
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise NotAChain(f"two of the chains are of seed {twice[0]}: give one of each")
    claims = list(chains[0]["relations"])
    for chain in chains[1:]:
        if different := set(claims) ^ set(chain["relations"]):
            raise NotAChain(f"seeds {seeds[0]} and {chain['seed']} do not claim the same: {min(different)!r}")
    relations = {
        claim: {
            "holds_on": [c["seed"] for c in chains if c["relations"][claim]["outcome"] == HOLDS],
            "reversed_on": [c["seed"] for c in chains if c["relations"][claim]["reversed"]],
        }
        for claim in claims
    }
    return {
        "seeds": seeds,
        "relations": relations,
        "hold": {str(c["seed"]): sum(r["outcome"] == HOLDS for r in c["relations"].values()) for c in chains},
        "of": len(claims),
        "reversed_on_all_seeds": [claim for claim, on in relations.items() if len(on["reversed_on"]) == len(chains)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories of finished chains")
    parser.add_argument("--note", default="", help="what else is to be said of these runs")
    parser.add_argument("--out", type=Path, default=harness.ROOT / "docs/measurements/pipeline_cpu.json")
    given = parser.parse_args()
    try:
        chains = sorted((chain(folder) for folder in given.runs), key=lambda found: str(found["seed"]))
        found = over_seeds(chains)
    except NotAChain as error:
        print(f"relations: {error}", file=sys.stderr)
        sys.exit(2)
    sources = [Path(__file__).resolve()]
    own = harness.provenance([], sources)
    write_json(given.out, {"about": " ".join((__doc__ or "").split()), **own, "note": given.note, **found,
                           "chains": chains})  # fmt: skip
    for claim, on in found["relations"].items():
        print(f"holds on {len(on['holds_on'])}, reversed on {len(on['reversed_on'])} of {len(chains)}: {claim}")
    print(f"reversed on all seeds: {', '.join(found['reversed_on_all_seeds']) or 'none'}")


if __name__ == "__main__":
    main()
