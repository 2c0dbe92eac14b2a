"""One list of ends and one of special tokens, whoever asks; and what a text begins with is the tokenizer's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_forms import byte_level, save, with_bos
from tokenizers import AddedToken, Tokenizer, normalizers

from r1mega.data.chat import Chat
from r1mega.data.conversations import conversation
from r1mega.data.pretrain_text import TextDocument, tokenize
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import prompts
from r1mega.data.question import Question
from r1mega.data.settings import PromptSettings
from r1mega.data.special_tokens import begin, ends, special_tokens, with_ends
from r1mega.data.tokenizer import load_tokenizer
from r1mega.errors import DataError
from r1mega.families.registry import model_of, read_model
from r1mega.formats.companions import write_generation_config

TINY = Path(__file__).parents[2] / "configs/tiny"
NAMES = ("<|pad|>", "<|begin|>", "<|end|>", "<|turn|>", "<|text|>")


def folder(
    to: Path, *, config: Any = None, generation: Any = None, make: Tokenizer | None = None, **settings: Any
) -> Path:
    """Its tokenizer ends with 2, <|end|>."""
    eos = {} if config is None else {"eos_token_id": config}
    save(make or byte_level(NAMES), to, model_type="qwen2", cls="Qwen2Tokenizer", config=eos, **settings)
    if generation is not None:
        (to / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    return to


@pytest.mark.parametrize(
    ("config", "generation", "want"),
    [
        (2, None, (2,)),
        (2, [2, 4], (2, 4)),  # Qwen2.5-Instruct, Qwen3
        ([4, 3, 2], [4, 2], (2, 4, 3)),  # Llama 3.1: the tokenizer's own first
        (4, [2, 4], (2, 4)),
        (4, 2, (2, 4)),
        (4, None, (2,)),  # c24: one end, and it is the tokenizer's
        (4, [4, 3], (2,)),
        ([3, 4], 4, (2,)),
        (None, None, (2,)),
        (None, [3, 2], (2, 3)),
        (None, 2, (2,)),
    ],
)
def test_the_ends_are_one_list_wherever_they_stand(tmp_path: Path, caplog, config, generation, want):
    """For the guard of conversations, for the model that is trained and exported, and for the engine."""
    tokenizer = load_tokenizer(folder(tmp_path, config=config, generation=generation))
    assert ends(tokenizer) == want
    assert Chat(tokenizer, [], TINY.parent / "chat_templates/qwen.jinja").ends == want
    spec = read_model(TINY / "qwen2.json")
    stated = config if config is not None else 2
    spec = model_of({**spec.hf, "eos_token_id": stated}, tmp_path / "config.json")
    decided = with_ends(spec, tokenizer)
    assert set(decided.ends) == set(want)
    (tmp_path / "hf").mkdir()
    write_generation_config(decided, tmp_path / "hf", trained=True)
    for written in (json.loads((tmp_path / "hf/generation_config.json").read_text()), decided.hf):
        eos = written["eos_token_id"]
        assert (eos, want) == (want[0], (eos,)) if isinstance(eos, int) else set(eos) == set(want)
    assert model_of(json.loads(json.dumps(decided.hf)), tmp_path / "config.json").ends == decided.ends
    gone = {i for part in (config, generation) for i in (part if isinstance(part, list) else [part])} - {None, *want}
    assert bool(gone) == any("is no end of config.json or generation_config.json" in m for m in caplog.messages)
    assert with_ends(decided, tokenizer) == decided
    assert Chat(tokenizer, decided.ends, TINY.parent / "chat_templates/qwen.jinja").ends == want


@pytest.mark.parametrize("value", ["2", [2, None], [[2]], -1, True, 2.0, {}])
def test_ends_that_are_none_are_refused_by_file(tmp_path: Path, value: Any):
    tokenizer = load_tokenizer(folder(tmp_path, generation=value))
    with pytest.raises(
        DataError, match=r"generation_config.json: eos_token_id = .*: a token id, a list of some, or null"
    ):
        ends(tokenizer)


def test_an_end_that_is_no_token_is_refused(tmp_path: Path):
    """As the engine could never answer with it; where the tokenizer's is the one end nobody asks."""
    tokenizer = load_tokenizer(folder(tmp_path / "a", config=2, generation=[2, 99_999]))
    with pytest.raises(DataError, match=r"eos_token_id 99999 of config\.json or .* is no token of the tokenizer"):
        ends(tokenizer)
    assert ends(load_tokenizer(folder(tmp_path / "b", config=2, generation=[2, 4]))) == (2, 4)
    assert ends(load_tokenizer(folder(tmp_path / "c", config=99_999))) == (2,)


def test_a_turn_that_quotes_an_end_of_generation_config_alone_is_refused(tmp_path: Path):
    """Whoever makes the Chat, and whatever ends it knows of."""
    tokenizer = load_tokenizer(folder(tmp_path, config=2, generation=[2, 4]))
    row = {"prompt": "What ends a text?", "response": "It is <|text|> there."}
    for stated in ([], [2], [2, 4]):
        chat = Chat(tokenizer, stated, TINY.parent / "chat_templates/qwen.jinja")
        with pytest.raises(DataError, match=r"line 1: message 1: the text '<\|text\|>' is a token of the tokenizer"):
            chat.encode([conversation(row, "line 1")])


