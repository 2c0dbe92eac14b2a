"""A conversion killed with SIGKILL at any moment: run again, it ends with the same bytes and never shows half."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conversion_data import ONE, tiny_spec, unique_tensors, write_folder

from r1mega.conversion.convert import convert

SCRIPT = Path(__file__).parent / "convert_in_parts.py"


def records(work):
    return len(list(work.glob("parts/*.json")))


def start(source, out, form, processes):
    command = [sys.executable, str(SCRIPT), str(source), str(out), form, str(processes)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "converting\n"
    return process


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    spec = tiny_spec(n_routed_experts=32)
    write_folder(folder / "hf", spec, unique_tensors(spec))
    convert(folder / "hf", folder / "megatron", "megatron", None, ONE)
    return {"megatron": folder / "hf", "hf": folder / "megatron"}


@pytest.mark.slow
@pytest.mark.parametrize(("form", "processes", "kills"), [("megatron", 1, 8), ("hf", 1, 6), ("hf", 2, 3)])
def test_killed_at_random_moments(sources, tmp_path, form, processes, kills):
    assert start(sources[form], tmp_path / "whole", form, processes).wait(300) == 0
    wanted = files_of(tmp_path / "whole")
    rng = random.Random(form)
    out, work = tmp_path / "out", tmp_path / ".out.converting"
    killed = 0
    while killed < kills and not out.exists():
        process = start(sources[form], out, form, processes)
        # Some while the first files are made, most within a part that is some parts further on.
        target = records(work) + rng.randint(0, 8)
        while records(work) < target and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
    if not out.exists():
        process = start(sources[form], out, form, processes)
        said, fault = process.communicate(timeout=300)
        assert process.returncode == 0, fault
        assert int(said.split("kept ")[1]) > 0
    assert killed >= 2
    assert files_of(out) == wanted
    assert not work.exists() or not (work / "out").exists()
