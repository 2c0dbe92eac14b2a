"""How often the verifier of mathematics is wrong, and how fast it is, beside math-verify (r1mega/rewards/math.py).

Rates: over a table of pairs (truth, answer, right), of false positives (wrong answers taken for right) and of false
negatives, with Clopper-Pearson's 95% interval; in all and by notation. The verifier was written beside this table, so
its rates there are a floor; math-verify was not. Speed: in turn in one run, `math_verify` parses and verifies pairs
in this one process, by its defaults; `pool` judges the same pairs in two workers, answers sent and verdicts received
included.
"""

import argparse
import collections
import inspect
import json
import logging
import os
from pathlib import Path
from typing import Any

import harness

from r1mega.rewards.math import judge
from r1mega.rewards.pool import Pool
from r1mega.runtime.files import write_json

TABLE = harness.ROOT / "tests/unit/data/math_pairs.jsonl"
CONFIDENCE = 0.95


def clopper_pearson(hits: int, tries: int) -> tuple[float, float]:
    """The exact interval of a binomial share: the shares that `hits` or more, or fewer, would not be rare for."""
    rare = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else _share(lambda share: 1 - _at_most(hits - 1, tries, share) < rare)
    high = 1.0 if hits == tries else _share(lambda share: _at_most(hits, tries, share) >= rare)
    return low, high


def _at_most(hits: int, tries: int, share: float) -> float:
    import mpmath

    return float(mpmath.betainc(tries - hits, hits + 1, 0, 1 - share, regularized=True))


def _share(is_below: Any) -> float:
    """Where a condition that holds for small shares ceases to."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return low


def rates(pairs: list[dict[str, Any]], right: list[bool]) -> dict[str, Any]:
    """False positives of the wrong answers, false negatives of the right ones."""
    found: dict[str, Any] = {}
    for name, is_right in (("false_positives", False), ("false_negatives", True)):
        tries = [given for pair, given in zip(pairs, right, strict=True) if pair["right"] is is_right]
        hits = sum(given is not is_right for given in tries)
        low, high = clopper_pearson(hits, len(tries))
        found[name] = {
            "of": len(tries), "hits": hits, "rate": round(hits / len(tries), 5), "low": round(low, 5),
            "high": round(high, 5),
        }  # fmt: skip
    return found


def by_notation(pairs: list[dict[str, Any]], right: list[bool]) -> dict[str, str]:
    """Notation -> wrong verdicts of all."""
    tries: collections.Counter[str] = collections.Counter(pair["notation"] for pair in pairs)
    wrong = collections.Counter(
        pair["notation"] for pair, given in zip(pairs, right, strict=True) if given is not pair["right"]
    )
    return {notation: f"{wrong[notation]} of {number}" for notation, number in tries.items()}


def by_math_verify(pair: dict[str, Any]) -> bool:
    from math_verify import verify
    from math_verify.parser import parse

    return verify(parse(f"${pair['truth']}$"), parse(f"${pair['answer']}$"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--every", type=int, default=1, help="time every n-th pair only")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

    pairs = [json.loads(line) for line in given.table.read_text(encoding="utf-8").splitlines()]
    timed = pairs[:: given.every]
    num_workers = min(2, len(os.sched_getaffinity(0)))
    with Pool(num_workers) as pool:
        found = pool.map(judge, [(pair["answer"], pair["truth"]) for pair in pairs])
        ours = [outcome.status == "done" and outcome.value.right for outcome in found]

        def pooled(lap: harness.Lap) -> None:
            pool.map(judge, [(pair["answer"], pair["truth"]) for pair in timed])
            lap("pairs")

        def math_verify(lap: harness.Lap) -> None:
            for pair in timed:
                by_math_verify(pair)
            lap("pairs")

        variants = harness.compare(
            {"math_verify": math_verify, "pool": pooled}, baseline="math_verify", repetitions=given.repetitions
        )
    theirs = [by_math_verify(pair) for pair in pairs]
    ratio = variants["pool"]["pairs"]["wall_ratio"]
    sources = [Path(file).resolve() for file in (__file__, harness.__file__, *map(inspect.getfile, (judge, Pool)))]
    result = {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance(["math-verify", "sympy", "mpmath"], [*sources, given.table.resolve()]),
        "pairs": len(pairs), "notations": len({pair["notation"] for pair in pairs}), "confidence": CONFIDENCE,
        "rates": {"r1mega": rates(pairs, ours), "math_verify": rates(pairs, theirs)},
        "pairs_timed": len(timed), "workers": num_workers,
        "times_as_fast": {key: round(1 / ratio[other], 3) for key, other in
                          (("median", "median"), ("low", "high"), ("high", "low"))},
        "variants": variants, "wrong_by_notation": by_notation(pairs, ours),
    }  # fmt: skip
    write_json(given.out, result)
    print(json.dumps({name: result[name] for name in ("rates", "times_as_fast")}, indent=1))


if __name__ == "__main__":
    main()
