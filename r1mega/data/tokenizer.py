"""Tokenizers: the one loader, and a byte-level BPE for a tiny model, trained on the text it will read.

A tokenizer is what its tokenizer.json says. transformers 5 builds those of some model types (Qwen2's and Llama's
among them) anew around the vocabulary, with a normalizer, pre-tokenizer, decoder and post-processor of its own; what
a model was trained on is then read as other tokens. So the file's is what is loaded, whatever class is named.

In the tiny one every digit is a token, and so is a minus sign in front of a digit: arithmetic is learnt on columns
that never change shape. All else is free to merge across spaces, so a question's fixed wording becomes a few tokens;
this is what makes minutes of training on two cores enough. It begins every text with bos, as the documents do. The
tags of the format are added tokens but not special ones: they survive `skip_special_tokens=True`.
"""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from r1mega.data.template import END, TAGS, TINY
from r1mega.errors import DataError
from r1mega.runtime import files

log = logging.getLogger(__name__)

PAD, BOS, EOS, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|bos|>", END, "<|user|>", "<|assistant|>")
"""Ids 0 to 4, in this order."""

NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> Any:
    """Train on `texts` and save into `folder` as a Hugging Face tokenizer with the tiny chat template.

    The same texts give the same files. Training on a part of the corpus is enough (some thousand documents).

    Args:
        texts: what the model will read, prompts and answers alike, with or without special tokens.
        vocab_size: entries in all, special tokens and tags included; fewer where the text allows fewer merges.

    Returns: the loaded tokenizer.
    Raises: DataError when `vocab_size` cannot hold the bytes, special tokens and tags.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors, trainers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    if vocab_size < (least := NUM_BYTES + len(SPECIAL) + len(TAGS)):
        raise DataError(f"a vocabulary of {vocab_size} is too small: bytes, special tokens and tags take {least}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre.Sequence(  # type: ignore[assignment]
        [
            pre.Split(Regex("-(?=[0-9])"), "isolated"),  # before Digits, which would hide the digit from it
            pre.Digits(individual_digits=True),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((piece for text in texts for piece in _between_tokens(text)), trainer)
    bpe.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", special_tokens=[(BOS, SPECIAL.index(BOS))]
    )
    bpe.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TINY.chat_template
    _save(tokenizer, folder)
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved in `folder`, as its tokenizer.json says; without that file, as its class makes it.

    Raises:
        DataError: there is none, it does not load, its files contradict each other, or it has no end token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not (folder / "tokenizer_config.json").is_file():
        raise DataError(f"no tokenizer in {folder}: expected tokenizer_config.json and tokenizer.json there")
    stated = folder / "tokenizer.json"
    loader = PreTrainedTokenizerFast if stated.is_file() else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(folder, local_files_only=True)
        if stated.is_file():
            _put_back(tokenizer, stated)
        else:
            log.warning("%s has no tokenizer.json: its tokens are what transformers makes of other files", folder)
    except DataError:
        raise
    except Exception as error:  # the library raises almost anything on a broken file
        raise DataError(f"the tokenizer in {folder} does not load: {type(error).__name__}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer in {folder} names no eos_token: a model could never end its answer")
    return tokenizer


def _put_back(tokenizer: Any, file: Path) -> None:
    """Have a loaded tokenizer be what its file says, after transformers has put in what else it found or assumes."""
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(file))
    known = raw.get_vocab(with_added_tokens=True)
    lacking = [token for token in map(str, tokenizer.added_tokens_decoder.values()) if token not in known]
    if needed := [token for token in lacking if token in (tokenizer.eos_token, tokenizer.bos_token)]:
        raise DataError(
            f"{file} has no token {needed[0]!r}, the bos or eos token of the files beside it: they are of two "
            "tokenizers; fetch them again together"
        )
    for role, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and token in lacking:
            setattr(tokenizer, role, None)
    if lacking:
        more = getattr(tokenizer, "_extra_special_tokens", [])
        tokenizer._extra_special_tokens = [token for token in more if str(token) not in lacking]
        log.warning("%s lacks %s, named beside it: they are no tokens here", file, ", ".join(map(repr, lacking)))
    if raw.truncation or raw.padding:
        log.warning("%s truncates or pads: not done here, where texts are whole", file)
        raw.no_truncation()
        raw.no_padding()
    tokenizer._tokenizer = raw


def _between_tokens(text: str) -> list[str]:
    """The text without special tokens and tags: training would merge their letters and waste entries."""
    for token in (*SPECIAL, *TAGS):
        text = text.replace(token, "\0")
    return [piece for piece in text.split("\0") if piece]


def _save(tokenizer: Any, folder: Path) -> None:
    files.make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tokenizer-") as scratch:
        tokenizer.save_pretrained(scratch)
        # tokenizer_config.json last: `load_tokenizer` takes its presence for completeness.
        for path in sorted(Path(scratch).iterdir(), key=lambda p: p.name == "tokenizer_config.json"):
            files.sync(path)
            path.replace(folder / path.name)
    files.sync(folder)
