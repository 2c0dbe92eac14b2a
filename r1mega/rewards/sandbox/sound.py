"""A run whose end is the program's own doing: told by a control program in the same sandbox."""

import threading
from collections.abc import Mapping, Sequence

from r1mega.errors import RewardError
from r1mega.rewards.sandbox.bounds import Bounds
from r1mega.rewards.sandbox.machine import REMEDY, tools
from r1mega.rewards.sandbox.run import Ran, run
from r1mega.rewards.sandbox.slots import slot

CONTROL_S = 5.0
"""A machine on which the control program takes longer tells nothing of how slow another one is."""
_CONTROL = b"import sys\nprint(sum(int(word) ** 2 for word in sys.stdin.read().split()))\n"


def sound_run(
    argv: Sequence[str], files: Mapping[str, bytes], stdin: bytes, bounds: Bounds, number: int,
    stop: threading.Event | None = None,
) -> Ran:  # fmt: skip
    """As `run.run`; `lost` only where the program loses its sandbox twice, beside a control program that does not.

    Raises RewardError: no sandbox can be had, or it does not do what it should with the control program.
    """
    ran = run(argv, files, stdin, bounds, number, stop)
    if ran.end == "lost":
        control(number, said=ran.errors)
        ran = run(argv, files, stdin, bounds, number, stop)
        if ran.end == "lost":
            control(number, said=ran.errors)
    elif ran.end == "wall" and ran.cpu_s < bounds.cpu_s / 2:
        control(number)  # it waited for something: for itself, or for this machine?
    return ran


def control(number: int, said: bytes = b"") -> None:
    """Run the control program. Raises RewardError where it does not do what it should within `CONTROL_S`."""
    argv = (tools().python, "-I", "-S", "/code/control.py")
    ran = run(argv, {"control.py": _CONTROL}, b"3 4\n12\n", Bounds(wall_s=4 * CONTROL_S), number)
    if (ran.end, ran.code, ran.output) != ("exit", 0, b"169\n"):
        words = (ran.errors or said).decode("utf-8", "replace").strip()[-300:]
        raise RewardError(f"the sandbox fails: its control program ended with {ran.end} {ran.code}: {words}")
    if ran.wall_s > CONTROL_S:
        raise RewardError(f"the sandbox fails: its control program took {ran.wall_s:.1f} s on this machine")


def fault_of_this_machine(*, cpp: bool = False) -> str | None:
    """Why programs cannot be judged on this machine, with the remedy; None where they can."""
    try:
        found = tools()
        with slot() as number:
            assert number is not None
            control(number)
    except RewardError as error:
        return str(error)
    return None if found.compiler or not cpp else f"C++ cannot be judged here: g++ not found; {REMEDY}"
