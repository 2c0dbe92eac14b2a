"""`r1mega` commands without the seconds of their imports: forked from a process that has imported what a run needs,
as a chain's stages are (runtime/preloaded.py).

    done = warm.run("run", CONFIG, "--run-dir", folder)     # as subprocess.run(..., capture_output=True, text=True)
    process = warm.start("run", CONFIG, "--run-dir", folder)  # as subprocess.Popen(..., start_new_session=True)

The process is started at the first use, with the environment and the preloaded libraries that a run gives itself
(runtime/openmp.py). `cold=True` starts the real thing.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from r1mega.runtime.preloaded import Preloaded

ROOT = Path(__file__).parents[1]
IMPORTS = (
    "typer", "r1mega.conversion.commands", "r1mega.recipe.load", "r1mega.runtime.run_dir", "r1mega.stages.pretrain",
    "r1mega.stages.grpo", "r1mega.stages.sft", "r1mega.stages.evaluate", "reasoning_gym",
    "transformers.models.auto.tokenization_auto", "r1mega.report.show",
)  # fmt: skip
"""What a run imports, in its order; last what it imports where it is used."""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "r1mega.cli", *arguments]


def run(*arguments: str, environment: Mapping[str, str] | None = None, cold: bool = False) -> Any:
    """A command's end: its `returncode`, `stdout` and `stderr`."""
    if cold:
        return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT, env=environment)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = _fork(arguments, environment, out, err)
        code = process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command(*arguments), code, out.read(), err.read())


def start(
    *arguments: str, environment: Mapping[str, str] | None = None, output: IO[Any] | None = None, cold: bool = False
) -> Any:
    """A command that runs: `pid`, `poll`, `wait`, `send_signal`, `kill` and `returncode` of subprocess.Popen.

    Args:
        output: gets what it writes, on stdout and stderr; None: nobody does.
    """
    with contextlib.ExitStack() as stack:
        file = output or stack.enter_context(Path(os.devnull).open("w"))
        if not cold:
            return _fork(arguments, environment, file, file)
        return subprocess.Popen(
            command(*arguments), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip


_started: Preloaded | None = None


def _fork(arguments: tuple[str, ...], environment: Mapping[str, str] | None, out: IO[Any], err: IO[Any]) -> Any:
    global _started
    if _started is None:
        _started = Preloaded(IMPORTS, _environment())
    return _started.start(arguments, _environment(os.environ if environment is None else environment), ROOT, out, err)


def close() -> None:
    """End the warm process, if there is one."""
    global _started
    if _started is not None:
        _started.close()
        _started = None


def _environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """With the library that a run would preload."""
    from r1mega.runtime import openmp

    return {**given, **openmp.preload()}
