"""Examples before a question: read, drawn, and written in each template's own form, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from prompt_templates import BOS, R1, SMOLLM2, tokenizer_with

from r1mega.data.few_shot import Shot, drawn_shots
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import prompts
from r1mega.data.question import Question
from r1mega.data.settings import PromptSettings
from r1mega.data.template import R1_ZERO, TINY, render_prompt
from r1mega.errors import ConfigError, DataError
from r1mega.recipe.load import load_recipe

SHIPPED = Path(__file__).parents[2] / "configs/chat_templates"
THOUGHT = "<think>\n3 and 4 are 7.\n</think>\n\nIt is 7."
SHOT = Shot("What is 3 + 4?", THOUGHT, "own.jsonl, line 1")
ASKED = [Question("a", "math", "What is 2 + 2?", "4")]


def form(folder: Path, chat_template: str | None, *shots: Shot, **settings: Any) -> PromptForm:
    tokenizer = tokenizer_with(chat_template, folder / "model")
    return PromptForm(PromptSettings.model_validate({"template": "chat", **settings}), tokenizer, shots)


def written(asked: PromptForm) -> str:
    (prompt,) = prompts(ASKED, asked)
    return asked.tokenizer.decode(prompt.token_ids.tolist())


def file(folder: Path, *rows: Any) -> Path:
    (folder / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "shots.jsonl"


def test_examples_are_turns_before_the_question(tmp_path: Path):
    asked = form(tmp_path, SMOLLM2, SHOT, Shot("Hi?", "Yes."), system="Think.", prefill="<think>\n")
    turns = (
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"
        f"{THOUGHT}<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert written(asked).endswith(
        f"{turns}<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert asked.write("{question}").count(THOUGHT) == 1 and asked.prefill == "<think>\n"
    assert "3 + 4" not in asked.chat_template  # a model goes out without the examples


def test_a_named_template_writes_them_in_its_own_form(tmp_path: Path):
    asked = form(tmp_path, None, SHOT, template="r1_zero")
    said = written(asked)
    assert said.startswith(f"{BOS}A conversation between User and Assistant.")
    eos = asked.tokenizer.eos_token
    assert said.endswith(f" User: What is 3 + 4?. Assistant:{THOUGHT}{eos} User: What is 2 + 2?. Assistant:")


def test_a_server_is_sent_them_in_a_named_template():
    shown = [("3 + 4?", "7"), ("1 + 1?", "2")]
    assert render_prompt(R1_ZERO, "2 + 2?", shown).endswith(
        "</answer>. User: 3 + 4?. Assistant:7 User: 1 + 1?. Assistant:2 User: 2 + 2?. Assistant:"
    )
    assert render_prompt(TINY, "2 + 2?", shown[:1]) == "<|user|>3 + 4?<|assistant|>7<|user|>2 + 2?<|assistant|>"


def test_a_template_that_drops_their_thinking_is_refused(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"own\.jsonl, line 1: .*does not write the example word for word.*Jinja file"
    ):
        form(tmp_path, R1, SHOT)
    kept = form(tmp_path / "kept", None, SHOT, template=SHIPPED / "llama.jinja")
    assert THOUGHT in written(kept)


def test_an_example_that_spells_a_special_token_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"own\.jsonl, line 1: contains the special token <\|im_end\|>"):
        form(tmp_path, SMOLLM2, Shot("What?", "So.<|im_end|>", "own.jsonl, line 1"))


def test_they_are_drawn_by_the_seed(tmp_path: Path):
    rows = [{"question": f"Question {i}?", "response": f"{i}."} for i in range(12)]
    path = file(tmp_path, *rows)
    settings = PromptSettings(few_shot=path, num_shots=3)
    drawn = {seed: [shot.question for shot in drawn_shots(settings, seed)] for seed in range(4)}
    assert all(len(set(some)) == 3 for some in drawn.values()) and len(set(map(tuple, drawn.values()))) > 1
    assert [shot.question for shot in drawn_shots(settings, 2)] == drawn[2]
    assert drawn_shots(PromptSettings(), 1) == ()
    with pytest.raises(DataError, match=r"prompt\.num_shots: 13 examples asked for, and .*shots\.jsonl has 12"):
        drawn_shots(PromptSettings(few_shot=path, num_shots=13), 0)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "What?"}, "line 1"),
        ({"question": "What?", "response": 4}, "line 1"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 1: "),
        (
            {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant", "user", "assistant")]},
            "not 4 turns",
        ),
        ([], "line 1"),
    ],
)
def test_a_row_that_is_no_example_is_refused_with_its_place(row: Any, said: str, tmp_path: Path):
    with pytest.raises(DataError, match=said):
        drawn_shots(PromptSettings(few_shot=file(tmp_path, row)), 0)


def test_conversations_of_one_question_are_examples(tmp_path: Path):
    turns = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]
    for row in ({"messages": turns}, {"prompt": "3 + 4?", "response": "7"}, {"question": "3 + 4?", "response": "7"}):
        (shot,) = drawn_shots(PromptSettings(few_shot=file(tmp_path, row)), 0)
        assert (shot.question, shot.response) == ("3 + 4?", "7")


def test_only_rejection_sampling_shows_them(tmp_path: Path):
    root = Path(__file__).parents[2]
    path = file(tmp_path, {"question": "a", "response": "b"})
    for config in ("configs/tiny/r1_zero/1_rl.toml", "configs/tiny/r1_zero/2_eval.toml"):
        with pytest.raises(ConfigError, match=r"prompt\.few_shot: a \w+ stage asks without examples"):
            load_recipe(root / config, [f"prompt.few_shot={path}"])
    with pytest.raises(ConfigError, match=r"prompt\.num_shots: has no effect without prompt\.few_shot"):
        load_recipe(root / "configs/tiny/r1_zero/1_rl.toml", ["prompt.num_shots=2"])
