"""`check` and `run` in this process, up to where a stage would begin, and a model's folder to begin from."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import typer

from r1mega import cli
from r1mega.errors import R1MegaError
from r1mega.preflight import verdicts

ROOT = Path(__file__).parents[2]


class Started(Exception):
    """Instead of a stage."""


def stop_at_start(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """No stage begins, and no verdict is kept but in `cache`."""

    def start(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(verdicts, "cache_dir", lambda: cache)
    monkeypatch.setattr(cli, "_run_stage", start)
    monkeypatch.setattr(cli, "_run_ranks", start)
    monkeypatch.setattr("r1mega.pipeline.chain._run_stage", start)


def answer(command: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and what is said on stderr."""
    capsys.readouterr()
    try:
        command()
    except R1MegaError as error:
        return 2, str(error)
    except Started:
        return 0, ""
    except typer.Exit as left:
        return left.exit_code, ""
    return 0, capsys.readouterr().err


def both(
    config: Path, overrides: Sequence[str], run_dir: Path, capsys: pytest.CaptureFixture[str], cluster: str = "laptop"
) -> tuple[tuple[int, str], tuple[int, str]]:
    """What `check` and `run` answer."""
    checked = answer(lambda: cli.check(config, cluster, list(overrides)), capsys)
    return checked, answer(lambda: cli.run(config, cluster, run_dir, list(overrides)), capsys)


def write_model(out: Path, *, weights: bool = True, **fields: object) -> Path:
    """A tiny Qwen2 whose weights are zero, with a tokenizer of one token a byte."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from r1mega.families.registry import read_model
    from r1mega.families.spec import Kind

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(out)
    own = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256, "vocab_size": 512}
    own |= {"max_position_embeddings": 1024, **fields}
    published = json.loads((ROOT / "configs/tiny/qwen2.json").read_text())
    (out / "config.json").write_text(json.dumps({**published, **own}))
    if weights:
        rows = [row for row in read_model(out).tensors() if row.kind is not Kind.COPY]
        tensors = {n: torch.zeros(s) for row in rows for n, s in zip(row.hf, row.hf_shapes, strict=True)}
        save_file(tensors, out / "model.safetensors")
    return out
