"""A conversion killed with SIGKILL at any moment: run again, it ends with the same bytes and never shows half."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rotation
from conversion_data import ONE, tiny_spec, unique_tensors, write_folder

from r1mega.conversion.convert import convert

KILLS = rotation.rows(
    "kills of a conversion",
    always=[("hf", 2, 0), ("hf", 2, 1)],
    rotating=[(form, 1, kill) for kill in range(12) for form in ("megatron", "hf")],
    take=8,
)
"""To which form, in how many processes, and which kill."""
SCRIPT = Path(__file__).parent / "convert_in_parts.py"


def run(source, out, form, processes, kills):
    """Kill conversions, then let one end; how many parts were kept after each kill."""
    command = [sys.executable, str(SCRIPT), *map(str, (source, out, form, processes, *kills))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, done.stderr
    return found["kept"]


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
@pytest.mark.parametrize(("form", "processes"), [("megatron", 1), ("hf", 1), ("hf", 2)])
def test_killed_at_random_moments(sources, tmp_path, form, processes):
    kills = [kill for *what, kill in KILLS if what == [form, processes]]
    assert run(sources[form], tmp_path / "whole", form, processes, []) == []
    kept = run(sources[form], tmp_path / "out", form, processes, kills)
    assert len(kept) == len(kills) > 0
    assert kept == sorted(kept)  # what is done is never lost
    assert kept[-1] > 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]
