"""Two folders that differ: every mutation of a tensor is seen, every difference of the configs is named."""

import json
import shutil

import pytest
import torch
from conversion_data import ONE, rewrite, tiny_spec, unique_tensors, write_folder

from r1mega.conversion.convert import convert
from r1mega.conversion.verify import verify
from r1mega.errors import WeightMappingError


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


@pytest.mark.parametrize("tolerance", [None, 4.0])
def test_what_is_no_number_is_a_difference_at_any_tolerance(folder, megatron, tolerance):
    def change(t):
        t["model.norm.weight"][3] = float("nan")

    rewrite(folder, change)
    with pytest.raises(WeightMappingError, match=r"\(1 differences\):\n.*model\.norm\.weight: .*by up to nan"):
        verify(folder, megatron, tolerance)
