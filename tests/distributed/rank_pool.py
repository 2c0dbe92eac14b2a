"""Ranks of the trainer for one task after another, forked from a process that has torch and megatron imported.

    pool.run(2, "layouts.of", folder, ["tp=2", "pp=2"])

calls `layouts.of(folder, "tp=2")`, and then the same with "pp=2", in two new processes, which torchrun's variables
tell who they are; with one rank there are none, as in a run without torchrun. The process that they are forked from
never computes anything, so that nothing comes from one task to the next: no seed, patch, memory or thread of gloo.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.runtime import process

LIMIT_S = 1500.0
"""Of one task, far above what any takes."""
STRAGGLER_S = 300.0
"""What the other ranks get once one has done its part: all leave a task together."""
LOST_S = 30.0
"""What they get once one has died: mostly they say that they lost it, and end as well."""
LOG_BYTES = 6000
PRELOADED = ("r1mega.weights.saves", "r1mega.weights.hf_io", "r1mega.weights.source", "r1mega.trainer.scatter",
             "megatron.core.dist_checkpointing")  # fmt: skip


class Pool:
    """Where ranks are forked; the process that does it is started by the first task.

    Args:
        folder: of the ranks' logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.straggler_s = STRAGGLER_S
        self._server: subprocess.Popen[str] | None = None

    def run(self, num_ranks: int, function: str, folder: Path, arguments: Sequence[str]) -> None:
        """Let `num_ranks` ranks call MODULE.FUNCTION(folder, argument) together, with one argument after another.

        Raises:
            AssertionError: a rank failed, died, or did not come to an end; what each of them has printed is in the
                message. Those that were left are ended.
        """
        for argument in arguments:
            self._run({"num_ranks": num_ranks, "function": function, "folder": str(folder), "argument": argument})

    def close(self) -> None:
        """End the process that forks ranks; a later task starts another one."""
        if self._server:
            self._server.kill()
            with contextlib.suppress(BrokenPipeError), self._server:  # closes its pipes, and waits
                pass
            self._server = None

    def _run(self, task: dict[str, Any]) -> None:
        logs = [self.folder / f"rank_{rank}.log" for rank in range(task["num_ranks"])]
        server = self._server = self._server or self._start()
        assert server.stdin and server.stdout
        line = json.dumps({**task, "logs": [str(log) for log in logs], "straggler_s": self.straggler_s})
        answer = ""
        with contextlib.suppress(BrokenPipeError):  # it has ended
            print(line, file=server.stdin, flush=True)
            answer = server.stdout.readline()
        if not answer:
            self.close()
            raise AssertionError(f"what forks ranks has ended:\n{_end_of(self.folder / 'pool.log')}")
        codes = json.loads(answer)
        if any(code != 0 for code in codes):
            ends = ["did not end" if code is None else f"ended with {code}" for code in codes]
            said = "".join(
                f"\n---- rank {rank} {end}:\n{_end_of(log)}"
                for rank, (end, log) in enumerate(zip(ends, logs, strict=True))
            )
            raise AssertionError(f"{task['function']} {task['argument']!r}:{said}")

    def _start(self) -> subprocess.Popen[str]:
        with (self.folder / "pool.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, str(os.getpid())],
                # As torchrun sets it: the ranks share the machine's cores. And other threads do not survive a fork.
                env=process.child_environment(OMP_NUM_THREADS="1"),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip


def _end_of(log: Path) -> str:
    return log.read_bytes()[-LOG_BYTES:].decode(errors="replace")


# ---- the process that forks ---------------------------------------------------------------------------------


def _serve(parent: int) -> None:
    """Do what standard input asks for, a line of JSON a task, and answer with the exit codes of its ranks."""
    process.die_with_parent(parent)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    while line := sys.stdin.readline():
        task = json.loads(line)
        function = _find(task["function"])
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork"
        answers.write(json.dumps(_wait(_fork(function, task), task["straggler_s"])) + "\n")


def _find(name: str) -> Any:
    """A function by its name, with all that ranks will need imported once; tests of the pool itself need nothing."""
    module, _, function = name.rpartition(".")
    found = getattr(importlib.import_module(module), function)
    if "torch" in sys.modules and not set(PRELOADED) <= set(sys.modules):
        import torch

        from r1mega.runtime import shims

        torch._dynamo.config.disable = True
        shims.install_megatron_cpu()
        for other in PRELOADED:
            importlib.import_module(other)
    return found


def _fork(function: Any, task: dict[str, Any]) -> list[int]:
    """The process ids of a task's ranks."""
    parent, port, num_ranks = os.getpid(), process.free_port(), task["num_ranks"]
    ranks = []
    for rank, log in enumerate(task["logs"]):
        if child := os.fork():
            ranks.append(child)
            continue
        code = 1
        try:
            process.die_with_parent(parent)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if num_ranks > 1:
                own = {"RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": num_ranks}
                os.environ |= {name: str(value) for name, value in own.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            function(Path(task["folder"]), task["argument"])
            if "torch" in sys.modules:
                from r1mega.trainer import mesh

                mesh.stop()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return ranks


def _wait(ranks: list[int], straggler_s: float) -> list[int | None]:
    """The exit code of each rank; None: it did not end, and was ended."""
    codes: list[int | None] = [None] * len(ranks)
    running = dict(enumerate(ranks))
    deadline = time.monotonic() + LIMIT_S
    while running and time.monotonic() < deadline:
        time.sleep(0.01)
        for rank, child in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
                deadline = min(deadline, time.monotonic() + (LOST_S if codes[rank] else straggler_s))
                del running[rank]
    for child in running.values():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return codes


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
