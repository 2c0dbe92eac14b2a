"""How fast a set is put together (r1mega/stages/mixture.py), and in how much memory.

Four rows in five have provenance and some 17 KB, one in ten of them a double of the row before it; one in five is a
plain conversation of some 5 KB. All are searched for the 10-grams of 2,000 questions of an evaluation. It is the
command `r1mega run` in a process of its own, its report included; CPU seconds and memory are of all its processes,
memory (anonymous pages, which exclude what is mapped of files) as seen ten times a second.
"""

import argparse
import inspect
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

from r1mega.data import mixed_rows
from r1mega.data.signed_rows import signed
from r1mega.runtime.files import write_json
from r1mega.stages import mixture, mixture_choice, mixture_reading, mixture_writing

CONFIG = """stage = "mixture"
[[data]]
files = ["rows.jsonl"]
[[data]]
files = ["plain.jsonl"]
domain = "general"
[decontaminate]
files = ["evaluation.jsonl"]
"""


def write_files(folder: Path, num_rows: int) -> None:
    """Of made words; paragraphs are drawn from a few thousand, since to make all would take longer than to mix."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 9))) for _ in range(20_000)]
    paragraphs = [" ".join(rng.choices(words, k=400)) for _ in range(2000)]
    with (folder / "rows.jsonl").open("w") as file:
        line = ""
        for i in range(num_rows * 4 // 5):
            if i % 10 != 9:
                answer = "<think>\n" + "\n\n".join(rng.choices(paragraphs, k=7)) + f"\n</think>\n\n{i}"
                line = json.dumps(_row(f"Question {i}: {rng.choice(paragraphs)[:300]}", answer, i)) + "\n"
            file.write(line)
    with (folder / "plain.jsonl").open("w") as file:
        for i in range(num_rows // 5):
            answer = "\n\n".join(rng.choices(paragraphs, k=1 + i % 4))
            file.write(
                json.dumps({"prompt": f"Hello {i}, {rng.choice(paragraphs)[:200]}", "response": answer}) + "\n"
            )
    with (folder / "evaluation.jsonl").open("w") as file:
        for _ in range(2000):
            file.write(json.dumps({"question": " ".join(rng.choices(words, k=60)), "answer": "7"}) + "\n")
    (folder / "set.toml").write_text(CONFIG)


def _row(question: str, answer: str, number: int) -> dict[str, Any]:
    provenance = {
        "question": {"id": str(number), "source": "made", "domain": ("math", "code", "stem")[number % 3]},
        "policy": {"model": "made", "start": "00", "weight_version": 0},
        "answer": {"index": 0, "seed": 1, "tokens": len(answer) // 4},
        "verdict": {"by": "rule:math", "value": 1.0},
        "thinking": "written",
        "from": [],
    }
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return signed({"messages": messages, "provenance": provenance})


def measure(num_rows: int, processes: int) -> dict[str, Any]:
    """Of one run over so many rows, on files that have just been written."""
    with tempfile.TemporaryDirectory() as name:
        folder, peak = Path(name), 0
        write_files(folder, num_rows)
        command = [sys.executable, "-m", "r1mega.cli", "run", str(folder / "set.toml"), "--run-dir", f"{name}/run"]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen([*command, "--set", f"processes={processes}"], cwd=harness.ROOT)
        while process.poll() is None:
            peak = max(peak, sum(map(_anonymous_kib, _tree(process.pid))))
            time.sleep(0.1)
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise SystemExit(process.returncode)
        summary = json.loads((folder / "run/summary.json").read_text())
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {
            "rows": num_rows,
            "bytes": sum((folder / file).stat().st_size for file in ("rows.jsonl", "plain.jsonl")),
            "rows_of_the_set": summary["conversation_set"]["rows"],
            "processes": processes,
            "wall_s": round(wall, 1),
            "cpu_s": round(cpu, 1),
            "rows_per_cpu_second": round(num_rows / cpu),
            "peak_anonymous_mib": round(peak / 1024),
        }


def _tree(pid: int) -> list[int]:
    """A process and its descendants that are alive."""
    try:
        kids = [
            int(k) for task in Path(f"/proc/{pid}/task").iterdir() for k in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(below for kid in kids for below in _tree(kid))]


def _anonymous_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    modules = (mixed_rows, mixture, mixture_choice, mixture_reading, mixture_writing)
    sources = [Path(__file__), Path(harness.__file__), *(Path(inspect.getfile(module)) for module in modules)]
    about = {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance(["numpy"], [source.resolve() for source in sources]),
    }
    found = [measure(given.rows, processes) for processes in given.processes]
    write_json(given.out, about | {"runs": found})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
