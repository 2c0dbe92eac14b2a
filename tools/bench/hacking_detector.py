"""Simulated runs of the watch of reward hacking: how often it warns where nothing parts, and where something does.

Every run has one trained reward, which rises for certain, so that the truth's test alone decides: the worst case of
"nothing parts". The truth is Gaussian AR(1) noise of standard deviation 1 around a mean that stays (false alarms), or
that falls by `fall` standard deviations halfway (power): at once ("step"), in a straight line over a window ("ramp"),
or over two windows ("slow"). The answers' own spread is 0, so that `min_change` keeps nothing quiet. Length and
repetition are constant, and are two of the three comparisons that alpha is shared among.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import harness

from r1mega.buffers import Float32s, Int32s
from r1mega.diagnostics import hacking, settings, trend
from r1mega.diagnostics.hacking import HackingWatch, Watched
from r1mega.diagnostics.settings import Hacking
from r1mega.runtime.files import write_json
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus

PROMPT = Prompt("p", "none", "q", "", Int32s([1]))
ANSWER = Completion("p", 0, Int32s([1]), Float32s([0.0]), "", FinishReason.STOP, 0, seed=0)
RHOS = (0.0, 0.3, 0.5, 0.7, 0.9)
FALLS = (3.0, 6.0, 12.0)


def noise(rng: random.Random, size: int, rho: float) -> list[float]:
    values = [rng.gauss(0, 1)]
    while len(values) < size:
        values.append(rho * values[-1] + (1 - rho * rho) ** 0.5 * rng.gauss(0, 1))
    return values


def fallen(shape: str, at: int, size: int, window: int) -> float:
    """Of the whole fall, the share that has happened at a rollout."""
    length = {"step": 1, "ramp": window, "slow": 2 * window}[shape]
    return min(max((at - (size - length) // 2) / length, 0.0), 1.0)


def share_warned(given: Hacking, size: int, runs: int, rho: float, shape: str = "step", fall: float = 0.0) -> float:
    """The share of simulated runs of `size` rollouts that are warned."""
    rng, count = random.Random(f"{size} {given.window} {rho} {shape} {fall}"), 0
    for _ in range(runs):
        watch = HackingWatch(given, Watched({"rm": ("truth",)}, size))
        for at, value in enumerate(noise(rng, size, rho)):
            parts = {"rm": float(at), "truth": value - fall * fallen(shape, at, size, given.window)}
            group = Group(PROMPT, (ANSWER,), (Verdict(VerdictStatus.SCORED, 0.0, parts),))
            if watch.see([group], ["rm"])[0]:
                count += 1
                break
    return round(count / runs, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[25, 106])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    given, found = Hacking(), dict[str, Any]()
    for size in arguments.rollouts:
        found[str(size)] = {
            "false_alarms": {str(rho): share_warned(given, size, arguments.runs, rho) for rho in RHOS},
            "power": {
                shape: {str(fall): share_warned(given, size, arguments.runs // 4, 0.0, shape, fall) for fall in FALLS}
                for shape in ("step", "ramp", "slow")
            },
        }
    sources = [Path(str(module.__file__)) for module in (hacking, settings, trend)]
    write_json(arguments.out, {
        "about": " ".join((__doc__ or "").split()),
        **harness.provenance([], [Path(__file__).resolve(), *sources]),
        "settings": given.model_dump(mode="json"), "runs": arguments.runs, "rollouts_of_a_run": found,
    })  # fmt: skip


if __name__ == "__main__":
    main()
