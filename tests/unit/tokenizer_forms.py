"""Small tokenizers in the forms that models are published with, and folders of them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

TEXT = ["the sum of two and two is four, and 12345 plus 1 is 12346\n\nhello world, it is not so "] * 20
THREE_DIGITS = r"\p{N}{1,3}|[^\p{N}]+"


def byte_level(special: tuple[str, ...], plain: tuple[str, ...] = (), split: str = THREE_DIGITS) -> Tokenizer:
    """A byte-level BPE whose pre-tokenizer is none of transformers' own: words run on into one another."""
    bpe = Tokenizer(models.BPE())
    parts = [pre.Split(Regex(split), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    bpe.pre_tokenizer = pre.Sequence(parts)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(special),
        show_progress=False,
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator(TEXT, trainer)
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return bpe


def with_bos(bpe: Tokenizer, bos: str, eos: str = "") -> Tokenizer:
    """Let it write bos before a text, and eos behind it."""
    roles = [(token, bpe.token_to_id(token)) for token in (bos, eos) if token]
    single = f"{bos} $A {eos}".strip()
    bpe.post_processor = processors.TemplateProcessing(single=single, special_tokens=roles)  # type: ignore[assignment]
    return bpe


def sentence_piece(*, bytes_too: bool = True) -> Tokenizer:
    """The form of Llama 2: spaces are marks, one is put before a text, and unknown letters are bytes."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {
        token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, "▁", *"abcdefghinorstuwx", "▁t", "▁a"])
    }
    bpe = Tokenizer(
        models.BPE(vocab, [("▁", "t"), ("▁", "a")], unk_token="<unk>", byte_fallback=bytes_too, fuse_unk=True)
    )
    bpe.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(parts)  # type: ignore[assignment]
    bpe.add_special_tokens(["<unk>", "<s>", "</s>"])
    return with_bos(bpe, "<s>")


def unigram() -> Tokenizer:
    """A unigram model with marks for spaces, as sentencepiece's converters write it."""
    pieces = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁", -2.0),
        *((c, -4.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789,?+"),
    ]
    model = Tokenizer(models.Unigram([*pieces, ("▁the", -3.0), ("▁two", -3.0)], unk_id=0))
    model.pre_tokenizer = pre.Metaspace(replacement="▁", prepend_scheme="always")  # type: ignore[assignment]
    model.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")  # type: ignore[assignment]
    model.add_special_tokens(["<unk>", "</s>"])
    return model


def save(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    model_type: str | None,
    cls: str | None,
    bos: str | None = None,
    eos: str = "<|end|>",
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A folder of tokenizer.json, tokenizer_config.json and config.json, as models are published."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": bos, "eos_token": eos, "clean_up_tokenization_spaces": False, **settings}
    named |= {"tokenizer_class": cls} if cls else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, **(config or {})}))
    return folder