def asked(tokenizer: Any, text: str) -> tuple[int, ...]:
    (prompt,) = prompts(
        [Question("a", "chain_sum", text, "4")], PromptForm(PromptSettings(template="r1_zero"), tokenizer)
    )
    return prompt.token_ids


def listed(*tokens: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {str(NAMES.index(t)): {"content": t, **flags, "special": special} for t in tokens}


def plainly(*tokens: str) -> Tokenizer:
    """Their tokenizer.json calls some of them added, and none of those special."""
    made = byte_level(tuple(t for t in NAMES if t not in tokens))
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in tokens])
    return made


@pytest.mark.parametrize(
    ("make", "settings", "special"),
    [
        (lambda: byte_level(NAMES), {}, "<|turn|>"),
        (lambda: byte_level(NAMES), {"added_tokens_decoder": listed(*NAMES, special=True)}, "<|turn|>"),  # Llama 3.1
        (lambda: byte_level(NAMES), {"added_tokens_decoder": listed(*NAMES, special=False)}, "<|text|>"),
        (lambda: plainly("<|turn|>"), {}, "<|turn|>"),  # called ordinary, as DeepSeek's names are
        (lambda: byte_level((*NAMES, "<s>")), {}, "<s>"),
        (lambda: byte_level(NAMES, ("<｜User｜>",)), {}, "<｜User｜>"),
        (lambda: byte_level(NAMES, ("[INST]",)), {"additional_special_tokens": ["[INST]"]}, "[INST]"),
        (lambda: byte_level(NAMES, ("[INST]",)), {"extra_special_tokens": ["[INST]"]}, "[INST]"),
        (lambda: byte_level(NAMES, ("[UNK]",)), {"unk_token": "[UNK]"}, "[UNK]"),
    ],
)
def test_a_question_that_spells_a_special_token_is_refused_wherever_it_is_said_to_be_one(
    tmp_path: Path, make, settings, special: str
):
    tokenizer = load_tokenizer(folder(tmp_path, make=make(), **settings))
    assert special in special_tokens(tokenizer)
    with pytest.raises(DataError, match="contains the special token"):
        asked(tokenizer, f"2 + 2 ={special}")


def test_tokens_that_are_text_may_be_asked_about(tmp_path: Path):
    tokenizer = load_tokenizer(folder(tmp_path, make=byte_level(NAMES, ("<think>", "<tool_call>"))))
    assert special_tokens(tokenizer) == set(NAMES)
    text = "What do <think>, <tool_call>, <|nothing|> and </s> say?"
    assert text in tokenizer.decode(asked(tokenizer, text))


def test_a_spelling_that_a_normalizer_makes_a_special_token_is_refused(tmp_path: Path):
    made = byte_level(NAMES)
    made.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    made.add_special_tokens([AddedToken("<|stop|>", special=True, normalized=True)])
    tokenizer = load_tokenizer(folder(tmp_path, make=made))
    assert tokenizer("<|STOP|>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<|stop|>")]
    with pytest.raises(DataError, match=r"is read as holding the special token <\|stop\|>"):
        asked(tokenizer, "2 + 2 =<|STOP|>")


@pytest.mark.parametrize(
    ("make", "settings", "want"),
    [
        (lambda: byte_level(NAMES), {"bos": "<|begin|>"}, ()),  # names one and writes none
        (lambda: byte_level(NAMES), {"bos": "<|begin|>", "add_bos_token": False}, ()),
        (lambda: byte_level(NAMES), {"bos": None}, ()),
        (lambda: with_bos(byte_level(NAMES), "<|begin|>"), {"bos": "<|begin|>"}, (1,)),
        (lambda: with_bos(byte_level(NAMES), "<|begin|>"), {"bos": "<|begin|>", "add_bos_token": True}, (1,)),
        (lambda: with_bos(byte_level(NAMES), "<|begin|>", "<|end|>"), {"bos": "<|begin|>"}, (1,)),
        (lambda: with_bos(byte_level(NAMES), "<|turn|>"), {"bos": "<|begin|>"}, (3,)),
        (lambda: with_bos(byte_level(NAMES), "<|begin|> <|turn|>"), {"bos": None}, (1, 3)),
        (lambda: byte_level(NAMES), {"bos": "<|begin|>", "add_bos_token": True}, (1,)),  # DeepSeek-V3
    ],
)  # fmt: skip
def test_a_text_begins_as_the_tokenizer_itself_begins(
    tmp_path: Path, make, settings, want: tuple[int, ...], caplog: pytest.LogCaptureFixture
):
    made = byte_level(NAMES) if want == (1, 3) else make()
    if want == (1, 3):
        from tokenizers import processors

        two = [("<|begin|>", 1), ("<|turn|>", 3)]
        made.post_processor = processors.TemplateProcessing(single="<|begin|> <|turn|> $A", special_tokens=two)
    tokenizer = load_tokenizer(folder(tmp_path, make=made, **settings))
    assert begin(tokenizer) == want
    undecided = settings == {"bos": "<|begin|>"} and not want
    assert ("begins no text with it" in caplog.text) == undecided
    text = made.encode("A conversation", add_special_tokens=False).ids
    assert tuple(asked(tokenizer, "2 + 2 =").tolist())[: len(want) + 1] == (*want, text[0])
    (document,) = tokenize([TextDocument("q", "two", " four", "plain", "chain_sum")], tokenizer, "all")
    assert tuple(document.token_ids.tolist()) == (*want, *made.encode("two four", add_special_tokens=False).ids, 2)
