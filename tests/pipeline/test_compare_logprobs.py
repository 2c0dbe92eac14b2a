"""tools/compare_logprobs.py on a tiny model: the three engines agree, and a changed weight is seen."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from conversion_data import ONE, tiny_spec, write_folder

from r1mega.conversion.convert import convert
from r1mega.data.pretrain_text import documents
from r1mega.data.settings import AnswerStyles
from r1mega.data.sources.reasoning_gym import Task
from r1mega.data.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
TASKS = (Task(name="chain_sum", params={"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}),)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Hugging Face folder, its Megatron form, and the Megatron form of another model."""
    import torch

    folder = tmp_path_factory.mktemp("compare")
    styles = AnswerStyles(think=0.25, tags=0.25, steps=0.25, plain=0.25)
    train_tokenizer([d.prompt + d.answer for d in documents(TASKS, styles, 200, 0)], 352, folder / "tok")
    spec = tiny_spec(vocab_size=352)
    for name, seed in (("hf", 0), ("other", 1)):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for row in spec.tensors():
            for hf, shape in zip(row.hf, row.hf_shapes, strict=True):
                drawn = torch.randn(shape, generator=generator)
                tensors[hf] = torch.ones(shape) if "norm" in hf else 0.05 * drawn
        for copy, original in (("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")):
            tensors[f"model.layers.3.{copy}.weight"] = tensors[f"{original}.weight"].clone()
        write_folder(folder / name, spec, tensors)
        options = dataclasses.replace(ONE, tokenizer=folder / "tok")
        convert(folder / name, folder / f"{name}_megatron", "megatron", None, options)
        (folder / name / "tokenizer.json").write_bytes((folder / "tok" / "tokenizer.json").read_bytes())
    return folder


def compare(*words):
    command = [sys.executable, str(ROOT / "tools" / "compare_logprobs.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1700)


def test_transformers_and_a_converted_folder_agree(folders):
    engines = ("--engines", "transformers", "megatron")
    done = compare(folders / "hf", "--megatron", folders / "hf_megatron", *engines)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "transformers - megatron: |difference| mean" in done.stdout
    other = compare(folders / "hf", "--megatron", folders / "other_megatron", *engines)
    assert other.returncode == 1, other.stdout + other.stderr


@pytest.mark.vllm
@pytest.mark.slow
def test_the_three_engines_agree(folders):
    done = compare(folders / "hf")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "megatron - vllm" in done.stdout


def test_a_folder_without_a_tokenizer_is_one_message(folders):
    done = compare(folders / "hf" / "..")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
