"""Inverse frequencies that a folder keeps beside its weights: held against config.json, and left out."""

import math

import pytest
import torch
from conversion_data import ONE, load_all, unique_tensors, write_folder

from r1mega.conversion.convert import convert
from r1mega.conversion.describe import describe
from r1mega.errors import WeightMappingError
from r1mega.families.registry import FAMILIES
from r1mega.formats.hf_folder import HFFolder

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
}
OLD = "model.layers.{}.self_attn.rotary_emb.inv_freq"
NEW = "model.rotary_emb.inv_freq"
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def by_hand(theta=10000.0, dim=32):
    """theta^(-2i / dim), in double precision."""
    return torch.tensor([theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)


def of_llama3():
    """Llama 3.1's rule, pair by pair: short wavelengths stay, long ones are slowed, those between mixed."""
    found = []
    for f in by_hand().tolist():
        wavelength = 2 * math.pi / f
        if wavelength > 64 / 1.0:
            f = f / 8
        elif wavelength >= 64 / 4.0:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            f = (1 - smooth) * f / 8 + smooth * f
        found.append(f)
    return torch.tensor(found, dtype=torch.float64)


def folder(path, buffers, **changes):
    spec = FAMILIES["llama"]({**LLAMA, **changes})
    return write_folder(path, spec, {**unique_tensors(spec), **buffers})


RIGHT = [
    ({OLD.format(i): by_hand().float() for i in range(2)}, {}),
    ({OLD.format(i): by_hand().half() for i in range(2)}, {}),
    ({OLD.format(i): by_hand().bfloat16() for i in range(2)}, {}),
    ({OLD.format(0): by_hand().half().float()}, {}),  # kept in 16 bits for a while
    ({OLD.format(1): by_hand().double()}, {}),
    ({NEW: by_hand().float()}, {}),
    ({NEW: by_hand(500000.0).float()}, {"rope_theta": 500000.0}),
    ({NEW: by_hand(dim=16).float()}, {"head_dim": 16}),
    ({NEW: of_llama3().float()}, {"rope_scaling": LLAMA3}),
    ({}, {}),
]


@pytest.mark.parametrize(("buffers", "changes"), RIGHT)
def test_those_of_the_models_positions_are_left_out(tmp_path, buffers, changes):
    source = folder(tmp_path / "old", buffers, **changes)
    opened = HFFolder(source)
    assert sorted(opened.left_out) == sorted(buffers)
    assert any("inverse frequencies" in line for line in describe(source)) == bool(buffers)
    report = convert(source, tmp_path / "new", "hf", None, ONE)
    assert report.num_left_out == len(buffers)
    assert load_all(tmp_path / "new").keys() == load_all(source).keys() - buffers.keys()


WRONG = [
    (
        {OLD.format(1): by_hand(10050.0).float()},
        {},
        r"layers\.1.*element \d+ is .*rope_theta = 10000.*mend rope_theta",
    ),
    ({OLD.format(0): by_hand(500000.0).half()}, {}, "element"),
    ({NEW: by_hand().float()}, {"rope_scaling": LLAMA3}, "and its scaling"),
    ({NEW: of_llama3().float()}, {}, "element"),
    ({NEW: by_hand(dim=64).float()}, {}, r"float32 \(32,\), expected floats \(16,\)"),
    ({NEW: torch.ones(16, dtype=torch.int32)}, {}, "expected floats"),
    ({NEW: torch.full((16,), float("nan"))}, {}, "element"),
    ({OLD.format(2): by_hand().float()}, {}, "unmapped"),  # of a layer that the model lacks
    ({"model.layers.0.self_attn.rotary_emb.cos_cached": by_hand().float()}, {}, "unmapped"),
]


@pytest.mark.parametrize(("buffers", "changes", "named"), WRONG)
def test_those_of_other_positions_are_refused(tmp_path, buffers, changes, named):
    with pytest.raises(WeightMappingError, match=r"\(1 faults\)") as fault:
        HFFolder(folder(tmp_path / "old", buffers, **changes))
    assert fault.match(named)
