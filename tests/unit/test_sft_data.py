"""What SFT's tokens depend on, and who is validated on: with a tokenizer and files, without a model."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from sft_data import sft_config

from r1mega.data import token_store
from r1mega.data.chat import Chat
from r1mega.data.sft_data import Wanted, prepare
from r1mega.data.split import HELD_OUT
from r1mega.data.template import TINY
from r1mega.data.tokenizer import train_tokenizer
from r1mega.data.turns import conversation

QUESTIONS = [f"{i} + {i} is what?" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer([f"{q} It is so." for q in QUESTIONS], 300, tmp_path_factory.mktemp("tokenizer"))


def write(file: Path, rows: list[tuple[str, str]]) -> Path:
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in rows))
    return file


def wanted_by(config: Any) -> Wanted:
    return Wanted(config.data, config.validation, config.seed)


def digest(config: Any, chat: Chat, run: Path) -> str:
    prepare(wanted_by(config), chat, run / "data", run / "trained_on.jsonl")
    found = token_store.load(run / "data/train")
    assert found is not None
    return found.about["digest"]


def test_a_stage_that_begins_again_has_the_tokens_of_its_own_settings(tokenizer, tmp_path: Path):
    """Whatever lies in its folder from a start before its first checkpoint: the same as in an empty one."""
    data = write(tmp_path / "rows.jsonl", [(q, f"It is {2 * i}." + " so" * i) for i, q in enumerate(QUESTIONS)])
    asks = tmp_path / "asks.jinja"
    asks.write_text(TINY.chat_template.replace("<|user|>", "<|user|>Asked: "))
    plain: dict[str, Any] = {"files": [str(data)], "max_tokens": 96, "too_long": "truncate"}
    tiny = Chat(tokenizer, [])
    starts = {
        "first": (sft_config(tmp_path, data, data=plain), tiny),
        "template": (sft_config(tmp_path, data, data=plain), Chat(tokenizer, [], asks)),
        "max_tokens": (sft_config(tmp_path, data, data={**plain, "max_tokens": 40}), tiny),
        "too_long": (sft_config(tmp_path, data, data={**plain, "max_tokens": 40, "too_long": "drop"}), tiny),
        "seed": (sft_config(tmp_path, data, data=plain, seed=1), tiny),
        "share": (sft_config(tmp_path, data, data=plain, validation={"share": 0.4, "every_steps": 4}), tiny),
    }
    found = {name: digest(*start, tmp_path / "one") for name, start in starts.items()}
    assert found == {name: digest(*start, tmp_path / name) for name, start in starts.items()}
    assert len(set(found.values())) == len(starts)  # or what is changed would not be tested here


def test_all_answers_to_a_question_are_on_one_side_of_the_validation_split(tokenizer, tmp_path: Path):
    """Three answers to each, in two files: one side would otherwise be asked what the other has learnt."""
    files = [
        write(tmp_path / "a.jsonl", [(q, f"It is {n}.") for q in QUESTIONS for n in (1, 2)]),
        write(tmp_path / "b.jsonl", [(q, "It is 3.") for q in reversed(QUESTIONS)]),
    ]
    data = {"files": [str(file) for file in files], "max_tokens": 96}
    config = sft_config(tmp_path, files[0], data=data, validation={"share": 0.5, "every_steps": 4})
    prepare(wanted_by(config), Chat(tokenizer, []), tmp_path / "data", tmp_path / "trained_on.jsonl")
    sides: dict[str, list[str]] = defaultdict(list)
    for side in ("train", "validation"):
        store = token_store.load(tmp_path / "data" / side)
        assert store is not None
        for i in range(len(store)):
            text = tokenizer.decode(store.document(i, 1.0).token_ids)
            sides[text.partition("<|user|>")[2].partition("<|assistant|>")[0]].append(side)
    assert {len(where) for where in sides.values()} == {3} and len(sides) == len(QUESTIONS)
    assert all(len(set(where)) == 1 for where in sides.values())
    assert 15 < sum(where[0] == "train" for where in sides.values()) < 45


def test_turns_that_are_not_learnt_are_read(tokenizer):
    """Ranges of a conversation's tokens, against its rendered text."""
    turns = [("user", "1 + 1"), ("assistant", "3"), ("user", "no"), ("assistant", "2")]
    rows = [{"role": role, "content": text, **({"weight": 0} if text == "3" else {})} for role, text in turns]
    (found,) = Chat(tokenizer, []).encode([conversation({"messages": rows}, "here")])
    assert tokenizer.decode(found.ids) == TINY.user_open.join(("<|bos|>", "1 + 1<|assistant|>3<|eos|>", "")) + (
        "no<|assistant|>2<|eos|>"
    )
    assert [tokenizer.decode(found.ids[a:b]) for a, b in found.spans] == ["2<|eos|>"]


def content_of(row: dict[str, Any]) -> str:
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_store_says_which_rows_it_was_made_of(tokenizer, tmp_path: Path):
    """Not those that are validated on, ask what is held out, or are too long; fields that are passed over count."""
    sums = (f"State the final answer to the following arithmetic problem: {i} + 1 =" for i in range(1000))
    long, held_out = "so " * 60, next(question for question in sums if question in HELD_OUT)
    rows = [{"prompt": q, "response": f"It is {i}.", "from": {"é": i}} for i, q in enumerate(QUESTIONS)]
    rows[5]["response"], rows[7]["prompt"] = long, held_out
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, some in zip(files, (rows[:30], rows[30:]), strict=True):
        file.write_text("\n" + "".join(json.dumps(row) + "\n" for row in some))  # the first line is blank
    data = {"files": [str(file) for file in files], "max_tokens": 60, "too_long": "drop"}
    config = sft_config(tmp_path, files[0], data=data, validation={"share": 0.3, "every_steps": 4})
    prepare(wanted_by(config), Chat(tokenizer, []), tmp_path / "data", tmp_path / "trained_on.jsonl")
    listed = {}
    for side in ("train", "validation"):
        store = token_store.load(tmp_path / "data" / side)
        assert store is not None and store.about["places"] == [f"{file}, line" for file in files]
        lines = (tmp_path / "data" / side / "rows.txt").read_text().splitlines()
        assert len(lines) == len(store)
        for i, line in enumerate(lines):
            digest, place, number = line.split()
            at = 30 * int(place) + int(number) - 2
            assert digest == content_of(rows[at])
            assert f"|>It is {at}." in tokenizer.decode(store.document(i, 1.0).token_ids)
            listed[at] = side
    assert len(listed) == len(rows) - 2 and {5, 7}.isdisjoint(listed)
    assert set(listed.values()) == {"train", "validation"}
