"""A tokenizer is what its tokenizer.json says, whatever class or model type its folder names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizer_forms import byte_level, save, sentence_piece, unigram, with_bos
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers import pre_tokenizers as pre

from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.errors import DataError

TEXTS = (
    "two and two is four, not 12345",
    " a  b\n\nit's 1+1 =",
    "é 漢字 🙂 ﬁ",
    "",
    "<|end|> here<tag>",
    "don't DO 2024-01-02",
)
ENDS = ("<|begin|>", "<|end|>")
SPLIT = r"\p{N}| ?\p{L}+|\s+"


def prefixed() -> Tokenizer:
    """As GPT-2's with add_prefix_space."""
    tokenizer = byte_level(ENDS)
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
    return tokenizer


def lowercased() -> Tokenizer:
    tokenizer = byte_level(ENDS)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])  # type: ignore
    return tokenizer


def trimming() -> Tokenizer:
    """DeepSeek-V3's post-processor, which writes no bos."""
    tokenizer = byte_level(ENDS, ("<tag>",))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    return tokenizer


def undecoded() -> Tokenizer:
    tokenizer = byte_level(ENDS)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])  # type: ignore
    return tokenizer


FORMS: list[tuple[str | None, str | None, Callable[[], Tokenizer], str | None, str]] = [
    ("qwen2", "Qwen2Tokenizer", lambda: byte_level(ENDS), None, "<|end|>"),
    ("qwen2", None, lambda: byte_level(ENDS), None, "<|end|>"),
    ("qwen2", "Qwen2TokenizerFast", lambda: byte_level(ENDS, ("<tag>",), split=SPLIT), None, "<|end|>"),
    ("qwen3", "Qwen2Tokenizer", lowercased, None, "<|end|>"),
    ("llama", "LlamaTokenizerFast", lambda: byte_level(ENDS), "<|begin|>", "<|end|>"),
    ("llama", "LlamaTokenizer", lambda: with_bos(byte_level(ENDS), "<|begin|>"), "<|begin|>", "<|end|>"),
    ("llama", "LlamaTokenizer", sentence_piece, "<s>", "</s>"),
    ("llama", "LlamaTokenizerFast", unigram, None, "</s>"),
    ("deepseek_v3", "LlamaTokenizerFast", trimming, "<|begin|>", "<|end|>"),
    ("deepseek_v3", "PreTrainedTokenizerFast", undecoded, "<|begin|>", "<|end|>"),
    (None, "GPT2Tokenizer", prefixed, None, "<|end|>"),
    ("qwen2", "GPT2TokenizerFast", prefixed, None, "<|end|>"),
    ("qwen2", "TokenizersBackend", lambda: with_bos(byte_level(ENDS), *ENDS), "<|begin|>", "<|end|>"),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "cls", "make", "bos", "eos"), FORMS)
def test_the_ids_and_texts_are_those_of_tokenizer_json(tmp_path: Path, model_type, cls, make, bos, eos):
    """Held against the tokenizers library's own reading of the file."""
    save(make(), tmp_path, model_type=model_type, cls=cls, bos=bos, eos=eos)
    want, got = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), load_tokenizer(tmp_path)
    assert json.loads(got.backend_tokenizer.to_str()) == json.loads(want.to_str())
    for text in TEXTS:
        plain = want.encode(text, add_special_tokens=False).ids
        assert got(text, add_special_tokens=False)["input_ids"] == plain
        assert got(text)["input_ids"] == want.encode(text).ids
        assert got.decode(plain) == want.decode(plain, skip_special_tokens=False)
    assert got.eos_token_id == want.token_to_id(eos)
    assert got.bos_token_id == (None if bos is None else want.token_to_id(bos))
    assert len(got) == want.get_vocab_size(with_added_tokens=True)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "deepseek_v3"])
def test_the_tiny_tokenizer_is_the_same_in_every_model_s_folder(tmp_path: Path, model_type: str):
    question = "State the final answer to the following arithmetic problem: 7 - 2 + 5 ="
    trained = train_tokenizer([f"<|user|>{question}<|assistant|>10"] * 50, 352, tmp_path)
    want = trained(question)["input_ids"]
    assert len(want) == 8  # bos, the wording, and each digit and sign
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert load_tokenizer(tmp_path)(question)["input_ids"] == want


def test_what_stands_beside_tokenizer_json_and_not_in_it_is_no_token(tmp_path: Path, caplog):
    token = {"content": "<|more|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pad_token": "[PAD]"}, "'[PAD]'"),
        ({"unk_token": "<unk>", "pad_token": "<|end|>"}, "'<unk>'"),
        ({"extra_special_tokens": ["<|foo|>"]}, r"'<|foo|>'"),
        ({"added_tokens_decoder": {"700": {**token, "special": True}}}, "'<|more|>'"),
    ]
    for settings, names in cases:
        caplog.clear()
        save(byte_level(ENDS), tmp_path, model_type="qwen2", cls="Qwen2Tokenizer", **settings)
        got, want = load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        assert [r.getMessage() for r in caplog.records] == [
            f"{tmp_path / 'tokenizer.json'} lacks {names}, named beside it: they are no tokens here"
        ]
        assert len(got) == want.get_vocab_size()
        assert got("<|foo|>[PAD]")["input_ids"] == want.encode("<|foo|>[PAD]").ids
        assert {"[PAD]", "<unk>", "<|foo|>", "<|more|>"}.isdisjoint(got.all_special_tokens)
    for role in ("bos_token", "eos_token"):
        wrong: dict[str, Any] = {role: "[X]"}
        save(byte_level(ENDS), tmp_path, model_type="qwen2", cls="Qwen2Tokenizer", **wrong)
        with pytest.raises(DataError, match=r"tokenizer.json has no token '\[X\]', the bos or eos token of"):
            load_tokenizer(tmp_path)


def test_a_file_that_truncates_and_pads_has_whole_texts(tmp_path: Path, caplog):
    tokenizer = byte_level(ENDS)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=64)
    save(tokenizer, tmp_path, model_type="qwen2", cls="Qwen2Tokenizer")
    text = "two and two is four, not 12345"
    want = byte_level(ENDS).encode(text).ids
    assert len(want) > 2
    assert load_tokenizer(tmp_path).backend_tokenizer.encode(text).ids == want
    assert "truncates or pads" in caplog.text


def test_a_folder_without_tokenizer_json_is_what_its_class_makes_of_it_and_says_so(tmp_path: Path, caplog):
    from transformers import Qwen2Tokenizer

    letters = sorted(pre.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*letters, "<|endoftext|>"])}
    Qwen2Tokenizer(vocab=vocab, merges=[]).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path)("ab")["input_ids"] == [vocab["a"], vocab["b"]]
    assert "has no tokenizer.json" in caplog.text
