"""Kills conversions: `convert_in_parts.py SOURCE OUT FORM PROCESSES KILL...`, and prints what happened as JSON.

A KILL is a number that its moment is drawn with.
Each conversion is a fork of this process, which has imported everything, and is killed with SIGKILL some parts
further on; the last one is left to end. With more than one process, a fork starts its workers anew. One that is going
to be killed stops of itself a few parts later: however long this process is kept waiting, it never finds it done.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from r1mega.conversion import convert as conversion
from r1mega.conversion.convert import Options, convert

MORE = 3
"""Parts that a conversion may write beyond the one at which it is to be killed."""


def start(source: Path, out: Path, form: str, processes: int, limit: int | None = None) -> int:
    """The process id of a conversion in small parts; of no more than `limit` of them where given."""
    child = os.fork()
    if child:
        return child
    if limit is not None:
        write_json = conversion.write_json

        def write(path: Path, content: object) -> None:
            while records(out) >= limit:
                time.sleep(0.01)
            write_json(path, content)

        conversion.write_json = write
    options = Options(processes, part_bytes=1 << 17, shard_bytes=2 << 20)
    convert(source, out, "hf" if form == "hf" else "megatron", None, options)
    os._exit(0)


def records(out: Path) -> int:
    return len(list((out.parent / f".{out.name}.converting" / "parts").glob("*.json")))


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def main(source: Path, out: Path, form: str, processes: int, kills: list[str]) -> None:
    torch.set_num_threads(1)
    kept = []
    for kill in kills:
        rng = random.Random(f"{form} {kill}")
        # Some while the first files are made, most within a part that is some parts further on.
        target = records(out) + rng.randint(0, 5)
        child = start(source, out, form, processes, target + MORE)
        while records(out) < target and not ended(child):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"it ended with {status}"
        kept.append(records(out))
    code = os.waitpid(start(source, out, form, processes), 0)[1]
    print(json.dumps({"kept": kept, "code": code}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5:])
