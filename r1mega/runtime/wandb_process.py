"""The one process of a run that imports wandb: `python -m r1mega.runtime.wandb_process`, as mirror.py starts it.

It reads JSON lines from stdin and answers each with one on stdout, {} or {"error": text}. The first holds what
`wandb.init` is given, and is answered with the mode that it runs in; then {"row": metrics} each step; last "finish".
What wandb itself writes goes to stderr. Its errors, its waits, its exit hooks and its service are thus nobody else's.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from r1mega.runtime.process import STOP_SIGNALS

INIT_TIMEOUT_S = 10.0
"""How long wandb tries to reach its server; only then come the files."""
FINISH_TIMEOUT_S = 40.0
"""How long it goes on uploading when the run is over."""


def _start(wanted: dict[str, Any]) -> tuple[Any, str]:
    """The run of W&B, and the mode it is in."""
    import wandb

    mode = wanted["mode"]
    if mode == "auto":
        # Not verified: that would be a request without a limit.
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    run = wandb.init(
        project=wanted["project"],
        name=wanted["name"],
        id=wanted["id"],
        resume="allow" if wanted["resumed"] and mode == "online" else None,
        dir=wanted["dir"],
        mode=mode,
        config=wanted["config"],
        settings=wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            program=wanted["program"],
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
        ),
    )
    # Lines come out of order in steps (an evaluation after its step), so our own step is the axis.
    run.define_metric("*", step_metric="step")
    return run, mode


def _serve(asked: Iterator[Any], answers: IO[str]) -> None:
    """Do what each line asks, and say how that went."""
    run: Any = None
    for line in asked:
        answer: dict[str, Any] = {}
        try:
            if run is None:
                run, answer["mode"] = _start(line)
            elif line == "finish":
                run.finish()
                import wandb

                wandb.teardown()  # until its service has written what it has
            else:
                run.log(line["row"])
        except BaseException as error:  # it raises what it likes, SystemExit among it
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if line == "finish" or "error" in answer:
            return
    if run is not None:  # the trainer is gone
        with suppress(BaseException):
            run.finish(exit_code=1)


if __name__ == "__main__":
    for _number in STOP_SIGNALS:  # the trainer heeds them, and has rows to log until it ends
        signal.signal(_number, signal.SIG_IGN)
    # Before anything of wandb runs: it would write among the answers, and ask the user on stdin.
    _asked, _answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    _null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(_null, 0)
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        _serve(map(json.loads, _asked), _answers)
    sys.stdout.flush()
    os._exit(0)  # exit hooks of wandb would wait for its service, frozen as it may be
