"""A converted folder loads into any layout, and a checkpoint of any layout becomes the same Hugging Face folder."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from conversion_data import ONE, assert_same, load_all, unique_tensors, write_folder
from layouts import spec

from r1mega.conversion.convert import convert

TWO_RANKS = ("dp=2", "tp=2", "pp=2", "dp=2,ep=2", "tp=2,ep=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    write_folder(folder / "hf", spec(), unique_tensors(spec()))
    convert(folder / "hf", folder / "megatron", "megatron", None, ONE)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(__file__).parent / "convert_layouts.py"), str(folder), str(folder / "megatron")]
    command = [sys.executable, *torchrun, *script, *TWO_RANKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("layout", TWO_RANKS)
def test_every_weight_arrives_and_comes_back(folder: Path, layout: str):
    wanted = load_all(folder / "hf")
    assert_same(torch.load(folder / f"{layout}.pt"), wanted)
    out = folder / f"hf_{layout}"
    convert(folder / f"step_{layout}", out, "hf", None, replace(ONE, without_tokenizer=True))
    assert_same(load_all(out), wanted)
