"""Writes conversations made from tasks to a JSONL file that the SFT stage reads.

python tools/make_conversations.py OUT [--num N] [--seed S] [--task NAME] [--set PARAMETER=VALUE]...
"""

import argparse
import sys
from pathlib import Path

try:
    from r1mega.data.sources.reasoning_gym import Task
    from r1mega.data.task_conversations import task_conversations
    from r1mega.errors import R1MegaError
    from r1mega.runtime import files
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"make_conversations: {said}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="chain_sum")
    parser.add_argument("--set", action="append", default=[], metavar="PARAMETER=VALUE", help="of the task")
    arguments = parser.parse_args()
    if arguments.num < 1:
        parser.error(f"--num {arguments.num}: give a number above 0")
    try:
        params: dict[str, int | float | bool | str] = {
            name: int(value) for name, value in (setting.split("=", 1) for setting in arguments.set)
        }
    except ValueError:
        parser.error("--set takes PARAMETER=VALUE with an integer")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        rows = task_conversations([Task(name=arguments.task, params=params)], arguments.num, arguments.seed)
        files.write_jsonl(arguments.out, rows)
    except R1MegaError as error:
        print(f"make_conversations: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.out}: {arguments.num} conversations")


if __name__ == "__main__":
    main()
