"""Templates around turns: every word once and in order; learnt is what the model has to write, to the character."""

from pathlib import Path
from typing import Any

import pytest
from tokenizer_forms import byte_level, save

from r1mega.data.chat import Chat
from r1mega.data.conversations import conversation
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import DataError

NAMES = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>")
SYSTEM = {"role": "system", "content": "Be brief."}
PLAIN = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}]
LONG = [SYSTEM, *PLAIN, {"role": "user", "content": "and one more?"}, {"role": "assistant", "content": "five"}]
THOUGHT = "<think>\nso it is\n</think>\n\nfour"
OPEN = "{% for m in messages %}{% if m.role != 'assistant' %}<|{{ m.role }}|>{{ m.content }}{% else %}<|assistant|>"
CLOSE = "{% endif %}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    raw = byte_level(NAMES, ("<think>", "</think>"))
    return load_tokenizer(save(raw, tmp_path_factory.mktemp("tokenizer"), model_type=None, cls=None, bos=None))


def chat(tokenizer: Any, folder: Path, template: str, ends: tuple[int, ...] = (0,)) -> Chat:
    (folder / "t.jinja").write_text(template)
    return Chat(tokenizer, list(ends), folder / "t.jinja")


def row(messages: list[dict[str, str]]) -> Any:
    return conversation({"messages": messages}, "a.jsonl, line 3")


def parts(of: Chat, messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    pieces = [(p.text, p.learnt) for p in of.pieces(row(messages))]
    (tokens,) = of.encode([row(messages)])
    learnt = [of.tokenizer.decode(tokens.ids[a:b]) for a, b in tokens.spans]
    assert learnt == [text for text, is_learnt in pieces if is_learnt]
    return pieces


def marked(answer: str) -> str:
    return OPEN + "{% generation %}" + answer + "{% endgeneration %}" + CLOSE + PROMPT


WORD_FOR_WORD = "{{ m.content }}<|end|>"
NAME_TOO = (
    OPEN.replace("<|assistant|>", "{% generation %}<|assistant|>") + WORD_FOR_WORD + "{% endgeneration %}" + CLOSE
)


@pytest.mark.parametrize("template", [marked(WORD_FOR_WORD), OPEN + WORD_FOR_WORD + CLOSE + PROMPT])
def test_a_template_that_is_a_frame_has_the_turns_and_their_ends_learnt(tokenizer, tmp_path: Path, template: str):
    of = chat(tokenizer, tmp_path, template)
    assert parts(of, LONG) == [
        ("<|system|>Be brief.<|user|>two and two?<|assistant|>", False),
        ("four<|end|>", True),
        ("<|user|>and one more?<|assistant|>", False),
        ("five<|end|>", True),
    ]
    assert parts(of, [PLAIN[0], {"role": "assistant", "content": THOUGHT}])[1] == (THOUGHT + "<|end|>", True)


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        # c07 and its kind: words that are not there, twice there, or elsewhere.
        (marked(WORD_FOR_WORD).replace("{% if m.role != 'assistant' %}", "{% if m.role == 'system' %}{% elif "
         "m.role != 'assistant' %}"), LONG, r"leaves out what message 0 says, the system's"),
        (marked(WORD_FOR_WORD).replace("<|{{ m.role }}|>{{ m.content }}", "<|{{ m.role }}|>"), LONG,
         r"leaves out what message 0 says, the user's"),
        ("{{ messages[0].content }}" + marked(WORD_FOR_WORD), LONG, r"writes 2 times what message 0 says"),
        (marked(WORD_FOR_WORD).replace("in messages", "in messages[1:2] + messages[:1] + messages[2:]"),
         LONG, r"writes message 1, the assistant's, before one that comes before it"),
        (marked(WORD_FOR_WORD).replace("{{ m.content }}{% else", "{{ m.content[:12] }}{% else"), LONG,
         r"does not repeat message 3, the user's, word for word"),
        (marked("{{ m.content | upper }}<|end|>"), LONG, r"does not repeat a turn of the assistant word for word"),
        (marked("{{ m.content.split('</think>')[-1] }}<|end|>"),
         [PLAIN[0], {"role": "assistant", "content": THOUGHT}], r"the reasoning before </think> among it"),
        # c08 and its kind: the name, or what else the prompt writes, is learnt; or the prompt writes something else.
        (NAME_TOO + PROMPT.replace("|>{%", "|><think>\n{%"), PLAIN, "its generation prompt goes on with '<think>"),
        (NAME_TOO + PROMPT.replace("|>{%", "|><think>\n{%"), [PLAIN[0], {"role": "assistant", "content": THOUGHT}],
         "its generation prompt goes on with '<think>"),
        (NAME_TOO + PROMPT, PLAIN, r"marks '<\|assistant\|>Turn1word"),
        (OPEN + WORD_FOR_WORD + CLOSE, PLAIN, r"has the assistant's turn begin at '<\|assistant\|>Turn1word"),
        (marked(WORD_FOR_WORD).replace(PROMPT, ""), PLAIN, r"turn begin at '<\|assistant\|>Turn1"),
        (OPEN + WORD_FOR_WORD + CLOSE + PROMPT.replace("<|assistant|>", "<|assistant|> Sure:"), PLAIN,
         r"its generation prompt goes on with ' Sure:' where the text to train on has 'Turn1word"),
        # c09 and its kind: words that are no part of a turn.
        (marked("<think>\n\n</think>\n\n" + WORD_FOR_WORD), PLAIN, r"turn begin at '<think>\\n\\n</think>"),
        (OPEN + "<think>\n\n</think>\n\n" + WORD_FOR_WORD + CLOSE + PROMPT, PLAIN, r"turn begin at '<think>"),
        (marked("{% if '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}" + WORD_FOR_WORD), PLAIN,
         r"turn begin at '<think>\\n\\n</think>"),
        (marked("{{ m.content }} I hope this helps!<|end|>"), PLAIN, r"writes 'I hope this helps!' between"),
        (marked("{{ m.content }}{% if '?' in messages[0].content %} Really.{% endif %}<|end|>"), PLAIN,
         r"writes something else around message 1"),
        (marked("{{ m.content }}<|pad|><|end|>"), PLAIN, r"writes '<\|pad\|>' between the assistant's turn and the"),
        (marked("{{ m.content }}"), PLAIN, r"ends the assistant's turn with '', at which sampling does not end"),
        (marked("{{ m.content }}") + "{% if not add_generation_prompt %}<|end|>{% endif %}", PLAIN,
         r"ends the assistant's turn with ''"),
        (marked("{{ m.content }}<|pad|>"), PLAIN, r"ends the assistant's turn with '<\|pad\|>', at which sampling"),
        (OPEN + "{{ m.content[:2] }}{% generation %}{{ m.content[2:] }}<|end|>{% endgeneration %}" + CLOSE + PROMPT,
         PLAIN, r"marks 'rn1word<\|end\|>' as the assistant's turn"),
    ],
)  # fmt: skip
def test_a_template_that_is_more_or_less_than_a_frame_is_refused(
    tokenizer, tmp_path: Path, template: str, messages, message: str
):
    with pytest.raises(DataError, match=message):
        chat(tokenizer, tmp_path, template).encode([row(messages)])


