"""Filters of sampled answers: what each measures, by hand, and at which value an answer falls."""

import time

import pytest

from r1mega.buffers import Int32s
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.filters import Filters, fenced_blocks, longest_paragraph, repeated, sift, words
from r1mega.rewards.reward import Answer
from r1mega.samples import Prompt, VerdictStatus

OFF = {"max_repetition": 1, "max_paragraph_words": 0, "code_blocks": "keep", "min_language": 0}
PROMPT = Prompt("p", "math", "1 + 1?", "2", Int32s([1]))


@pytest.mark.parametrize(
    ("text", "num"),
    [
        ("", 0),
        ("one", 1),
        ("one two\nthree four five\n\nsix", 3),
        ("one two\r\nthree", 2),
        ("先算二加二", 5),
        ("先算 2 + 2", 5),
        ("カタカナ word", 5),
        ("  \n \t\n", 0),
    ],
)
def test_words_of_the_longest_paragraph(text: str, num: int):
    assert longest_paragraph(text) == num
    assert words(text.partition("\n")[0]) <= num


@pytest.mark.parametrize(
    ("text", "num"),
    [
        ("no code, only `x` and x = 1", 0),
        ("So:\n```python\nx = 1\n```\n", 1),
        ("So: ```x = 1``` and\n~~~\ny\n~~~", 2),
        ("it never ends\n```python\nx = 1", 1),
        ("about ~~~ ten", 0),
        ("  ~~~\nx\n  ~~~\n", 1),
    ],
)
def test_blocks_of_code(text: str, num: int):
    assert fenced_blocks(text) == num


def test_repetition_is_of_tokens_or_of_words_where_there_are_none():
    assert repeated(Int32s([5, 6, 5, 6, 5, 6, 5]), "whatever") == 0.5  # 5656, 6565, 5656, 6565
    assert repeated(Int32s(), "a b a b a b a") == 0.5
    assert repeated(Int32s(), "a b c d e f g") == 0.0


@pytest.mark.parametrize(
    ("setting", "name", "value", "passes", "falls", "reason"),
    [
        ({"min_tokens": 10}, "tokens", 0, 10, 9, "too_short"),
        ({"max_tokens": 10}, "tokens", 0, 10, 11, "too_long"),
        ({"max_repetition": 0.5}, "repetition", 0, 0.5, 0.51, "repetition"),
        ({"max_paragraph_words": 10}, "paragraph_words", 0, 10, 11, "long_paragraph"),
        ({"code_blocks": "drop"}, "code_blocks", 0, 0, 1, "code_block"),
        ({"min_language": 0.9}, "language", 0, 0.9, 0.89, "mixed_languages"),
    ],
)
def test_each_filter_has_its_border(setting: dict, name: str, value: int, passes: float, falls: float, reason: str):
    filters = Filters.model_validate(OFF | setting)
    assert filters.reason({name: passes}) is None and filters.reason({name: falls}) == reason
    assert filters.reason({name: None}) is None
    assert set(filters.measure("", 0, 0.0, "")) == {name}
    assert Filters.model_validate(OFF).measure("a b", 3, 1.0, "") == {}


def test_the_first_filter_names_the_reason_and_all_are_measured():
    filters = Filters(max_tokens=5, max_paragraph_words=3)
    thought = "First we add all of it.\n```\nx\n```\n然后除以三"
    found = filters.measure(thought, 6, 0.9, "en")
    assert found == {
        "tokens": 6, "repetition": 0.9, "paragraph_words": 6, "code_blocks": 1,
        "language": found["language"],
    }  # fmt: skip
    assert 0.4 < (found["language"] or 0) < 0.9  # 6 English words; of the Chinese ones some 3 to 5
    reasons = []
    for name in ("tokens", "repetition", "paragraph_words", "code_blocks", "language"):
        reasons.append(filters.reason(found))
        found[name] = None
    assert reasons == ["too_long", "repetition", "long_paragraph", "code_block", "mixed_languages"]
    assert filters.reason(found) is None


def test_a_questions_own_language_goes_before_the_settings():
    filters = Filters()
    assert filters.measure("Zuerst addieren wir die beiden Zahlen.", 9, 0.0, "de")["language"] == 1.0
    assert filters.measure("然后除以三，得到答案。", 9, 0.0, "zh")["language"] == 1.0
    assert filters.measure("然后除以三，得到答案。", 9, 0.0, "")["language"] == 0.0
    assert filters.measure("1 + 1 = 2", 9, 0.0, "")["language"] is None  # no word is of no language


def test_a_rule_is_asked_of_what_passes_alone():
    answer = Answer("<think>Two.</think> \\boxed{2}", 9)
    kept = sift(Filters(), Accuracy(), PROMPT, answer, "Two.", 0.0)
    assert kept.score is not None and (kept.score.status, kept.score.value) == (VerdictStatus.SCORED, 1.0)
    dropped = sift(Filters(max_tokens=8), Accuracy(), PROMPT, answer, "Two.", 0.0)
    assert (dropped.reason, dropped.score) == ("too_long", None)


def test_hostile_texts_take_linear_time():
    for text in ("`" * 400_000, "~~~\n" * 100_000, " " * 400_000 + "```", "一" * 400_000, "\n" * 400_000):
        began = time.process_time()
        longest_paragraph(text), fenced_blocks(text), words(text)
        assert time.process_time() - began < 5
