"""How fast data is searched for an evaluation's 10-grams (r1mega/evaluation/decontaminate.py), and what it finds.

Rows have a prompt of 40 to 120 words and an answer of 100 to 300, one sentence in five with LaTeX in it; the
evaluation has 2,000 questions with solutions, of other sentences. Into `planted` rows, spread over the file, goes one
of its questions or solutions in another case, spacing and LaTeX. All of these have to be found, and no other row. The
file has just been written, so that most of it is in the page cache. CPU seconds are of all processes: on as many idle
cores as there are processes the wall clock is about their share.
"""

import argparse
import inspect
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

from r1mega.evaluation import ngrams, normalise, search_files
from r1mega.evaluation.decontaminate import decontaminate
from r1mega.evaluation.overlap import Evaluations
from r1mega.runtime.files import write_json

FORMULAE = (
    r"$\frac{1}{2}x^{%d}+%d$", r"$\sqrt{%d} \le \pi \cdot %d$", r"$\sum_{i=1}^{%d} a_i = %d$", r"\(f(x) = %dx - %d\)",
)  # fmt: skip
NUM_QUESTIONS = 2000


def sentences(rng: random.Random, num: int, prefix: str) -> list[str]:
    """Of words of their own, so that two sets of sentences have no run of words in common."""
    words = [prefix + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 9))) for _ in range(8000)]
    found = []
    for _ in range(num):
        said = rng.choices(words, k=rng.randint(12, 24))
        if rng.random() < 0.2:
            said.insert(rng.randrange(len(said)), rng.choice(FORMULAE) % (rng.randrange(99), rng.randrange(999)))
        found.append(" ".join(said).capitalize() + ".")
    return found


REWRITTEN = (
    (r"\frac{1}{2}", r"\tfrac12"), ("$", "$$"), (r"\le", r"\leqslant "), (r"\pi", "π"), (r"\sqrt", "√"),
    ("^{", "^{ "), (r"\cdot", r"\times"), ("(x)", r"\left( x \right)"),
)  # fmt: skip


def varied(text: str, rng: random.Random) -> str:
    """The same words, in another case, spacing and LaTeX."""
    words = [word if "\\" in word else rng.choice([str.upper, str.lower, str.title])(word) for word in text.split()]
    text = "".join(word + rng.choice([" ", "  ", "\n", "\t", "\u00a0"]) for word in words)
    for old, new in REWRITTEN:
        text = text.replace(old, new)
    return text


def write_data(folder: Path, num: int, planted: int) -> tuple[Path, Path, set[int]]:
    """The data, the evaluation, and the lines of the data into which something of it was planted."""
    rng = random.Random(0)
    pool, questions = sentences(rng, 30_000, ""), sentences(rng, 4 * NUM_QUESTIONS, "q")
    evaluation, data = folder / "evaluation.jsonl", folder / "data.jsonl"
    rows = [
        {"question": " ".join(questions[i : i + 2]), "solution": " ".join(questions[i + 2 : i + 4])}
        for i in range(0, len(questions), 4)
    ]
    evaluation.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hit = set(rng.sample(range(1, num + 1), planted))
    with data.open("w") as file:
        for line in range(1, num + 1):
            prompt = " ".join(rng.choices(pool, k=rng.randint(2, 6)))
            answer = rng.choices(pool, k=rng.randint(6, 16))
            if line in hit:
                taken = rng.choice(rows)[rng.choice(["question", "solution"])]
                answer.insert(rng.randrange(len(answer)), varied(taken, rng))
            file.write(json.dumps({"problem": prompt, "solution": " ".join(answer)}) + "\n")
    return data, evaluation, hit


def cpu_s() -> float:
    """Of this process and of those it has waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(num: int, planted: int, processes: int) -> dict[str, Any]:
    """Read the evaluation, search the data, write what is left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, evaluation, hit = write_data(folder, num, planted)
        wall, cpu = time.perf_counter(), cpu_s()
        evaluations = Evaluations.read([evaluation], (), 10, None)
        index_s = time.perf_counter() - wall
        report = decontaminate(search_files.Data([data], (), processes), evaluations, folder / "out")
        wall, cpu = time.perf_counter() - wall, cpu_s() - cpu
        hits = [json.loads(line)["place"]["line"] for line in (folder / "out/hits.jsonl").read_text().splitlines()]
        with (folder / "out/data.jsonl").open("rb") as left:
            rows_left = sum(1 for _ in left)
        num_bytes = data.stat().st_size
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "rows": report.rows.total(),
        "bytes": num_bytes,
        "processes": processes,
        "sequences_looked_for": len(evaluations.index.hashes),
        "planted_rows": planted,
        "planted_rows_found": len(hit & set(hits)),
        "other_rows_found": len(set(hits) - hit),
        "rows_left": rows_left,
        "index_s": round(index_s, 2),
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
        "rows_per_second": round(num / wall),
        "mb_per_second": round(num_bytes / 1e6 / wall, 1),
        "wall_s_per_million_rows": round(wall / num * 1e6, 1),
        "cpu_s_per_million_rows": round(cpu / num * 1e6, 1),
        "peak_rss_mib": {"this_process": round(peaks[0] / 1024), "largest_other": round(peaks[1] / 1024)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    sources = [Path(__file__), Path(harness.__file__)]
    sources += [Path(inspect.getfile(module)) for module in (ngrams, normalise, search_files)]
    about = {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance(["numpy"], [source.resolve() for source in sources]),
    }
    found = measure(given.rows, given.planted, given.processes)
    write_json(given.out, about | found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
