"""The chat template that a stage's model goes out with makes the very tokens that the stage asked."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from prompt_templates import SMOLLM2, tokenizer_with

from r1mega.config.cluster import Cluster
from r1mega.config.load import validate
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import prompts
from r1mega.data.question import Question
from r1mega.data.settings import PromptSettings
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.errors import DataError
from r1mega.recipe.load import load_recipe
from r1mega.runtime.run_dir import RunDir

RL = Path(__file__).parents[2] / "configs/tiny/r1_zero/1_rl.toml"
ASKED = [
    Question(str(i), "chain_sum", text, "3") for i, text in enumerate(("1 + 2 =", " 4 - 1\n", "{{ 5 }} - 2 <ü>"))
]


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


OWN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% else %}"
    "Problem: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}Solution:{% endif %}\n\n"
)
KINDS: dict[str, dict[str, str]] = {
    "tiny": {"template": "tiny"},
    "tiny, with a prefill": {"template": "tiny", "prefill": "<think>\n"},
    "r1_zero": {"template": "r1_zero"},
    "r1_zero, with a prefill": {"template": "r1_zero", "prefill": " <think>"},
    "SmolLM2's own": {"template": "chat"},
    "SmolLM2's own, with all": {"template": "chat", "system": "Be {{ brief }}.\n", "prefill": "<think>\n"},
    "a file": {"template": "own.jinja"},
    "a file, with all": {"template": "own.jinja", "system": "Be 'brief'.", "prefill": "<think>\n\n"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bos", [True, False])
def test_the_exported_tokenizer_makes_the_tokens_of_every_prompt(kind: str, bos: bool, tmp_path: Path):
    """transformers' AutoTokenizer is the oracle: of the folder that a stage leaves, told nothing but the question."""
    from r1mega.stages import tokenizers

    tokenizer = tokenizer_with(SMOLLM2, tmp_path / "base", bos=bos)
    (tmp_path / "own.jinja").write_text(OWN)
    settings = validate(PromptSettings, dict(KINDS[kind]), tmp_path / "config.toml")
    form = PromptForm(settings, tokenizer)
    asked = prompts(ASKED, form)
    tokenizers.write(tmp_path / "base", tmp_path / "out", tokenizers.chat_template_of(asked, form))
    for prompt in asked:
        assert rendered(tmp_path / "out", prompt.question) == tuple(prompt.token_ids)
        assert prompt.prefill == settings.prefill
        assert tokenizer.decode(prompt.token_ids.tolist()).endswith(settings.prefill)
    # One bos where the template, or for a named one the tokenizer, begins with it.
    ids = asked[0].token_ids.tolist()
    bos_id = tokenizer.bos_token_id
    assert ids.count(bos_id) == ids[:1].count(bos_id) == int("file" in kind or (bos and "SmolLM2" not in kind))
    assert settings.system in tokenizer.decode(ids)


def test_a_system_turn_of_ones_own_takes_the_place_of_the_trained_one(tmp_path: Path):
    from r1mega.stages import tokenizers

    form = PromptForm(PromptSettings(template="chat", system="Be brief."), tokenizer_with(SMOLLM2, tmp_path / "base"))
    tokenizers.write(tmp_path / "base", tmp_path / "out", form.chat_template)
    from transformers import AutoTokenizer

    turns = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "1 + 1 ="}]
    text: Any = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(turns, tokenize=False)
    assert "Be long." in text and "Be brief." not in text


def test_the_folder_has_the_template_wherever_readers_look(base: Path, tmp_path: Path):
    from r1mega.stages import tokenizers

    form = PromptForm(PromptSettings(), load_tokenizer(base))
    chat_template = tokenizers.chat_template_of(prompts(ASKED, form), form)
    tokenizers.write(base, tmp_path / "tokenizer", chat_template)
    assert {p.name for p in (tmp_path / "tokenizer").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "README.md"
    }  # fmt: skip
    assert json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())["chat_template"] == chat_template


def test_prompts_that_no_chat_template_makes_are_refused(base: Path):
    from r1mega.stages import tokenizers

    form = PromptForm(PromptSettings(), load_tokenizer(base))
    (first, *others) = prompts(ASKED, form)
    with pytest.raises(DataError, match="template tiny: as a chat template"):
        tokenizers.chat_template_of([dataclasses.replace(first, token_ids=first.token_ids[:-1]), *others], form)


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


def test_the_padding_of_a_model_of_scores_is_its_tokenizers(tmp_path: Path):
    """The tokenizer's where no text ends with it; another special token; none, rather than one that ends texts."""
    from check_and_run import write_model

    from r1mega.data.special_tokens import with_padding
    from r1mega.families.registry import read_model
    from r1mega.families.score_head import with_score_head
    from r1mega.stages import tokenizers

    (tmp_path / "model").mkdir()
    model = write_model(tmp_path / "model", weights=False)  # one special token, id 256, which ends texts
    scores, tokenizer = with_score_head(read_model(model)), load_tokenizer(model)
    tokenizer.pad_token = tokenizer.eos_token
    assert scores.pad > len(tokenizer) and with_padding(scores, tokenizer, last=256) == (scores, None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    for last, token in ((256, "<|b|>"), (258, "<|a|>")):
        padded, found = with_padding(scores, tokenizer, last=last)
        assert found == token and padded.pad == padded.hf["pad_token_id"] == tokenizer.convert_tokens_to_ids(token)
    tokenizer.pad_token = "<|a|>"
    assert with_padding(scores, tokenizer, last=256)[1] == "<|a|>"
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (model / name).write_text('{"pad_token": "x", "eos_token": "<|endoftext|>"}')
    for role, written in ((None, {}), ("<|a|>", {"pad_token": "<|a|>"})):
        tokenizers.write(model, tmp_path / "out", "", {"pad_token": role})
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            assert json.loads((tmp_path / "out" / name).read_text()) == {"eos_token": "<|endoftext|>", **written}
