"""Every fault of a folder has one clear message, and every mutation of its tensors is seen."""

import argparse
import errno
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conversion_data import ONE, load_all, tiny_spec, tokenizer, unique_tensors, write_folder
from safetensors.torch import save_file
from torch.distributed.checkpoint import metadata as dcp

from r1mega.conversion.convert import convert
from r1mega.conversion.folders import open_folder
from r1mega.conversion.verify import verify
from r1mega.errors import CheckpointError, ConfigError, ConversionError, DataError, R1MegaError, WeightMappingError
from r1mega.runtime import files
from r1mega.trainer.manifest import digest
from r1mega.weights.companions import find_tokenizer

UP = "model.layers.1.mlp.experts.{}.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    spec = tiny_spec()
    return write_folder(tmp_path_factory.mktemp("hf") / "tiny", spec, unique_tensors(spec), num_files=2)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture(scope="module")
def megatron(whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("meg") / "tiny"
    convert(whole, out, "megatron", None, ONE)
    return out


def refused(folder, tmp_path, error=WeightMappingError):
    """The message with which the folder is refused; nothing is left behind."""
    with pytest.raises(error) as fault:
        convert(folder, tmp_path / "out", "megatron", None, ONE)
    assert not (tmp_path / "out").exists()
    return str(fault.value)


def first_file(folder):
    return sorted(folder.glob("*.safetensors"))[0]


def test_a_truncated_file(folder, tmp_path):
    file = first_file(folder)
    size = file.stat().st_size
    os.truncate(file, size - 1)
    text = refused(folder, tmp_path)
    assert f"{file}: truncated: {size - 1} bytes, its header promises {size}" in text
    os.truncate(file, 5)
    assert f"{file}: truncated, or not a safetensors file" in refused(folder, tmp_path)


def test_a_file_that_is_too_long_or_has_no_header(folder, tmp_path):
    file = first_file(folder)
    with file.open("ab") as handle:
        handle.write(b"x")
    assert "too long" in refused(folder, tmp_path)
    file.write_bytes((9).to_bytes(8, "little") + b"not json!" + b"x" * 100)
    assert "no safetensors header" in refused(folder, tmp_path)


def test_a_wrong_index(folder, tmp_path):
    index = folder / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    a = "model.embed_tokens.weight"
    fields["weight_map"][a] = next(f for f in fields["weight_map"].values() if f != fields["weight_map"][a])
    dropped = fields["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(fields))
    text = refused(folder, tmp_path)
    assert f"{a}: model.safetensors.index.json says" in text
    assert f"model.norm.weight: in {dropped}, not in" in text
    fields["weight_map"]["model.norm.weight"] = "model-00009-of-00009.safetensors"
    index.write_text(json.dumps(fields))
    assert "model-00009-of-00009.safetensors: missing" in refused(folder, tmp_path)
    index.write_text("[]")
    assert "expected a JSON object" in refused(folder, tmp_path)


def test_what_is_no_file_is_not_blamed_on_an_index_that_is_not_there(folder, tmp_path):
    rewrite(folder, lambda t: None)
    (folder / "x.safetensors").symlink_to(tmp_path / "nowhere")
    (folder / "y.safetensors").mkdir()
    text = refused(folder, tmp_path)
    assert all(f"{folder / n}.safetensors: no file, or a broken link" in text for n in "xy") and "index" not in text


def rewrite(folder, change):
    """The folder's tensors, changed, in one file."""
    tensors = load_all(folder)
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    tensors = change(tensors) or tensors
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def test_a_wrong_dtype(folder, tmp_path):
    def change(t):
        t["lm_head.weight"] = t["lm_head.weight"].to(torch.int8)
        t[UP.format(2)] = t[UP.format(2)].bfloat16()

    rewrite(folder, change)
    text = refused(folder, tmp_path)
    assert "lm_head.weight: dtype int8" in text
    assert "experts.2.gate_proj.weight, model.layers.1.mlp.experts.2.up_proj.weight: dtypes differ" in text


def test_every_fault_of_the_tensors_is_listed_at_once(folder, tmp_path):
    def change(t):
        t["model.layers.9.surprise.weight"] = t.pop("model.norm.weight")
        t["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 3)
        t["lm_head.weight"] = t["lm_head.weight"].to(torch.int32)

    rewrite(folder, change)
    save_file({UP.format(0): torch.zeros(64, 128)}, folder / "model-2.safetensors")
    text = refused(folder, tmp_path)
    for part in ("5 faults", "norm.weight: missing", "(3, 3)", "surprise.weight: unmapped", "found 2 times", "int32"):
        assert part in text


def test_other_faults_of_a_folder(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "'gpt2' is not supported" in refused(folder, tmp_path, ConfigError)
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 4}))
    assert "sliding_window" in refused(folder, tmp_path, ConfigError)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(folder, tmp_path, ConversionError)
    convert(folder, tmp_path / "with", "megatron", None, replace(ONE, without_tokenizer=True))
    assert not (tmp_path / "with" / "tokenizer_config.json").exists()
    assert (tmp_path / "with" / "LICENSE").exists()
    for missing in ("nowhere", "."):
        with pytest.raises(ConversionError, match=r"no such folder|neither"):
            open_folder(tmp_path / missing)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    assert "no safetensors file" in refused(folder, tmp_path)


def test_a_tokenizer_from_elsewhere_comes_whole_and_alone(whole, tmp_path):
    """Files of two tokenizers make none, and another tokenizer is no other licence."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(tokenizer("a", "b"))
    for name in ("LICENSE", "generation_config.json", "modeling_x.py"):
        (other / name).write_text("of the other model")
    convert(whole, tmp_path / "out", "megatron", None, replace(ONE, tokenizer=other))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == tokenizer("a", "b")
    assert not any((tmp_path / "out" / n).exists() for n in ("tokenizer_config.json", "chat_template.jinja"))
    for name in ("LICENSE", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / "out" / "modeling_x.py").exists()
    with pytest.raises(ConversionError, match="no tokenizer"):
        convert(whole, tmp_path / "out2", "megatron", None, replace(ONE, tokenizer=tmp_path))


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path):
    """An unrelated folder two levels up is no run; a tokenizer has no more tokens than the model, and has some."""
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(tokenizer("a"))
    with pytest.raises(ConversionError, match="no tokenizer"):
        find_tokenizer(model, None, 384)
    (tmp_path / "run.json").touch()
    (tmp_path / "checkpoints" / "step_1").mkdir(parents=True)
    assert find_tokenizer(tmp_path / "checkpoints" / "step_1", None, 384) == tmp_path / "tokenizer"
    for text, named in (
        (tokenizer(*map(str, range(385))), "ids up to 384, the model has 384"),
        (tokenizer(), "without tokens"),
        ("", "not a tokenizer"),
        ('{"a": 1}', "not a tokenizer"),
    ):
        (model / "tokenizer.json").write_text(text)
        with pytest.raises(ConversionError, match=named):
            find_tokenizer(model, None, 384)


def swap(a, b):
    def change(t):
        for part in ("gate_proj", "up_proj", "down_proj"):
            x, y = (f"model.layers.1.mlp.experts.{e}.{part}.weight" for e in (a, b))
            t[x], t[y] = t[y], t[x]

    return change


def off_by_one_layer(t):
    """Layers 1 and 2 each a place further on: the names are all there."""
    return {
        n.replace("layers.1.", "layers.X.").replace("layers.2.", "layers.1.").replace("layers.X.", "layers.2."): x
        for n, x in t.items()
    }


def transpose(t):
    name = "model.layers.2.self_attn.o_proj.weight"
    t[name] = t[name].T.contiguous()


def one_bit(t):
    t["model.layers.1.mlp.gate.e_score_correction_bias"].view(torch.int32)[7] ^= 1


@pytest.mark.parametrize(
    ("change", "named", "count"),
    [
        (swap(0, 5), "experts.5.down_proj", 6),
        (off_by_one_layer, "layers.2.input_layernorm", 2 * 38),
        (transpose, "layers.2.self_attn.o_proj", 1),
        (one_bit, "layers.1.mlp.gate.e_score_correction_bias: 1 of 8", 1),
    ],
)
def test_mutations_that_keep_every_shape_are_seen_by_verify(folder, megatron, tmp_path, change, named, count):
    rewrite(folder, change)
    with pytest.raises(WeightMappingError, match=rf"\({count} differences\)") as fault:
        verify(folder, megatron, None)
    assert named in str(fault.value)
    # Converted as it is, it differs from the other in Megatron's form as well.
    convert(folder, tmp_path / "converted", "megatron", None, ONE)
    with pytest.raises(WeightMappingError, match=rf"\({count} differences\)"):
        verify(megatron, tmp_path / "converted", None)


def dropped_bias(t):
    del t["model.layers.1.mlp.gate.e_score_correction_bias"]


def transposed_kernel(t):
    t["model.layers.0.mlp.down_proj.weight"] = t["model.layers.0.mlp.down_proj.weight"].T


def layer_too_far(t):
    return {n.replace("model.layers.3.", "model.layers.4."): x for n, x in t.items()}


def copy_that_differs(t):
    t["model.layers.3.embed_tokens.weight"].view(torch.int32)[383, 127] += 1
    t["model.layers.3.shared_head.head.weight"][0, 0] += 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dropped_bias, r"\(1 faults\).*e_score_correction_bias: missing"),
        (transposed_kernel, r"\(1 faults\).*down_proj.weight: shape \(256, 128\)"),
        (layer_too_far, r"layers.4.enorm.weight: unmapped"),
        (copy_that_differs, r"\(2 faults\).*embed_tokens.*shared_head.head.weight: differs from lm_head.weight"),
    ],
)
def test_mutations_that_break_the_mapping_are_refused(folder, tmp_path, change, named):
    rewrite(folder, change)
    with pytest.raises(WeightMappingError, match="(?s)" + named):
        convert(folder, tmp_path / "out", "megatron", None, ONE)


def test_copies_may_be_left_out(folder, whole, tmp_path):
    rewrite(
        folder, lambda t: {n: x for n, x in t.items() if "layers.3.embed" not in n and "shared_head.head" not in n}
    )
    convert(folder, tmp_path / "megatron", "megatron", None, ONE)
    convert(folder, tmp_path / "hf", "hf", None, ONE)  # written anew
    assert verify(tmp_path / "megatron", whole, None).num_tensors == 135
    assert load_all(tmp_path / "hf").keys() == load_all(whole).keys()


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
    from r1mega.trainer.torch_dist import _Shell, _Unpickler

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


def test_configs_that_differ_are_named(folder, megatron):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}))
    with pytest.raises(WeightMappingError, match=r"\(1 diff.*:\n.*: rope\.theta = 500000\.0 and 10000\.0"):
        verify(folder, megatron, None)
    # The same model in transformers 5's words.
    new = {k: v for k, v in config.items() if k not in ("rope_theta", "rope_scaling")}
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "id2label": {"0": "x"}}
    new["eos_token_id"] = [config["eos_token_id"]]
    (folder / "config.json").write_text(json.dumps(new))
    assert verify(folder, megatron, None).largest == 0


def test_a_tolerance_is_kept_to(folder, megatron):
    def change(t):
        for name in ("lm_head.weight", "model.layers.3.shared_head.head.weight"):
            t[name][0, 0] += 4

    rewrite(folder, change)
    with pytest.raises(WeightMappingError, match=r"lm_head.*up to 4, more than 3"):
        verify(folder, megatron, 3.0)
    assert verify(folder, megatron, 4.0).largest == 4.0


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small file system")
def test_a_full_disk(whole, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        with pytest.raises(ConversionError, match=r"disk is full: 0\.0 GB are needed"):
            convert(whole, small / "out", "megatron", None, ONE)
        # Filled up by others meanwhile: the first part is kept, and the same command goes on from it.
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
        with pytest.raises(ConversionError, match=r"disk is full; what is written is kept"):
            convert(whole, small / "out", "megatron", None, ONE)
        assert not (small / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=30m", str(small)], check=True)
        assert convert(whole, small / "out", "megatron", None, ONE).num_kept > 0
        assert verify(small / "out", whole, None).largest == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("flush", ["fsync", "fdatasync"])
@pytest.mark.parametrize("form", ["megatron", "hf"])
def test_other_faults_of_the_system_are_not_called_a_full_disk(whole, tmp_path, monkeypatch, flush, form):
    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, flush, refuse)
    monkeypatch.setattr(files, "FLUSH_BYTES", 1)
    with pytest.raises(OSError, match="Input/output"):
        convert(whole, tmp_path / "out", form, None, ONE)
    assert not (tmp_path / "out").exists()
    assert not issubclass(OSError, R1MegaError)


def test_prompts_that_cannot_be_compared_are_refused(tmp_path):
    file = Path(__file__).parents[2] / "tools" / "compare_logprobs.py"
    found = importlib.util.spec_from_file_location("compare_logprobs", file)
    tool = importlib.util.module_from_spec(found)
    found.loader.exec_module(tool)
    with pytest.raises(DataError, match=r"nosuch\.txt: cannot be read"):
        tool.read_prompts(tmp_path / "nosuch.txt")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match=r"empty\.txt: no prompts"):
        tool.read_prompts(tmp_path / "empty.txt")
    with pytest.raises(ConfigError, match="two different ones"):
        tool.compare(argparse.Namespace(model=tmp_path, engines=["vllm"], prompts=None, megatron=None, bound=1e-4))
    words = json.loads(tokenizer("a", "b"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**words, "pre_tokenizer": {"type": "Whitespace"}}))
    assert tool.tokenise(tmp_path, ["a b"], tiny_spec()) == [[0, 1]]
    with pytest.raises(DataError, match="a prompt has 3 tokens, the model max_position_embeddings = 2"):
        tool.tokenise(tmp_path, ["a b a"], tiny_spec(max_position_embeddings=2))
