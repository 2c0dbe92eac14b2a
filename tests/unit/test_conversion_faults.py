"""Every fault of a Hugging Face folder has one clear message, and nothing is left behind."""

import json
import os
import shutil
import time
from dataclasses import replace

import pytest
import torch
from conversion_data import ONE, load_all, rewrite, tiny_spec, tokenizer, unique_tensors, write_folder
from safetensors.torch import save_file

from r1mega.conversion.convert import convert
from r1mega.conversion.folders import open_folder
from r1mega.conversion.verify import verify
from r1mega.errors import ConfigError, ConversionError, WeightMappingError
from r1mega.formats import companions
from r1mega.formats.companions import find_tokenizer

UP = "model.layers.1.mlp.experts.{}.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    spec = tiny_spec()
    return write_folder(tmp_path_factory.mktemp("hf") / "tiny", spec, unique_tensors(spec), num_files=2)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


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


def test_a_wrong_dtype(folder, tmp_path):
    def change(t):
        t["lm_head.weight"] = t["lm_head.weight"].to(torch.int8)
        t[UP.format(2)] = t[UP.format(2)].bfloat16()

    rewrite(folder, change)
    text = refused(folder, tmp_path)
    assert "tensor lm_head.weight has dtype I8, not read here" in text
    assert "experts.2.gate_proj.weight, model.layers.1.mlp.experts.2.up_proj.weight: dtypes differ" in text


def header_of(tensors):
    """A safetensors file of one byte an element, whose header says the dtypes given."""
    fields, end = {}, 0
    for name, dtype in tensors.items():
        fields[name] = {"dtype": dtype, "shape": [8], "data_offsets": [end, end + 8]}
        end += 8
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "U32", "U16", "U64", "F4", "F6_E2M3", "C64", "F8_E4M3FNUZ", "X9"])
def test_a_dtype_that_is_not_read_is_named_with_its_tensor_and_a_remedy(folder, tmp_path, dtype):
    first_file(folder).write_bytes(header_of({"a.weight": "BF16", "b.weight": dtype, "c.weight": dtype}))
    text = refused(folder, tmp_path)
    assert f"{first_file(folder)}: tensor b.weight has dtype {dtype}, not read here (and 1 tensors more)" in text
    assert "weights are read as F32, BF16, F16 or FP8 blocks" in text and "no safetensors header" not in text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e5m2, torch.int64, torch.uint8, torch.bool])
def test_a_dtype_that_no_weight_has_is_named_too(folder, tmp_path, dtype):
    rewrite(folder, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(dtype)}))
    assert "tensor model.norm.weight has dtype" in (text := refused(folder, tmp_path)) and "fetch the model" in text


def test_every_fault_of_the_tensors_is_listed_at_once(folder, tmp_path):
    def change(t):
        t["model.layers.9.surprise.weight"] = t.pop("model.norm.weight")
        t["model.layers.0.mlp.down_proj.weight"] = torch.zeros(3, 3)
        t["lm_head.weight"] = t["lm_head.weight"].to(torch.int32)

    rewrite(folder, change)
    save_file({UP.format(0): torch.zeros(64, 128)}, folder / "model-2.safetensors")
    text = refused(folder, tmp_path)
    for part in ("5 faults", "norm.weight: missing", "(3, 3)", "surprise.weight: unmapped", "found 2 times", "I32"):
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


def test_a_run_directory_is_not_taken_for_a_model(folder, tmp_path):
    """Its config.json is a stage's; the message names what inside it is a model."""
    run = tmp_path / "run"
    shutil.copytree(folder, run / "hf")
    (run / "config.json").write_text('{"stage": {}}')
    assert "no model_type, so not the config.json of a Hugging Face model" in refused(run, tmp_path, ConfigError)
    (run / "run.json").write_text("{}")
    for step in (9, 10):
        (run / f"checkpoints/step_{step}").mkdir(parents=True)
    inside = ", ".join(str(run / name) for name in ("hf", "checkpoints/step_9", "checkpoints/step_10"))
    assert refused(run, tmp_path, ConversionError).endswith(
        f"a run directory, not a model's folder; give one of {inside}"
    )


def test_copies_may_be_left_out(folder, whole, tmp_path):
    rewrite(
        folder, lambda t: {n: x for n, x in t.items() if "layers.3.embed" not in n and "shared_head.head" not in n}
    )
    convert(folder, tmp_path / "megatron", "megatron", None, ONE)
    convert(folder, tmp_path / "hf", "hf", None, ONE)  # written anew
    assert verify(tmp_path / "megatron", whole, None).num_tensors == 135
    assert load_all(tmp_path / "hf").keys() == load_all(whole).keys()


def test_a_source_that_changes_meanwhile_is_not_converted(folder, tmp_path, monkeypatch):
    """One byte of a file that has been read, in the same length; the time says so."""
    copy = companions.copy

    def change(*arguments):
        file = first_file(folder)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        os.utime(file, ns=(time.time_ns(), time.time_ns()))
        copy(*arguments)

    monkeypatch.setattr(companions, "copy", change)
    assert f"{folder}: changed while it was converted" in refused(folder, tmp_path, ConversionError)
