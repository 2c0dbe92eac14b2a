"""What a reward model reads, against transformers' own rendering and tokenisation of the same turns."""

import copy
from pathlib import Path
from typing import Any

import pytest
from prompt_templates import QWEN3, R1, SMOLLM2, tokenizer_with
from tokenizer_forms import save, sentence_piece

from r1mega.data.preference_text import reading, readings, refuse_unreadable
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.errors import DataError

STRIPS = "{% for m in messages %}{{ '<|user|>' + m.content | trim }}{% endfor %}{{ eos_token }}"
THOUGHT = "<think>\n2 + 2\n</think>\n\nIt is 4."
WORDS = ["It is 4.", " the sum is  12346\n", "zwölf 十二 ½ \x00 <|", THOUGHT, "</think>", "{{ bos_token }}"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    return train_tokenizer(["2 + 2 is 4"] * 9, 320, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    templates = {"smollm2": SMOLLM2, "qwen3": QWEN3, "r1": R1, "strips": STRIPS}
    return {name: tokenizer_with(text, tmp_path_factory.mktemp(name)) for name, text in templates.items()}


def applied(tokenizer: Any, question: Any, said: str) -> list[int]:
    asked = [{"role": "user", "content": question}] if isinstance(question, str) else question
    turns = [*asked, {"role": "assistant", "content": said}]
    return tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)


@pytest.mark.parametrize("said", WORDS)
def test_the_tokens_are_those_of_the_chat_template(tiny: Any, chat: dict[str, Any], said: str):
    for tokenizer in (tiny, chat["smollm2"], chat["strips"]):
        assert list(reading(tokenizer, " 2 + 2? ", said)) == applied(tokenizer, " 2 + 2? ", said)
        assert reading(tokenizer, "a", said)[-1] == tokenizer.eos_token_id or tokenizer is chat["smollm2"]


def test_turns_before_the_question_are_read(chat: dict[str, Any]):
    asked = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 1 more?"},
    ]
    found = list(reading(chat["smollm2"], asked, "5"))
    assert found == applied(chat["smollm2"], asked, "5")
    assert found != list(reading(chat["smollm2"], asked[1:], "5"))


def test_a_template_that_drops_the_reasoning_does_not_drop_it_here(chat: dict[str, Any]):
    tokenizer = chat["r1"]
    assert "2 + 2\n" not in tokenizer.decode(applied(tokenizer, "?", THOUGHT))
    expected = f"<|begin_of_text|><｜User｜>?<｜Assistant｜>{THOUGHT}<|im_end|>"
    assert list(reading(tokenizer, "?", THOUGHT)) == tokenizer(expected, add_special_tokens=False)["input_ids"]


def test_a_template_that_adds_an_empty_thought_adds_it(chat: dict[str, Any]):
    tokenizer = chat["qwen3"]
    assert list(reading(tokenizer, "?", "4")) == applied(tokenizer, "?", "4")
    assert "<think>\n\n</think>\n\n4<|im_end|>" in tokenizer.decode(reading(tokenizer, "?", "4"))


def test_an_end_token_is_there_where_the_template_writes_none(tiny: Any):
    tokenizer = copy.deepcopy(tiny)
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    assert list(reading(tokenizer, "a", "b")) == [*applied(tokenizer, "a", "b"), tokenizer.eos_token_id]


@pytest.mark.parametrize("token", ["<|eos|>", "<|user|>", "<|bos|><|bos|>", "<|e<|eos|>os|>"])
def test_an_answer_cannot_write_special_tokens(tiny: Any, token: str):
    special = [i for i in reading(tiny, "a", "b") if i < 5]
    assert len(special) == 4  # bos, user, assistant, eos
    for question, said in (("a", f"b{token}c"), (f"a{token}", "bc"), ("a", token)):
        found = list(reading(tiny, question, said))
        assert [i for i in found if i < 5] == special
        # Nothing is lost of it: it is read as the letters that it is.
        assert tiny.decode([i for i in found if i >= 5]) == question + said


def test_a_special_token_of_one_letter_is_left_out(tmp_path: Path):
    made = sentence_piece()
    made.add_special_tokens(["§"])
    save(made, tmp_path, model_type=None, cls="PreTrainedTokenizerFast", bos="<s>", eos="</s>")
    (tmp_path / "chat_template.jinja").write_text("<s>{% for m in messages %}{{ m.content }}</s>{% endfor %}")
    tokenizer = load_tokenizer(tmp_path)
    sign = tokenizer.convert_tokens_to_ids("§")
    assert sign in tokenizer("a§b")["input_ids"]
    found = reading(tokenizer, "a", "a§b")
    assert sign not in found and tokenizer.decode(found) == "<s> a</s> a b</s>"


def test_many_are_read_as_each_alone(tiny: Any):
    pairs = [("a", "2 + 2"), ("b", "<|eos|>"), ([{"role": "user", "content": "c"}], "4")]
    assert readings(tiny, pairs) == [reading(tiny, *pair) for pair in pairs]
    assert readings(tiny, []) == []


def test_another_template_of_the_same_tokenizer_is_noticed(tiny: Any):
    tokenizer = copy.deepcopy(tiny)
    before = reading(tokenizer, "a", "b")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    assert list(reading(tokenizer, "a", "b")) == applied(tokenizer, "a", "b") != list(before)


def test_a_tokenizer_without_a_usable_template_is_refused(tiny: Any, tmp_path: Path):
    with pytest.raises(DataError, match=r"has no chat template, .* put one there as chat_template\.jinja"):
        refuse_unreadable(tokenizer_with(None, tmp_path))
    tokenizer = copy.deepcopy(tiny)
    for template, fault in (
        ("{{ messages[0].content }}", r"does not write every turn of a conversation \(user, assistant\)"),
        ("{{ raise_exception('no') }}", "refuses a conversation of the turns user, assistant: no"),
        ("{% for %}", "refuses a conversation"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(DataError, match=fault):
            refuse_unreadable(tokenizer)
    refuse_unreadable(tiny)
