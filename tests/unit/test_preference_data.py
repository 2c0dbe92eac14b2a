"""Preferences become documents of texts: the tokens a reward model reads, and a count of each row left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from r1mega.data import token_store
from r1mega.data.preference_data import Preferences, Sifted
from r1mega.data.preferences import Reading, pair
from r1mega.data.scope import THOUGHT
from r1mega.data.settings import PreferenceData, ValidationData
from r1mega.data.signed_rows import digest_of
from r1mega.data.tokenised import Sides, opened, prepare
from r1mega.data.tokenizer import train_tokenizer
from r1mega.errors import DataError

TEXTS = ["<|user|>what is 1 + 1 and why?<|assistant|><think>one and one</think> It is 2, or 3, or 4."] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_tokenizer(TEXTS, 300, tmp_path_factory.mktemp("tokenizer"))


def reading(data: PreferenceData, objective: Any = "pairwise", scope: Any = "response", **changes: Any) -> Reading:
    return Reading(data, objective, scope, changes.pop("marks", THOUGHT), changes.pop("gaps", False))


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def prepared(tmp_path: Path, rows: list[dict[str, Any]] | None, tokenizer: Any, **how: Any) -> dict[str, Any]:
    settings = {name: how.pop(name) for name in ("max_tokens", "too_long", "label") if name in how}
    file = tmp_path / "rows.jsonl"
    data = PreferenceData(files=(file if rows is None else write(file, rows),), **settings)
    validation = how.pop("validation", None)
    made = Preferences(reading(data, **how), tokenizer)
    prepare(Sides(data, validation, seed=0), made, tmp_path / "data", tmp_path / "trained_on.jsonl")
    return dict(opened(tmp_path / "data", "train").about)


def pairs(*answers: tuple[str, str], asked: str = "1 + 1?") -> list[dict[str, Any]]:
    return [{"prompt": asked, "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]


def test_a_pair_is_one_document_of_two_texts(tokenizer, tmp_path: Path):
    """Its tokens are transformers' own of the two conversations, one behind the other."""
    rows = [{"prompt": "what is 1 + 1?", "chosen": "2", "rejected": "3, or 4", "gap": 1.5}]
    about = prepared(tmp_path, rows, tokenizer, gaps=True)
    store = opened(tmp_path / "data", "train")
    turns = [{"role": "user", "content": "what is 1 + 1?"}]
    first, second = (
        tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": said}], return_dict=True)["input_ids"]
        for said in ("2", "3, or 4")
    )
    assert store.tokens.tolist() == [*first, *second]
    assert store.spans.tolist() == [[0, len(first)], [len(first), len(first) + len(second)]]
    assert store.values is not None and store.values.tolist() == [1.5]
    assert (about["rows"], about["documents"], about["tokens"]) == (1, 1, len(first) + len(second))
    assert json.loads((tmp_path / "trained_on.jsonl").read_text()) == {"question": "what is 1 + 1?"}
    listed = (tmp_path / "data/train/rows.txt").read_text()
    assert listed == f"{digest_of(rows[0])} 0 1\n" and about["places"] == [f"{tmp_path}/rows.jsonl, line"]


def test_the_summary_alone_is_read_where_that_is_the_scope(tokenizer, tmp_path: Path):
    rows = pairs(("<think>one and one</think> It is 2", "<think>two</think> It is 4"))
    for scope in ("summary", "response"):
        (tmp_path / scope).mkdir()
        prepared(tmp_path / scope, rows, tokenizer, scope=scope)
    short, long = (
        tokenizer.decode(opened(tmp_path / scope / "data", "train").tokens) for scope in ("summary", "response")
    )
    assert "think" not in short and "It is 2" in short and "<think>one and one</think> It is 2" in long
    marked = pairs(("|s|one|s|It is 2", "|s|two|s|It is 4"))
    (tmp_path / "marks").mkdir()
    prepared(tmp_path / "marks", marked, tokenizer, scope="summary", marks=("|s|", "|s|"))
    assert tokenizer.decode(opened(tmp_path / "marks/data", "train").tokens) == short


def test_what_teaches_nothing_is_left_out_and_counted(tokenizer, tmp_path: Path):
    rows = pairs(
        ("2", "3"), ("2", "3"), ("3", "2"), ("2", " "), ("<think>a", "4"), ("<think>a</think>7", "<think>b</think>7"),
        ("4", "2" * 60),
    )  # fmt: skip
    rows += pairs(("2", "3"), asked="1 + 2?")  # of another question, and no double
    about = prepared(tmp_path, rows, tokenizer, scope="summary", max_tokens=40, too_long="drop")
    wanted = {"rows": 8, "doubles": 1, "contradicted": 1, "empty": 1, "no_summary": 1, "equal": 1, "too_long": 1}
    assert {name: about[name] for name in wanted} == wanted
    assert about["documents"] == 3 and "values.npy" not in {f.name for f in (tmp_path / "data/train").iterdir()}


