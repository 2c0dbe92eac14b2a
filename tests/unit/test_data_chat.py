"""Chat templates: the assistant's turns and nothing else are learnt, word for word, or the template is refused."""

import copy
import json
from pathlib import Path

import pytest
from tokenizer_forms import save, sentence_piece

from r1mega.data.chat import Chat
from r1mega.data.conversations import conversation
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.errors import DataError

TEMPLATES = Path(__file__).parents[2] / "configs/chat_templates"
ANSWERS = ("<think>\n2 + 2 is 4\n</think>\n\nIt is 4.", "<think>no</think>5")
TURNS = conversation(
    {
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": ANSWERS[0]},
            {"role": "user", "content": "And 1 more?"},
            {"role": "assistant", "content": ANSWERS[1]},
        ]
    },
    "a.jsonl, line 7",
)
PUBLISHED_R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<|user|>' + message['content'] }}{% endif %}{% if message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|assistant|>' + content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""What matters here of DeepSeek-R1's published template: reasoning is dropped, the last turn's too."""
PROMPT = "{% if add_generation_prompt %}<|user|>{% endif %}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    return train_tokenizer(["2 + 2 is 4"] * 9, 320, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(trained):
    """A test's own, to be given other templates."""
    return copy.deepcopy(trained)


def written(template: str, tmp_path: Path) -> Path:
    file = tmp_path / "template.jinja"
    file.write_text(template)
    return file


def learnt(chat: Chat) -> list[str]:
    (tokens,) = chat.encode([TURNS])
    return [chat.tokenizer.decode(tokens.ids[a:b]) for a, b in tokens.spans]


def test_a_files_truncation_and_padding_change_no_tokens(tokenizer, tmp_path: Path):
    (want,) = Chat(tokenizer, [tokenizer.eos_token_id]).encode([TURNS])
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "<|pad|>"}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    cutting = load_tokenizer(tmp_path)
    assert Chat(cutting, [cutting.eos_token_id]).encode([TURNS]) == [want]


def test_many_together_have_the_tokens_of_the_tokenizers_own_call(tokenizer):
    chat = Chat(tokenizer, [tokenizer.eos_token_id])
    for text in ("2 + 2 is 4", " é ñ 漢字 🙂\n\n", "<think>", "a" * 2000):
        turns = conversation({"prompt": text, "response": text}, "a row")
        pieces = [p.text for p in chat.pieces(turns)]
        ids = tokenizer(pieces, add_special_tokens=False)["input_ids"]
        assert [t.ids for t in chat.encode([TURNS, turns])][1] == tuple(i for piece in ids for i in piece)


def test_the_tokenizers_own_template_gives_the_turns_and_their_ends(tokenizer):
    chat = Chat(tokenizer, [tokenizer.eos_token_id])
    assert learnt(chat) == [answer + "<|eos|>" for answer in ANSWERS]
    (tokens,) = chat.encode([TURNS])
    whole = tokenizer.decode(tokens.ids)
    rendered = tokenizer.apply_chat_template([dict(m) for m in TURNS.messages], tokenize=False)
    assert whole == rendered
    # In sampling the prompt is tokenised by itself; training has met it so.
    prompt = [dict(m) for m in TURNS.messages[:3]]
    ids = tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert list(tokens.ids[: tokens.spans[1][0]]) == list(ids["input_ids"])


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen", "llama"])
def test_shipped_templates_keep_the_reasoning_and_end_every_turn(tokenizer, name: str):
    chat = Chat(tokenizer, [tokenizer.eos_token_id], TEMPLATES / f"{name}.jinja")
    assert learnt(chat) == [answer + "<|eos|>" for answer in ANSWERS]
    # Rendered turn by turn, as in sampling, it is the same conversation.
    unmarked = chat.template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    tokenizer.chat_template = unmarked
    (found,), (marked,) = Chat(tokenizer, [2]).encode([TURNS]), chat.encode([TURNS])
    assert found.ids == marked.ids
    assert found.spans == marked.spans


def test_a_turn_that_is_marked_is_read_and_not_learnt(tokenizer):
    messages = [dict(m) for m in TURNS.messages]
    marked = conversation({"messages": [messages[0], {**messages[1], "weight": 0}, *messages[2:]]}, "a row")
    (found,), (whole,) = (Chat(tokenizer, [2]).encode([c]) for c in (marked, TURNS))
    assert found.ids == whole.ids
    assert found.spans == whole.spans[1:]


def test_a_template_that_drops_the_reasoning_is_refused(tokenizer, tmp_path: Path):
    message = r"a.jsonl, line 7: .*does not repeat a turn .* the reasoning before </think> among it.*chat_templates"
    with pytest.raises(DataError, match=message):
        Chat(tokenizer, [2], written(PUBLISHED_R1, tmp_path)).encode([TURNS])


