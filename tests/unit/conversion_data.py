"""Hugging Face folders for the conversion's tests, written with the safetensors package and not with our writer."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from trainer_data import TINY

from r1mega.conversion.convert import Options
from r1mega.families.registry import model_of
from r1mega.families.spec import Kind

ONE = Options(num_processes=1, part_bytes=1 << 20)
"""In this process, in several parts."""


def tiny_spec(**changes):
    return model_of({**json.loads(TINY.read_text()), **changes}, TINY)


def unique_tensors(spec, dtype=torch.float32):
    """No two elements alike over the whole model in fp32; in 16 bits, none alike that are less than 2^14 apart."""
    tensors, start = {}, 1
    for row in spec.tensors():
        for name, shape in zip(row.hf, row.hf_shapes, strict=True):
            numbers = torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.int32)
            own = torch.float32 if row.kind is Kind.BUFFER else dtype
            # Of 16 bits, small patterns: finite numbers all of them.
            narrow = (numbers % (1 << 14)).to(torch.int16)
            tensor = numbers.float() if own is torch.float32 else narrow.view(own)
            tensors[name] = tensor.view(shape).contiguous()
            start += tensor.numel()
    assert start < 1 << 24
    for row in spec.tensors():
        if row.kind is Kind.COPY:
            original = next(r for r in spec.tensors() if r.megatron == row.megatron and r.kind is not Kind.COPY)
            tensors[row.hf[0]] = tensors[original.hf[0]].clone()
    return tensors


def tokenizer(*tokens):
    """A tokenizer.json of words, with ids from 0."""
    vocab = {token: i for i, token in enumerate(tokens)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    empty = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return json.dumps({"version": "1.0", **dict.fromkeys(empty), "added_tokens": [], "model": model})


def write_folder(folder: Path, spec, tensors, num_files=1, **config):
    """A whole Hugging Face folder, with a tokenizer, a chat template, a licence and a card."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**spec.hf, **config}))
    (folder / "tokenizer.json").write_text(tokenizer("a"))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "LICENSE").write_text("MIT")
    (folder / "USE_POLICY.md").write_text("for good")
    (folder / "README.md").write_text("---\nlicense: mit\nlicense_link: LICENSE\ntags:\n- x\n---\n# theirs\n")
    names = list(tensors)
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i in range(num_files):
        file = f"model-{i + 1:05d}-of-{num_files:05d}.safetensors"
        own = names[i::num_files]
        save_file({n: tensors[n] for n in own}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def rewrite(folder, change):
    """The folder's tensors, changed, in one file."""
    tensors = load_all(folder)
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    tensors = change(tensors) or tensors
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def load_all(folder: Path):
    """Every tensor of a folder, by the safetensors package."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors = load_file(file)
        assert not tensors.keys() & found.keys()
        found |= tensors
    return found


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype is tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(bits(found[name]), bits(tensor)), name
