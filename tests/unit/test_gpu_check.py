"""tools/gpu: the check goes on after a step that fails or hangs, says so, and its carry is what it says it is."""

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GPU = ROOT / "tools/gpu"


@pytest.fixture(scope="module")
def tools():
    """Its modules by name, as a script's folder gives them."""
    sys.path.insert(0, str(GPU))
    yield importlib.import_module
    sys.path.remove(str(GPU))


def check(tmp_path: Path, *arguments: str) -> tuple[int, list[dict], str]:
    """Its exit status, the lines of results.jsonl, and what it printed."""
    command = [
        str(GPU / "check.sh"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
        "--carry",
        str(tmp_path / "no"),
    ]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=900, env=environment)
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    return done.returncode, [json.loads(line) for line in lines], done.stdout + done.stderr


def test_it_goes_on_after_what_fails_and_what_hangs(tmp_path):
    planted = tmp_path / "still_there"
    hang = f"(sleep 8; touch {planted}) & echo waiting; sleep 600"
    code, lines, said = check(
        tmp_path, "--only", "te_build",
        "--extra", "broken", "20", "echo the last word; exit 3",
        "--extra", "hanging", "1", hang,
        "--extra", "fine", "20", 'echo \'{"figures": {"seen": 7}}\' > $R1MEGA_STEP_RESULT',
    )  # fmt: skip
    assert code == 1, said
    assert {line["step"]: line["status"] for line in lines} == {
        "environment": "passed",
        "broken": "failed",
        "hanging": "timed_out",
        "fine": "passed",
        "te_build": "skipped",
    }
    found = {line["step"]: line for line in lines}
    assert found["broken"]["error"] == ["the last word"]
    assert found["hanging"]["error"] == ["waiting"]
    assert found["hanging"]["limit_s"] <= found["hanging"]["seconds"] < 60
    assert found["fine"]["figures"] == {"seen": 7}
    assert "GPU" in found["te_build"]["reason"]
    first = lines[0]["figures"]
    assert first["versions"]["torch"]
    assert first["cores"] == len(os.sched_getaffinity(0))
    assert all(line["device"] == "cpu" for line in lines)  # nothing here was measured on a GPU
    assert "2 passed, 1 skipped, 1 failed, 1 timed_out on cpu" in said
    time.sleep(8)
    assert not planted.exists()  # what a step started ended with it


def test_a_check_that_is_ended_ends_its_step(tmp_path):
    alive = tmp_path / "alive"
    command = [sys.executable, str(GPU / "check.py"), "--device", "cpu", "--out", str(tmp_path), "--minutes", "9"]
    step = f"echo $$ > {alive}; sleep 600"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([*command, "--only", "te_build", "--extra", "long", "500", step], env=environment)
    try:
        while not (alive.exists() and alive.read_text().strip()):
            assert running.poll() is None
            time.sleep(0.1)
        running.terminate()
        assert running.wait(300) == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(int(alive.read_text()), 0)
    finally:
        running.kill()


def test_all_well_is_0_and_no_time_left_is_not(tmp_path):
    code, lines, said = check(tmp_path, "--only", "environment")
    assert (code, [line["status"] for line in lines]) == (0, ["passed"]), said
    code, lines, _ = check(tmp_path, "--only", "environment", "--minutes", "0.001", "--extra", "late", "9", "true")
    assert [line["status"] for line in lines] == ["timed_out", "timed_out"]
    assert "minutes were over before it began" in lines[1]["error"][0]
    assert code == 1


def test_the_steps_fit_nine_minutes_and_those_without_the_engine_come_first(tools):
    plan = tools("plan")
    assert sum(step.limit_s for step in plan.STEPS) <= 60 * plan.MINUTES
    engine = [step.engine for step in plan.STEPS]
    assert engine == sorted(engine)
    for step in plan.STEPS:
        assert (GPU / "steps" / f"{step.program or step.name}.py").is_file()


# ---- the carry ----------------------------------------------------------------------------------------------


def library(*containers: list[tuple[int, int, bytes]]) -> bytearray:
    """An ELF file with containers of (kind, arch, contents) in its .nv_fatbin, as nvcc lays them out."""
    section = b""
    for entries in containers:
        inside = b""
        for kind, arch, contents in entries:
            head = struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(contents), 0, 0, 8, 1, arch)
            inside += head.ljust(64, b"\0") + contents
        section += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(inside)) + inside
    names = b"\0.nv_fatbin\0.shstrtab\0"
    table = 64 + len(section) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2
    )
    rows = [(0, 0, 0, 0), (1, 1, 64, len(section)), (12, 3, 64 + len(section), len(names))]
    headers = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0) for name, kind, at, size in rows
    )
    return bytearray(header + section + names + headers)


def test_only_one_architectures_machine_code_stays(tools):
    fatbin = tools("fatbin")
    parts = [(1, 90, b"ptx of 90"), (2, 80, b"machine code of 80"), (2, 90, b"machine code of 90")]
    whole = library(parts, [(2, 90, b"alone"), (2, 100, b"newer")])
    thin = bytearray(whole)
    assert fatbin.thin(thin, 90) == (18 + 5, 9 + 18 + 18 + 5 + 5)
    assert len(thin) == len(whole)
    where = {(e.container, e.kind, e.arch): slice(e.start, e.start + e.size) for e in fatbin.entries(whole)}
    assert bytes(thin[where[0, 2, 90]]) == b"machine code of 90"
    assert bytes(thin[where[1, 2, 90]]) == b"alone"
    changed = {i for i in range(len(whole)) if whole[i] != thin[i]}
    gone = {i for key, place in where.items() if key[1:] != (2, 90) for i in range(place.start, place.stop)}
    assert changed == gone  # and no header
    assert list(fatbin.entries(thin)) == list(fatbin.entries(whole))


