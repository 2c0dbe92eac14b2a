"""What belongs to a tokenizer travels along, from one folder: vocabularies, chat templates in folders, and code."""

import json
from dataclasses import replace

import pytest
from conversion_data import ONE, tiny_spec, unique_tensors, write_folder
from tokenizer_forms import byte_level, save

from r1mega.conversion.convert import convert
from r1mega.formats import companions

FILES = {
    "tokenizer.model": b"x",
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2",
    "added_tokens.json": b"{}",
    "special_tokens_map.json": b"{}",
    "chat_template.json": b"{}",
    "additional_chat_templates/tools.jinja": b"{{ messages }}",
    "additional_chat_templates/rag.jinja": b"{{ documents }}",
    "tokenization_own.py": b"from .shared import x\nimport os\n",
    "own.tiktoken": b"IQ== 0",
    "Fast.py": b"from .deeper import y\n",
    "deeper.py": b"",
    "shared.py": b"",
}
LEFT = ("unrelated.py", "additional_chat_templates/notes.txt", "optimizer.pt", "nested/deep.jinja")


@pytest.fixture
def folder(tmp_path):
    """A model whose tokenizer brings all of it, and files that are nobody's."""
    spec = tiny_spec()
    made = write_folder(tmp_path / "model", spec, unique_tensors(spec))
    code = {"AutoTokenizer": ["tokenization_own.Slow", "Fast.Fast"], "AutoProcessor": "somebody/else--there.Class"}
    (made / "tokenizer_config.json").write_text(json.dumps({"auto_map": code}))
    for name, content in {**FILES, **dict.fromkeys(LEFT, b"x")}.items():
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_bytes(content)
    return made


def found_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("form", ["hf", "megatron"])
def test_a_conversion_takes_them_along(folder, tmp_path, form):
    convert(folder, tmp_path / "out", form, None, ONE)
    found = found_in(tmp_path / "out")
    assert {name: found.get(name) for name in FILES} == FILES
    assert not found.keys() & {*LEFT, "there.py"}


def test_they_come_from_the_tokenizers_folder_alone(folder, tmp_path):
    spec = tiny_spec()
    other = write_folder(tmp_path / "other", spec, unique_tensors(spec))
    convert(folder, tmp_path / "out", "megatron", None, replace(ONE, tokenizer=other))
    assert not found_in(tmp_path / "out").keys() & FILES.keys()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"auto_map": null}', '{"auto_map": {"A": 3}}', '{"auto_map": {"A": [null]}}']
)
def test_a_tokenizer_config_without_code_names_none(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    assert companions.collect(None, tmp_path).keys() == {"tokenizer_config.json"}


def test_code_that_imports_itself_or_climbs_out_ends(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "secret.py").write_text("")
    names = {"A": ["x.X", "../secret.X", "a/b.X"]}
    (tmp_path / "a/tokenizer_config.json").write_text(json.dumps({"auto_map": names}))
    (tmp_path / "a/x.py").write_text("from .x import y\nfrom .y import z\nfrom ..secret import k\n")
    (tmp_path / "a/y.py").write_text("import .x\n")
    assert companions.collect(None, tmp_path / "a").keys() == {"tokenizer_config.json", "x.py", "y.py"}


FORMS = [
    ("qwen2", "TokenizersBackend"), ("qwen2", "Qwen2Tokenizer"), ("qwen2", None),
    ("qwen3", "PreTrainedTokenizerFast"),
    ("qwen3", "Qwen2TokenizerFast"), ("qwen3", None), ("llama", "TokenizersBackend"), ("llama", "LlamaTokenizerFast"),
    ("llama", None), ("deepseek_v3", "TokenizersBackend"), ("deepseek_v3", None),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "cls"), FORMS)
def test_a_card_warns_where_transformers_builds_another_tokenizer(tmp_path, model_type, cls):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    folder = save(byte_level(("<|end|>",)), tmp_path / "m", model_type=model_type, cls=cls)
    text = "the sum of two 12345 and so"
    own = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    theirs = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    companions.write_card(folder, None, library="transformers", title="m", rows={}, said=[])
    warned = "load it with `PreTrainedTokenizerFast.from_pretrained`" in (folder / "README.md").read_text()
    assert warned == (theirs != own)
