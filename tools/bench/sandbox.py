"""What a run in the sandbox costs beside a bare `python -I -S`, and how many programs a core judges in a second.

Overhead: a program of one line, in turn bare and in the sandbox, one at a time; what is added to the bare start is
the overhead. Throughput: right answers of one test each, judged by the accuracy reward in a pool of workers on all
cores, as `r1mega score code` and RL do, against as many bare starts at once as there are cores. C++ answers are
measured twice: compiled, and from the cache. Wall time, so others' use of the machine shows itself in it; the load is
written down.
"""

import argparse
import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness

from r1mega.rewards.pool import Pool
from r1mega.rewards.programs import build
from r1mega.rewards.rows import Response, judge_code
from r1mega.rewards.sandbox import machine
from r1mega.rewards.sandbox.bounds import Bounds
from r1mega.rewards.sandbox.machine import tools
from r1mega.rewards.sandbox.run import run
from r1mega.rewards.sandbox.slots import slot
from r1mega.rewards.worker import Limits
from r1mega.runtime.files import write_json

BOUND_MS, BOUND_PER_S_AND_CORE = 100.0, 4.0
"""What published sandboxes for RL give: under 100 ms, four programs in a second on a core."""
SOURCE = "a, b = map(int, input().split())\nprint(a + b)\n"
CPP = "#include <iostream>\nint main() {{ long long a, b; std::cin >> a >> b; std::cout << a + b + {0} - {0}; }}\n"
STDIN = b"2 3\n"


def bare() -> None:
    argv = [tools().python, "-I", "-S", "-c", SOURCE]
    done = subprocess.run(argv, input=STDIN, capture_output=True, env={}, check=True)
    assert done.stdout == b"5\n"


def sandboxed() -> None:
    with slot() as number:
        assert number is not None
        argv = (tools().python, "-I", "-S", "/code/answer.py")
        ran = run(argv, {"answer.py": SOURCE.encode()}, STDIN, Bounds(), number)
    assert ran.output == b"5\n", ran


def overhead(repetitions: int) -> dict[str, Any]:
    """Milliseconds of both, and what the sandbox adds in the same turn."""
    pairs: list[tuple[float, float]] = []
    for turn in range(repetitions + 1):
        began = time.perf_counter()
        bare()
        middle = time.perf_counter()
        sandboxed()
        if turn:
            pairs.append((1e3 * (middle - began), 1e3 * (time.perf_counter() - middle)))
    return {
        "bare_ms": harness.spread([alone for alone, _ in pairs]),
        "sandbox_ms": harness.spread([inside for _, inside in pairs]),
        "added_ms": harness.spread([inside - alone for alone, inside in pairs]),
    }


def per_second(count: int, pool: Pool, language: str, offset: int) -> float:
    """Answers judged in a second on a core; each C++ answer is another program."""
    rows = [
        Response(
            i,
            f"```{language}\n{SOURCE if language == 'python' else CPP.format(offset + i)}```\n",
            {"entry": {"language": language, "tests": [{"stdin": "2 3\n", "stdout": "5"}]}},
        )
        for i in range(count)
    ]
    began = time.perf_counter()
    outcomes = pool.map(judge_code, [(row,) for row in rows])
    seconds = time.perf_counter() - began
    assert all(outcome.value.reward == 1.0 for outcome in outcomes), outcomes
    return round(count / seconds / len(os.sched_getaffinity(0)), 2)


def bare_per_second(count: int) -> float:
    cores = len(os.sched_getaffinity(0))
    began = time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(lambda _: bare(), range(count)))
    return round(count / (time.perf_counter() - began) / cores, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=harness.ROOT / "docs/measurements/sandbox.json")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    found = overhead(given.repetitions)
    fresh = time.time_ns() % 10**9  # C++ that no cache has
    few = max(2, given.programs // 8)
    with Pool(limits=Limits(cpu_s=300.0, wall_s=3600.0)) as pool:
        per_second(4, pool, "python", 0)  # workers have started
        rates = {
            "bare_python": bare_per_second(given.programs),
            "python": per_second(given.programs, pool, "python", 0),
            "cpp_compiled": per_second(few, pool, "cpp", fresh),
            "cpp_from_cache": per_second(few, pool, "cpp", fresh),
        }
    rooms = [Path(build.__file__).parent, Path(machine.__file__).parent]
    sources = [Path(__file__).resolve(), *sorted(file for room in rooms for file in room.glob("*.py"))]
    result = {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance([], sources),
        "one_at_a_time": found,
        "programs_per_second_and_core": rates,
        "bounds": {"added_ms": BOUND_MS, "python_per_second_and_core": BOUND_PER_S_AND_CORE},
        "within_bounds": {
            "added_ms": found["added_ms"]["median"] < BOUND_MS, "python": rates["python"] > BOUND_PER_S_AND_CORE,
        },
        "load_before": round(load, 2),
    }  # fmt: skip
    write_json(given.out, result)
    print(
        json.dumps(
            {name: result[name] for name in ("one_at_a_time", "programs_per_second_and_core", "within_bounds")}
        )
    )


if __name__ == "__main__":
    main()