def test_a_library_that_would_lose_kernels_is_refused(tools):
    fatbin = tools("fatbin")
    with pytest.raises(ValueError, match="1 containers of device code have none for sm_90, the first is 1"):
        fatbin.thin(library([(2, 90, b"x")], [(2, 80, b"y"), (1, 90, b"z")]), 90)
    with pytest.raises(ValueError, match="not a 64-bit"):
        fatbin.thin(bytearray(100), 90)
    broken = library([(2, 90, b"x")])
    broken[64] = 7
    with pytest.raises(ValueError, match="where a container of device code should begin"):
        fatbin.thin(broken, 90)


def test_a_thinned_wheel_is_the_same_bytes_every_time(tools, tmp_path):
    carry = tools("carry")
    wheel = tmp_path / "transformer_engine_cu13-2.11.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("transformer_engine/wheel_lib/lib.so", bytes(library([(2, 90, b"keep"), (2, 80, b"drop")])))
        archive.writestr("transformer_engine_cu13-2.11.0.dist-info/METADATA", "Name: it")
    made, sizes = carry.thinned(wheel, 90)
    again, _ = carry.thinned(wheel, 90)
    assert made == again
    assert (sizes["kept_bytes"], sizes["device_code_bytes"]) == (4, 8)
    (tmp_path / "made.whl").write_bytes(made)
    with zipfile.ZipFile(tmp_path / "made.whl") as archive:
        data = archive.read("transformer_engine/wheel_lib/lib.so")
    assert b"keep" in data
    assert b"drop" not in data


def test_the_lock_names_one_file_of_each_package_that_the_trainers_lock_has_too(tools):
    """By hash: what is brought is what an installed GPU environment has."""
    carry = tools("carry")
    ours, theirs = (
        carry.locked((ROOT / "requirements" / f"{name}.lock").read_text()) for name in ("gpu-check", "gpu-trainer")
    )
    assert len(ours) == 14
    for name, line in ours.items():
        (digest,) = [part.split()[0] for part in line.split("sha256:")[1:]]
        assert line.split(" ")[0] == theirs[name].split(" ")[0], name
        assert digest in theirs[name], name


def test_a_carry_that_is_too_large_is_refused(tools, tmp_path, capsys, monkeypatch):
    carry = tools("carry")
    (tmp_path / "a.whl").write_bytes(bytes(3000))
    sizes = {"wheel_bytes": 1, "kept_bytes": 1, "device_code_bytes": 1}
    assert carry.tell(tmp_path, sizes) == 0
    monkeypatch.setattr(carry, "LIMIT_BYTES", 2999)
    assert carry.tell(tmp_path, sizes) == 2
    assert "a.whl" in capsys.readouterr().out


COMPILER = """#!/usr/bin/env bash
# Of what it is told to compile it makes a file with the source's name; broken.cpp is beyond it.
echo "$*" >>"$LOG"
[[ $1 != --version ]] || { echo "g++ 0"; exit; }
[[ $* != *broken.cpp* ]] || { echo "broken.cpp:1: error" >&2; exit 1; }
while (($# > 1)); do [[ $1 != -o ]] || echo made >"$2"; shift; done
"""


def test_sources_are_compiled_behind_their_common_header_and_what_came_of_each_is_told(tools, tmp_path, monkeypatch):
    build = tools("te_build")
    compiler, log, report = tmp_path / "c++", tmp_path / "log", tmp_path / "report.json"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setattr(build, "includes", lambda source: [source / "csrc"])
    with tarfile.open(tmp_path / "transformer_engine_torch-1.tar.gz", "w:gz") as tar:
        for name in ("extensions.h", "a.cpp", "extensions/broken.cpp"):
            (tmp_path / "s").write_text(f"// {name}")
            tar.add(tmp_path / "s", f"transformer_engine_torch-1/csrc/{name}")

    def run(*more: str) -> tuple[int, dict, list[str]]:
        log.write_text("")
        arguments = [str(tmp_path), "--out", str(tmp_path / "out"), "--objects", str(tmp_path / "objects"), *more]
        monkeypatch.setattr(sys, "argv", ["te_build.py", *arguments, "--jobs", "1", "--report", str(report)])
        return build.main(), json.loads(report.read_text()), log.read_text().splitlines()[1:]

    code, told, calls = run()
    assert code == 1
    assert (set(told["compiled"]), told["errors"]) == (
        {"extensions.h", "a.cpp"},
        {"broken.cpp": "broken.cpp:1: error\n"},
    )
    assert (told["files"], told["kept_from_before"], told["source"]) == (2, 0, "transformer_engine_torch-1.tar.gz")
    assert "library_bytes" not in told
    assert "-x c++-header" in calls[0] and all("-include" in call and "extensions.h" in call for call in calls[1:])
    assert len(calls) == 3
    # What compiled is not compiled again; a library is of all files alone.
    code, told, calls = run("--files", "a.cpp")
    assert (code, told["kept_from_before"], told["files"], len(calls)) == (0, 1, 1, 1)
    assert not (tmp_path / "out").exists()
