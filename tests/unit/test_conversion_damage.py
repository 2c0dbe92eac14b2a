"""Megatron folders that are damaged, hostile or of another model."""

import io
import json
import os
import pickle
import shutil
import zlib

import pytest
import torch
from conversion_data import ONE, tiny_spec, unique_tensors, write_folder
from torch.distributed.checkpoint import metadata as dcp

from r1mega.conversion.convert import convert
from r1mega.conversion.folders import open_folder
from r1mega.conversion.verify import verify
from r1mega.errors import CheckpointError, WeightMappingError
from r1mega.formats.manifest import digest


@pytest.fixture(scope="module")
def megatron(tmp_path_factory):
    spec = tiny_spec()
    whole = write_folder(tmp_path_factory.mktemp("hf") / "tiny", spec, unique_tensors(spec), num_files=2)
    out = tmp_path_factory.mktemp("meg") / "tiny"
    convert(whole, out, "megatron", None, ONE)
    return out


def test_a_damaged_megatron_folder(megatron, tmp_path):
    copy = shutil.copytree(megatron, tmp_path / "copy")
    file = sorted(copy.glob("__1_0.distcp"))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        verify(copy, megatron, None)
    os.truncate(file, 1000)
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: truncated"):
        open_folder(copy)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"__1_0\.distcp: missing"):
        open_folder(copy)
    change_metadata(copy, lambda _: (megatron / ".metadata").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="torn"):
        open_folder(copy)
    (copy / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="not a Megatron checkpoint"):
        open_folder(copy)


def sign(folder, manifest):
    """Write a manifest as its writer would, over the `.metadata` that lies there."""
    content = (folder / ".metadata").read_bytes()
    manifest["files"][".metadata"] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    (folder / "policy.json").write_text(json.dumps({**manifest, "crc32": digest(manifest)}))


def change_metadata(folder, change):
    """Write a folder's `.metadata` and its manifest's digests anew, with another pickle."""
    found = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(change(found) or pickle.dumps(found))
    sign(folder, json.loads((folder / "policy.json").read_text()))


def moved(shift):
    """Moves a chunk of linear_fc1 by some rows, so that it is found there in both of the pickle's tables."""

    def change(found):
        key = "decoder.layers.0.mlp.linear_fc1.weight"
        chunk = found.state_dict_metadata[key].chunks[1]
        old = tuple(chunk.offsets)
        chunk.offsets = torch.Size((old[0] + shift, *old[1:]))
        index = next(i for i in found.storage_data if i.fqn == key and tuple(i.offset) == old)
        found.storage_data[dcp.MetadataIndex(key, chunk.offsets, 1)] = found.storage_data.pop(index)

    return change


def test_chunks_that_overlap_or_stick_out_are_refused(megatron, tmp_path):
    """By volume alone they would make up the tensor, and rows that no chunk has would be whatever memory held."""
    for shift, named in ((-10, "linear_fc1.weight: its chunks overlap"), (10, "lies outside of")):
        copy = shutil.copytree(megatron, tmp_path / f"copy{shift}")
        change_metadata(copy, moved(shift))
        with pytest.raises(CheckpointError, match=named):
            open_folder(copy)


def test_a_manifest_and_a_metadata_that_were_changed_are_seen(megatron, tmp_path):
    copy = shutil.copytree(megatron, tmp_path / "copy")
    (copy / ".metadata").write_bytes((megatron / ".metadata").read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"\.metadata: torn: other bytes than were written"):
        open_folder(copy)
    manifest = json.loads((copy / "policy.json").read_text())
    for change in ({"model": {**manifest["model"], "rope_theta": 5e5}}, {"crc32": None}):
        (copy / "policy.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(CheckpointError, match=r"policy\.json: other bytes than were written"):
            open_folder(copy)


@pytest.mark.parametrize("layout", [None, "tp2", {}, {"tp": 0}, {"tp": True}])
def test_a_manifest_with_another_kind_of_layout_is_torn(megatron, tmp_path, layout):
    copy = shutil.copytree(megatron, tmp_path / "copy")
    sign(copy, {**json.loads((copy / "policy.json").read_text()), "layout": layout})
    with pytest.raises(CheckpointError, match=r"policy\.json: torn \(layout = "):
        open_folder(copy)


# Pickles that call os.system: by its own name, through a module that torch has imported, and as dotted names.
EVIL = [
    b"cposix\nsystem\n(S'touch {}'\ntR.",
    *(
        b"\x80\x04\x8c" + bytes([len(m)]) + m + b"\x8c" + bytes([len(n)]) + n + b"\x93X\x00\x00\x00\x00\x85R."
        for m, n in ((b"torch.serialization", b"os.system"), (b"torch", b"os.system"), (b"builtins", b"eval"))
    ),
]


@pytest.mark.parametrize("pickled", EVIL)
def test_a_hostile_metadata_runs_nothing(megatron, tmp_path, pickled, monkeypatch):
    copy = shutil.copytree(megatron, tmp_path / "copy")
    called = []
    monkeypatch.setattr(os, "system", called.append)
    change_metadata(copy, lambda _: pickled.replace(b"{}", str(tmp_path / "ran").encode()))
    with pytest.raises(CheckpointError, match=r"\.metadata: torn"):
        open_folder(copy)
    assert called == [] and not (tmp_path / "ran").exists()


def test_only_the_names_that_a_checkpoint_has_are_looked_up(megatron):
    from r1mega.formats.torch_dist import _Shell, _Unpickler

    for module, name in (("torch", "load"), ("torch.serialization", "os"), ("collections", "namedtuple")):
        assert _Unpickler(io.BytesIO()).find_class(module, name) is _Shell
    with pytest.raises(pickle.UnpicklingError, match=r"torch\.serialization\.os\.system"):
        _Unpickler(io.BytesIO()).find_class("torch.serialization", "os.system")


def test_a_megatron_folder_of_another_model(megatron, tmp_path):
    copy = shutil.copytree(megatron, tmp_path / "copy")
    manifest = json.loads((copy / "policy.json").read_text())
    manifest["model"]["num_hidden_layers"] = 4
    sign(copy, manifest)
    with pytest.raises(WeightMappingError, match=r"decoder\.layers\.3\.input_layernorm\.weight: missing"):
        open_folder(copy)
    manifest["model"]["num_hidden_layers"] = 2
    sign(copy, manifest)
    with pytest.raises(WeightMappingError, match=r"decoder\.layers\.2\.input_layernorm\.weight: unmapped"):
        open_folder(copy)
