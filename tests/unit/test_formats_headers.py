"""Headers and file lists of a folder, read without torch: against the safetensors package, which wrote the files."""

import subprocess
import sys
from pathlib import Path

import torch
from conversion_data import rewrite, tiny_spec, unique_tensors, write_folder
from safetensors import safe_open
from safetensors.torch import save_file

from r1mega.formats.safetensors import DTYPES, read_header
from r1mega.formats.torch_dtypes import STORED, TORCH


def test_every_dtype_is_named_and_measured_as_the_package_does(tmp_path: Path):
    save_file({name: torch.zeros(3, 5).to(dtype) for name, dtype in TORCH.items()}, tmp_path / "all.safetensors")
    found = {entry.name: entry for entry in read_header(tmp_path / "all.safetensors")}
    with safe_open(tmp_path / "all.safetensors", framework="pt") as file:
        assert {name: file.get_slice(name).get_dtype() for name in file.keys()} == {n: found[n].dtype for n in DTYPES}  # noqa: SIM118
        for name, dtype in TORCH.items():
            tensor = file.get_tensor(name)
            assert (tensor.dtype, tensor.nbytes) == (dtype, found[name].num_bytes)
            assert STORED[tensor.dtype] == found[name].dtype == name


LOOK = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # an import of it fails
from r1mega.recipe.pretrain import Pretrain
from r1mega.families.registry import model_of
from r1mega.formats.hf_files import read_config
from r1mega.preflight.weights import check_weights
folder = Path(sys.argv[1])
stage = Pretrain.model_construct(model=type("Model", (), {"path": folder}))
check_weights(stage, model_of(read_config(folder)[0], folder / "config.json"))
"""


def test_check_looks_at_a_folders_weights_without_torch(tmp_path: Path):
    spec = tiny_spec()
    folder = write_folder(tmp_path / "model", spec, unique_tensors(spec), num_files=2)
    env = {"PYTHONPATH": ":".join(sys.path), "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}

    def look() -> str:
        return subprocess.run([sys.executable, "-c", LOOK, folder], env=env, capture_output=True, text=True).stderr

    assert look() == ""
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if n != "model.norm.weight"})
    assert "model.norm.weight: missing" in look()
