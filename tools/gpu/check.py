"""Runs the steps of plan.py, each a process with a limit of its own, and writes results.jsonl. See check.sh.

A line has: step, status (passed, failed, timed_out, skipped), seconds, limit_s, device, figures, and where it did not
pass error, the end of its log, or reason. The first line's figures say what machine, which versions and commit.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import plan

ROOT = Path(__file__).resolve().parents[2]
LINES = 15
"""Of a log's end that go into a result."""


def unpack(carry: Path, site: Path, engine: Path, *, core: bool) -> list[str]:
    """Lay out what this interpreter lacks of the carry's wheels, and Transformer Engine in any case.

    Args:
        engine: Transformer Engine's own folder.
        core: its library of kernels too, which without a GPU nobody can call.
    """
    site.mkdir(exist_ok=True)
    engine.mkdir(exist_ok=True)
    laid = []
    for wheel in sorted(carry.glob("*.whl")):
        name = wheel.name.split("-")[0].replace("_", "-")
        if name == "transformer-engine-cu13" and not core:
            continue
        # A newer typing-extensions than the machine's may be what pydantic asks for, and serves everybody else.
        if not name.startswith(("transformer-engine", "typing-extensions")) and _installed(name):
            continue
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(engine if name.startswith("transformer-engine") else site)
        laid.append(name)
    for extension in carry.glob("transformer_engine_torch*.so"):
        shutil.copyfile(extension, engine / extension.name)
    return laid


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def begin_build(carry: Path, engine: Path, out: Path) -> subprocess.Popen | None:
    """Compile Transformer Engine's PyTorch part beside the first steps; its end is told in compile.rc."""
    if any(engine.glob("transformer_engine_torch*.so")) or not any(carry.glob("transformer_engine_torch-*.tar.gz")):
        return None
    (out / "compile.rc").unlink(missing_ok=True)
    build = [sys.executable, str(ROOT / "tools/gpu/te_build.py"), str(carry), "--out", str(engine)]
    # Below the steps, which want a core or two.
    script = 'nice -n 5 "$@" > "$0.log" 2>&1; echo $? > "$0.rc"'
    return subprocess.Popen(["sh", "-c", script, str(out / "compile"), *build], start_new_session=True)


def run(step: plan.Step, options: argparse.Namespace, environment: dict[str, str], limit: float) -> dict[str, Any]:
    """One step to its end or its limit; its line of results.jsonl."""
    out: Path = options.out
    result, log = out / f"{step.name}.json", out / f"{step.name}.log"
    result.unlink(missing_ok=True)
    command = ["sh", "-c", step.command]
    if not step.command:
        program = ROOT / "tools/gpu/steps" / f"{step.program or step.name}.py"
        command = [sys.executable, str(program), "--device", options.device, *step.arguments]
    own = {**environment, **step.environment, "R1MEGA_STEP": step.name, "R1MEGA_STEP_RESULT": str(result)}
    if step.engine:
        own["PYTHONPATH"] = os.pathsep.join([environment["R1MEGA_ENGINE"], environment["PYTHONPATH"]])
    start = time.monotonic()
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, cwd=ROOT, env=own, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)  # with what it started
    said: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    line: dict[str, Any] = {"step": step.name, "status": "passed"}
    if code is None:
        line["status"] = "timed_out"
    elif code:
        line["status"] = "failed"
    elif "skipped" in said:
        line["status"] = "skipped"
    line |= {"seconds": round(time.monotonic() - start, 1), "limit_s": limit, "device": options.device}
    line["figures"] = said.get("figures", {})
    if line["status"] == "skipped":
        line["reason"] = said["skipped"]
    elif line["status"] != "passed":
        line["error"] = log.read_text(errors="replace").splitlines()[-LINES:]
    return line


def end(process: subprocess.Popen) -> None:
    """End a step's processes, politely first."""
    for sent, wait in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/gpu/check.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check", help="folder for the results")
    parser.add_argument("--carry", type=Path, default=ROOT / "build/gpu-carry", help="what tools/gpu/carry.sh made")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--only", action="append", choices=[s.name for s in plan.STEPS], help="may be repeated")
    parser.add_argument("--minutes", type=float, help=f"for everything; default {plan.MINUTES} on cuda, 90 on cpu")
    parser.add_argument(
        "--extra", action="append", nargs=3, default=[], metavar=("NAME", "LIMIT_S", "COMMAND"),
        help="a step of your own, a shell's command, before all but the first",
    )  # fmt: skip
    options = parser.parse_args()
    options.out, options.carry = options.out.resolve(), options.carry.resolve()
    options.minutes = options.minutes or (plan.MINUTES if options.device == "cuda" else 90)
    return options


def main() -> int:
    options = arguments()
    for sent in (signal.SIGTERM, signal.SIGHUP):  # so that the step under way ends too
        signal.signal(sent, lambda number, _: sys.exit(128 + number))
    deadline = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    cuda = options.device == "cuda"
    site, engine = options.out / "site", options.out / "engine"
    laid = unpack(options.carry, site, engine, core=cuda) if options.carry.is_dir() else []
    print(f"check: laid out {', '.join(laid) or 'nothing'} from {options.carry.name}", flush=True)
    path = [
        str(site),
        str(ROOT),
        str(ROOT / "tools/gpu/steps"),
        str(ROOT / "tools/bench"),
        os.environ.get("PYTHONPATH"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in path if p)}
    environment |= {"R1MEGA_CARRY": str(options.carry), "R1MEGA_ENGINE": str(engine), "R1MEGA_OUT": str(options.out)}
    # Limits are of a GPU machine that does nothing else; a rehearsal shares its cores with who knows what.
    patience = 1.0 if cuda else 20.0
    steps = [s for s in plan.STEPS if options.only is None or s.name in options.only]
    if steps[:1] != list(plan.STEPS[:1]):
        steps.insert(0, plan.STEPS[0])
    extra = [plan.Step(name, float(limit) / patience, "", command=command) for name, limit, command in options.extra]
    steps[1:1] = extra
    build = begin_build(options.carry, engine, options.out) if cuda else None
    lines: list[dict[str, Any]] = []
    try:
        with (options.out / "results.jsonl").open("w") as results:
            for step in steps:
                limit = min(step.limit_s * patience, deadline - time.monotonic())
                if limit < 1:
                    line = {"step": step.name, "status": "timed_out", "seconds": 0, "limit_s": 0, "figures": {}}
                    why = f"the {options.minutes:g} minutes were over before it began"
                    line |= {"device": options.device, "error": [why]}
                else:
                    line = run(step, options, environment, limit)
                lines.append(line)
                results.write(json.dumps(line) + "\n")
                results.flush()
                told = line.get("reason") or (line.get("error") or [""])[-1]
                print(f"{line['status']:9} {line['seconds']:6.1f} s of {limit:3.0f}  {step.name}  {told}", flush=True)
    finally:
        if build is not None:
            end(build)
    counts = {s: sum(line["status"] == s for line in lines) for s in ("passed", "skipped", "failed", "timed_out")}
    print("check: " + ", ".join(f"{n} {status}" for status, n in counts.items()) + f" on {options.device}")
    # On the CPU a step that stops at the first kernel has done all that it can.
    well = counts["passed"] + (0 if cuda else counts["skipped"])
    return 0 if well == len(lines) else 1


if __name__ == "__main__":
    sys.exit(main())