def test_a_template_that_writes_the_last_turn_otherwise_is_refused(tokenizer, tmp_path: Path):
    last_only = (
        "{% for message in messages %}{% if loop.last and message['role'] == 'assistant' %}LAST{% endif %}"
        "<|user|>{{ message['content'] }}{{ eos_token }}{% endfor %}" + PROMPT
    )
    with pytest.raises(DataError, match=r"does not write the beginning of a conversation as it writes the whole"):
        Chat(tokenizer, [2], written(last_only, tmp_path)).encode([TURNS])


def test_a_turn_that_does_not_end_is_refused(tokenizer, tmp_path: Path):
    endless = "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}" + PROMPT
    with pytest.raises(DataError, match=r"ends the assistant's turn with .* at which sampling does not end"):
        Chat(tokenizer, [2], written(endless, tmp_path)).encode([TURNS])


def test_marks_must_cover_every_turn_of_the_assistant(tokenizer, tmp_path: Path):
    first = (
        "{% for message in messages %}{% if loop.index == 2 %}{% generation %}{{ message['content'] }}{{ eos_token }}"
        "{% endgeneration %}{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match="marks 1 of the 2 turns of the assistant"):
        Chat(tokenizer, [2], written(first, tmp_path)).encode([TURNS])


def test_white_space_after_a_turns_end_is_not_learnt(tokenizer, tmp_path: Path):
    spaced = "{% for m in messages %}<|user|>{{ m['content'] }}{{ eos_token + '\\n' }}{% endfor %}" + PROMPT
    assert learnt(Chat(tokenizer, [2], written(spaced, tmp_path)))[0].endswith("It is 4.<|eos|>")


def test_what_a_template_or_a_tokenizer_cannot_do_is_one_message(tokenizer, tmp_path: Path):
    system = conversation(
        {"messages": [{"role": "system", "content": "Be."}, {"role": "assistant", "content": "4"}]}, "b, line 1"
    )
    tokenizer.chat_template = "{{ raise_exception('only user and assistant turns are known') }}"
    with pytest.raises(DataError, match=r"b, line 1: .* refuses it: only user and assistant turns are known"):
        Chat(tokenizer, [2]).encode([system])
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        Chat(tokenizer, [2])
    with pytest.raises(DataError, match="cannot read"):
        Chat(tokenizer, [2], tmp_path / "no.jinja")
    with pytest.raises(DataError, match="it adds to each piece"):
        spaced = save(sentence_piece(), tmp_path, model_type="llama", cls="LlamaTokenizer", bos="<s>", eos="</s>")
        Chat(load_tokenizer(spaced), [2], TEMPLATES / "qwen.jinja")


def test_what_is_no_template_is_named_without_a_conversation(tokenizer, tmp_path: Path):
    with pytest.raises(DataError, match=r"^\S+template.jinja, line 2: not a template: "):
        Chat(tokenizer, [2], written("a\n{{ messages[0]", tmp_path))


@pytest.mark.parametrize("token", ["<|eos|>", "<|assistant|>"])
@pytest.mark.parametrize("turn", [0, 3])
def test_a_turn_that_holds_a_token_of_the_template_is_refused(tokenizer, tmp_path: Path, token: str, turn: int):
    roles = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    messages = [dict(m) for m in TURNS.messages]
    messages[turn]["content"] += token
    with pytest.raises(DataError, match=rf"a.jsonl, line 7: message {turn}: the text '<\|.*' is a token"):
        Chat(tokenizer, [2], written(roles, tmp_path)).encode([conversation({"messages": messages}, TURNS.where)])


def test_tags_of_reasoning_and_tokens_that_steer_nothing_are_text(tokenizer):
    """A tokenizer may call more tokens special than its template writes."""
    content = "<think>so</think>4 <|pad|>"
    assert "<|pad|>" in tokenizer.all_special_tokens
    row = {"prompt": "2 + 2?", "response": content}
    (tokens,) = Chat(tokenizer, [2], TEMPLATES / "qwen.jinja").encode([conversation(row, "a, line 1")])
    ((start, stop),) = tokens.spans
    assert tokenizer.decode(tokens.ids[start:stop]) == content + "<|eos|>"


def test_of_several_templates_the_main_one_is_used_and_said(
    trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """As transformers' save_pretrained writes them; another alone is not taken for the main one."""
    tokenizer = copy.deepcopy(trained)
    own = tokenizer.chat_template
    tokenizer.chat_template = {"default": own, "tool_use": "{{ messages }}"}
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "additional_chat_templates/tool_use.jinja").is_file()
    with caplog.at_level("INFO"):
        assert Chat(load_tokenizer(tmp_path), (2,)).template == own
    assert "several chat templates: 'default' is the one that is used, not tool_use" in caplog.text
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has several chat templates, and none that is 'default'"):
        Chat(load_tokenizer(tmp_path), (2,))