def test_what_the_prompt_opens_is_not_learnt_where_the_turn_begins_with_it(tokenizer, tmp_path: Path):
    """As templates that begin every answer with a thought do: the model writes what follows."""
    for template in (marked(WORD_FOR_WORD), OPEN + WORD_FOR_WORD + CLOSE + PROMPT):
        of = chat(tokenizer, tmp_path, template.replace(PROMPT, PROMPT.replace("|>{%", "|><think>\n{%")))
        assert parts(of, [PLAIN[0], {"role": "assistant", "content": THOUGHT}]) == [
            ("<|user|>two and two?<|assistant|><think>\n", False),
            ("so it is\n</think>\n\nfour<|end|>", True),
        ]
        with pytest.raises(DataError, match=r"a.jsonl, line 3: .*its generation prompt goes on with '<think>"):
            of.encode([row(PLAIN)])
        with pytest.raises(DataError, match=r"line 3: .*begins every answer with '<think>\\n' in its generation"):
            of.encode([row([PLAIN[0], {"role": "assistant", "content": "<think>so</think>four"}])])


def test_a_turn_ends_at_the_first_token_at_which_sampling_ends(tokenizer, tmp_path: Path):
    of = chat(tokenizer, tmp_path, marked("{{ m.content }}\n<|pad|>\n<|end|>"), ends=(0, 4))
    assert of.ends == (0, 4)
    assert parts(of, PLAIN)[1:] == [("four\n<|pad|>", True), ("\n<|end|>", False)]


def test_white_space_may_be_stripped_and_is_learnt_where_the_model_has_to_write_it(tokenizer, tmp_path: Path):
    of = chat(tokenizer, tmp_path, marked(" {{ m.content | trim }}\n<|end|>\n"))
    padded = [{"role": "user", "content": " two? \n"}, {"role": "assistant", "content": "\n four \n"}]
    assert parts(of, padded) == [
        ("<|user|> two? \n<|assistant|>", False),
        (" four\n<|end|>", True),
        ("\n", False),
    ]


def test_the_same_words_in_several_turns_are_each_found_in_their_place(tokenizer, tmp_path: Path):
    of = chat(tokenizer, tmp_path, marked(WORD_FOR_WORD))
    same = [{"role": role, "content": "four"} for role in ("system", "user", "assistant", "user", "assistant")]
    assert [text for text, learnt in parts(of, same) if learnt] == ["four<|end|>"] * 2


@pytest.mark.parametrize("token", ["<|system|>", "<|end|>", "<|user|>"])
def test_a_token_of_another_turn_is_no_text(tokenizer, tmp_path: Path, token: str):
    """Whatever turns a conversation has: the template would write it, in another."""
    of = chat(tokenizer, tmp_path, "{% set all = '<|system|><|user|>' %}" + marked(WORD_FOR_WORD))
    with pytest.raises(DataError, match=r"line 3: message 1: the text '<\|.*' is a token of the tokenizer"):
        of.encode([row([PLAIN[0], {"role": "assistant", "content": f"four {token}"}])])
    assert parts(of, [PLAIN[0], {"role": "assistant", "content": "four <|pad|>"}])[1][0] == "four <|pad|><|end|>"


def test_a_day_that_a_template_writes_may_pass(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    of = chat(tokenizer, tmp_path, "{{ day }}" + marked(WORD_FOR_WORD))
    render, day = of.tokenizer.apply_chat_template, ["Monday"]
    monkeypatch.setattr(
        type(of.tokenizer), "apply_chat_template", lambda self, *a, **k: render(*a, day=day[0], **k), raising=True
    )
    monkeypatch.setattr(of, "_marked", False)
    of._frames.clear()
    assert parts(of, PLAIN)[0] == ("Monday<|user|>two and two?<|assistant|>", False)
    day[0] = "Tuesday"
    assert parts(of, PLAIN)[0] == ("Tuesday<|user|>two and two?<|assistant|>", False)
