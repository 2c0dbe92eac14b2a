"""One stage on this machine, started again after a crash: what slurm/rl_stage.sh does, without Slurm.

    python launchers/local.py CONFIG [--max-restarts N] [arguments of `r1mega run`]

Always resumes. A run that is done, that was given something wrong (exit code 2), or that was asked to leave (SIGINT,
SIGTERM, SIGUSR1: handed on to it; it saves) is not started again. The exit code is the last start's.
"""

import argparse
import sys
import time

try:
    from r1mega.runtime import process
    from r1mega.runtime.ranks import POLL_S, collected_signals, exit_code, hand_on
except ModuleNotFoundError as missing:
    said = f"{sys.executable} has no {missing.name}: run `make env` and then, in each shell, `. .venv/bin/activate`"
    print(f"local: {said}", file=sys.stderr)
    sys.exit(2)

ASKED_TO_LEAVE = frozenset(128 + signum for signum in process.STOP_SIGNALS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-restarts", type=int, default=10, help="after a crash; default: %(default)s")
    options, arguments = parser.parse_known_args()
    if "--resume" not in arguments:
        arguments.append("--resume")
    process.settle_signals()
    with collected_signals() as received:
        restarts = 0
        while True:
            code, asked = run_once(arguments, received)
            if asked or code in {0, 2} | ASKED_TO_LEAVE:
                return code
            if restarts == options.max_restarts:
                print(f"local: exit code {code} after {restarts} restarts: given up", file=sys.stderr)
                return code
            restarts += 1
            print(f"local: exit code {code}; restart {restarts} of at most {options.max_restarts}", file=sys.stderr)


def run_once(arguments: list[str], received: list[int]) -> tuple[int, bool]:
    """`r1mega run` with these arguments: its exit code, and whether signals came in `received` to be handed on."""
    command = [sys.executable, "-m", "r1mega.cli", "run", *arguments]
    run = process.spawn(command, environment=process.child_environment(), log_file=None, pass_signals=True)
    sent: set[int] = set()
    while run.poll() is None:
        sent |= hand_on(received, [run])
        time.sleep(POLL_S)
    return exit_code(run), bool(sent or received)


if __name__ == "__main__":
    sys.exit(main())
