"""The chat template that a stage's model goes out with makes the very tokens that the stage asked."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from r1mega.buffers import Int32s
from r1mega.config.cluster import Cluster
from r1mega.data.prompts import prompts
from r1mega.data.question import Question
from r1mega.data.template import R1_ZERO, TINY, Template
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.errors import DataError
from r1mega.recipe.load import load_recipe
from r1mega.runtime.run_dir import RunDir

RL = Path(__file__).parents[2] / "configs/tiny/r1_zero/1_rl.toml"
ASKED = [
    Question(str(i), "chain_sum", text, "3") for i, text in enumerate(("1 + 2 =", " 4 - 1\n", "{{ 5 }} - 2 <ü>"))
]
THINKING = Template("thinking", "Be {brief}.\n", "<|user|>", "\n", "<|assistant|>", prefill="<think>\n")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's tokenizer with a chat template of its own, wherever readers look for one."""
    folder = tmp_path_factory.mktemp("base")
    train_tokenizer([f"<|user|>{q.text}<|assistant|>1+2=3" for q in ASKED] * 20, 340, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "theirs"}))
    for name in ("chat_template.jinja", "chat_template.json", "LICENSE"):
        (folder / name).write_text("theirs")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def rendered(folder: Path, question: str) -> tuple[int, ...]:
    """The tokens that a user of the exported folder sends, by transformers alone."""
    from transformers import AutoTokenizer

    turn = [{"role": "user", "content": question}]
    made: Any = AutoTokenizer.from_pretrained(folder).apply_chat_template(turn, add_generation_prompt=True)
    return tuple(made["input_ids"])


@pytest.mark.parametrize("template", [TINY, R1_ZERO, THINKING])
@pytest.mark.parametrize("begin", [(), (1,), (0, 1)])
def test_it_makes_the_tokens_of_every_prompt(base: Path, tmp_path: Path, template: Template, begin: tuple[int, ...]):
    """Whatever stands before the text: nothing, a bos, or something else."""
    from r1mega.stages import tokenizers

    tokenizer = load_tokenizer(base)
    asked = prompts(ASKED, tokenizer, template)
    text = tokenizer(template.user_open + "1", add_special_tokens=False)["input_ids"]
    assert len(text) > 1
    written = len(asked[0].token_ids) - len(_text_ids(tokenizer, template, asked[0].question))
    asked = [dataclasses.replace(p, token_ids=Int32s(begin) + p.token_ids[written:]) for p in asked]
    chat_template = tokenizers.chat_template_of(asked, template, tokenizer)
    tokenizers.write(base, tmp_path / "tokenizer", chat_template)
    for prompt in asked:
        assert rendered(tmp_path / "tokenizer", prompt.question) == tuple(prompt.token_ids)
    assert {p.name for p in (tmp_path / "tokenizer").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "README.md"
    }  # fmt: skip
    assert json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())["chat_template"] == chat_template


def _text_ids(tokenizer: Any, template: Template, question: str) -> list[int]:
    whole = template.preamble + template.user_open + question + template.user_close + template.assistant_open
    return tokenizer(whole + template.prefill, add_special_tokens=False)["input_ids"]


def test_prompts_that_no_chat_template_makes_are_refused(base: Path):
    from r1mega.stages import tokenizers

    tokenizer = load_tokenizer(base)
    (first, *others) = prompts(ASKED, tokenizer, TINY)
    with pytest.raises(DataError, match="template tiny: as a chat template"):
        tokenizers.chat_template_of(
            [dataclasses.replace(first, token_ids=first.token_ids[:-1]), *others], TINY, tokenizer
        )


def test_an_rl_run_exports_the_template_it_trained_with(base: Path, make_policy, tmp_path: Path, spec):
    """From the questions of its config to the folder that it leaves, whose base's template was another."""
    from r1mega.stages.questions import make_questions
    from r1mega.weights.hf_io import export

    policy = make_policy()
    export(policy, tmp_path / "base", base)
    config = load_recipe(
        RL, [f"model.path={tmp_path / 'base'}", "questions.0.num=40", "evaluation.questions.0.num=5"]
    )
    assert config.stage == "grpo"
    run = RunDir(tmp_path / "run", config, Cluster(device="cpu"), resume=False)
    try:
        asked = make_questions(config, run)
        export(policy, run.hf, run.tokenizer)
    finally:
        run.close()
    assert "theirs" in (tmp_path / "base/chat_template.jinja").read_text()
    for prompt in [*asked.train[:5], *asked.held_out]:
        assert rendered(run.hf, prompt.question) == tuple(prompt.token_ids)
    assert "license: mit" in (run.hf / "README.md").read_text() and (run.hf / "LICENSE").read_text() == "theirs"
