"""The tiny tokenizer and the templates, through the same loader that the engine uses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mega.data.pretrain_text import documents, tokenize
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import prompts
from r1mega.data.question import Question
from r1mega.data.settings import AnswerStyles, PromptSettings
from r1mega.data.sources.reasoning_gym import Task
from r1mega.data.template import R1_ZERO, TAGS, TINY, render_prompt
from r1mega.data.tokenizer import SPECIAL, load_tokenizer, train_tokenizer
from r1mega.errors import DataError

TASKS = [Task(name="chain_sum", params={"max_terms": 5, "max_digits": 1})]
DOCS = documents(TASKS, AnswerStyles(think=0.35, tags=0.35, steps=0.15, plain=0.15), 1000, 0)
TEXTS = [doc.prompt + doc.answer for doc in DOCS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    # As in a model's folder: the model type must not bring in another tokenizer class.
    (folder / "config.json").write_text(json.dumps({"model_type": "deepseek_v3", "architectures": []}))
    train_tokenizer(TEXTS, 384, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def pieces(tokenizer, text):
    return [tokenizer.decode([id]) for id in tokenizer.encode(text, add_special_tokens=False)]


def test_special_tokens_come_first_and_the_tags_are_ordinary(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) <= 384
    text = "<think>4-1=3</think><answer>3</answer>"
    ids = tokenizer.encode("<|user|>" + text + "<|eos|>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert all(len(tokenizer.encode(tag, add_special_tokens=False)) == 1 for tag in TAGS)


def test_every_digit_and_every_minus_before_a_digit_is_a_token(tokenizer):
    assert pieces(tokenizer, "4-1=3-7=-4+70=66") == list("4-1=3-7=-4+70=66")
    assert pieces(tokenizer, "<answer>-12</answer>") == ["<answer>", "-", "1", "2", "</answer>"]
    assert pieces(tokenizer, "The answer is -4.") == ["The answer is ", "-", "4", "."]
    assert pieces(tokenizer, "2. So it is -4.") == ["2", ". So it is ", "-", "4", "."]


def test_the_wording_of_a_question_folds_into_one_token(tokenizer):
    question = "State the final answer to the following arithmetic problem: 4 - 1 + 7 ="
    assert pieces(tokenizer, question) == [question[:60], "4", " - ", "1", " + ", "7", " ="]


def test_no_token_mixes_text_with_tags_or_digits(tokenizer):
    for token in tokenizer.get_vocab():
        if token not in (*SPECIAL, *TAGS):
            assert len(token) == 1 or not set(token) & set("0123456789<>|")


def test_training_is_repeatable_to_the_byte(folder, tmp_path):
    train_tokenizer(iter(TEXTS), 384, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert not list(tmp_path.glob(".*")), "scratch files stay behind"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_documents_are_bos_prompt_answer_eos(tokenizer):
    tokens = tokenize(DOCS[:50], tokenizer, "all")
    for doc, encoded in zip(DOCS, tokens, strict=False):
        assert encoded.token_ids[0] == 1 and encoded.token_ids[-1] == 2
        assert tokenizer.decode(encoded.token_ids) == f"<|bos|>{doc.prompt}{doc.answer}<|eos|>"
        assert encoded.learn_from == 1


@pytest.mark.parametrize("template", [TINY, R1_ZERO])
def test_the_chat_template_writes_what_render_prompt_writes(tokenizer, template):
    asked, answered = [{"role": "user", "content": "1 + 1 ="}], {"role": "assistant", "content": "2"}
    kwargs = {"chat_template": template.chat_template, "tokenize": False}
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, **kwargs)
    assert text == "<|bos|>" + render_prompt(template, "1 + 1 =")
    assert tokenizer.apply_chat_template([*asked, answered], **kwargs) == text + "2<|eos|>"


def test_the_saved_chat_template_is_the_tiny_one_and_agrees_with_the_prompts(tokenizer):
    question = Question("a", "chain_sum", "1 + 1 =", "2")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": question.text}], add_generation_prompt=True)
    assert list(prompts([question], PromptForm(PromptSettings(), tokenizer))[0].token_ids) == list(ids["input_ids"])


def test_the_template_of_the_report():
    text = render_prompt(R1_ZERO, "prompt")
    assert text.startswith("A conversation between User and Assistant. The user asks a question, and the Assistant")
    assert text.endswith("<answer> answer here </answer>. User: prompt. Assistant:")


def test_tokenizers_that_cannot_be_used_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="too small: bytes, special tokens and tags take 265"):
        train_tokenizer(TEXTS, 264, tmp_path)
    with pytest.raises(DataError, match="no tokenizer in"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="does not load"):
        load_tokenizer(tmp_path)


def test_only_answers_are_targets_when_asked(tokenizer):
    for text, whole, answer in zip(
        DOCS[:50], tokenize(DOCS[:50], tokenizer, "all"), tokenize(DOCS[:50], tokenizer, "answers"), strict=True
    ):
        assert answer.token_ids == whole.token_ids
        read, learnt = (tokenizer.decode(x) for x in _cut(answer.token_ids, answer.learn_from))
        assert (read, learnt) == (f"<|bos|>{text.prompt}", f"{text.answer}<|eos|>")  # special tokens and all
        assert whole.learn_from == 1


def _cut(ids, place):
    return ids[:place], ids[place:]