def test_what_is_too_long_is_named_or_dropped_whole(tokenizer, tmp_path: Path):
    rows = pairs(("2", "3"), ("4", "2" * 60))
    with pytest.raises(
        DataError, match=r"rows.jsonl, line 2: an answer is read in \d+ tokens, more than data.max_tok"
    ):
        prepared(tmp_path, rows, tokenizer, max_tokens=40)
    with pytest.raises(DataError, match=r"train: nothing to learn from .* of the 1 rows that were read all are left"):
        prepared(tmp_path, rows[1:], tokenizer, max_tokens=40, too_long="drop")
    with pytest.raises(DataError, match=r"train: no rows in data.files or data.dataset: name some"):
        prepared(tmp_path, [], tokenizer)


def test_answers_that_a_template_makes_alike_are_equal(tokenizer):
    counts: dict[str, int] = {}
    sifted = Sifted(reading(PreferenceData(files=(Path("f.jsonl"),))), counts)
    row = pair({"prompt": "a", "chosen": "4 ", "rejected": "4"}, "w")
    assert sifted.read(row) == ("4 ", "4")
    from r1mega.buffers import Int32s

    assert not sifted.fits(row, [Int32s([1, 2]), Int32s([1, 2])]) and counts["equal"] == 1
    assert sifted.fits(row, [Int32s([1, 2]), Int32s([1, 3])])


def test_labelled_answers_keep_their_label(tokenizer, tmp_path: Path):
    rows = [{"prompt": f"{i}?", "response": "well", "fine": i % 3 > 0} for i in range(6)]
    rows += [{**rows[0]}, {**rows[1], "fine": False}]
    about = prepared(tmp_path, rows, tokenizer, objective="pointwise", label="fine")
    store = opened(tmp_path / "data", "train")
    assert store.values is not None and store.values.tolist() == [0, 1, 1, 0, 1, 1, 0]
    assert (about["safe"], about["unsafe"], about["doubles"], about["contradicted"]) == (4, 3, 1, 1)
    with pytest.raises(DataError, match="train: all 2 answers are unsafe: a model that tells"):
        prepared(tmp_path, [rows[0], rows[3]], tokenizer, objective="pointwise", label="fine")


def test_a_gap_that_is_needed_and_not_there(tokenizer, tmp_path: Path):
    with pytest.raises(DataError, match=r'rows.jsonl, line 1: has no gap, which margin = "gap" needs of every pair'):
        prepared(tmp_path, pairs(("2", "3")), tokenizer, gaps=True)


def test_validation_has_other_questions_and_the_held_out_side_is_left_out(tokenizer, tmp_path: Path):
    import hashlib

    asked = (f"State the final answer to the following arithmetic problem: {i} + 1 =" for i in range(1000))
    theirs = [t for t in asked if int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") % 8 == 0][:2]
    rows = [row for i in range(60) for row in pairs(("2", "3"), ("5", "4"), asked=f"why {i}?")]
    rows += [row for text in theirs for row in pairs(("2", "3"), asked=text)]
    about = prepared(tmp_path, rows, tokenizer, validation=ValidationData(share=0.25, every_steps=1))
    held = opened(tmp_path / "data", "validation")
    assert about["held_out"] + sum(t in tokenizer.decode(held.tokens) for t in theirs) == 2
    assert len(held) % 2 == 0 or any(t in tokenizer.decode(held.tokens) for t in theirs)
    assert 10 < len(held) < 60 and about["rows"] + about["held_out"] + held.about["rows"] == 122
    trained = {json.loads(line)["question"] for line in (tmp_path / "trained_on.jsonl").read_text().splitlines()}
    assert not any(f"{q}<" in tokenizer.decode(held.tokens) for q in trained) and not trained & set(theirs)


def test_other_settings_are_other_tokens(tokenizer, tmp_path: Path):
    """What is tokenised is known by everything that it depends on: nothing stale is taken up."""
    rows = [{**row, "gap": 1} for row in pairs(("<think>a</think>2", "3"), ("2", "4"))]
    keys = [prepared(tmp_path, rows, tokenizer)["key"]]
    for change in ({"scope": "summary"}, {"gaps": True}, {"max_tokens": 100}, {"marks": ("a", "b")}):
        keys.append(prepared(tmp_path, None, tokenizer, **change)["key"])
    before = tokenizer.chat_template
    tokenizer.chat_template = before + " "
    keys.append(prepared(tmp_path, None, tokenizer)["key"])
    tokenizer.chat_template = before
    assert len(set(keys)) == len(keys)
    assert prepared(tmp_path, None, tokenizer)["key"] == keys[0]
    assert token_store.load(tmp_path / "data/train", "another") is None
