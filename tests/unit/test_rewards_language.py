"""The language reward: shares held against texts labelled and segmented by hand, rule by rule, and under attack."""

import itertools
import json
import random
import re
import time
import unicodedata
from pathlib import Path

import pytest
import regex
from pydantic import ValidationError

from r1mega.buffers import Int32s
from r1mega.rewards.language import MAX_CHARACTERS, Language, chain_of_thought, judge_text, share_of
from r1mega.rewards.languages import identify, table, words
from r1mega.rewards.languages.neutral import without_neutral
from r1mega.rewards.languages.words import clauses
from r1mega.rewards.reward import Answer
from r1mega.rewards.worker import Limits
from r1mega.samples import Prompt

TEXTS = [json.loads(line) for line in (Path(__file__).parent / "data/language_texts.jsonl").read_text().splitlines()]
"""`parts`: (language, text) by hand, "-" what is no word; bars in Chinese and Japanese stand between words."""
NO_SPACES = ("zh", "ja")


def has_letter(text: str) -> bool:
    return any(unicodedata.category(sign)[0] == "L" for sign in text)


def by_hand(language: str, text: str) -> tuple[int, int]:
    """Words of a part as the verdicts count them at least and at most: characters, and Korean syllables, are most."""
    if language == "-":
        return 0, 0
    cut = r"[|\s]|(?<=[。，、：；！？])" if language in NO_SPACES else r"\s"
    fewest = sum(has_letter(word) for word in re.split(cut, text))
    letters = sum(unicodedata.category(sign)[0] in "LM" for sign in text)
    return fewest, letters if language in (*NO_SPACES, "ko") else fewest


def text_of(row) -> str:
    return "".join(text.replace("|", "") if language in NO_SPACES else text for language, text in row["parts"])


@pytest.mark.parametrize("row", TEXTS, ids=lambda row: row["id"])
def test_shares_of_texts_labelled_by_hand(row):
    counted = [(language, *by_hand(language, text)) for language, text in row["parts"]]
    target = row["target_language"]
    all_words = [sum(part[i] for part in counted) for i in (1, 2)]
    shares = [sum(part[i] for part in counted if part[0] == target) / all_words[i - 1] for i in (1, 2)]
    slack = 0.1 if row["judged"] == "clauses" else 1 / all_words[0]
    share = share_of(text_of(row), target)
    assert min(shares) - slack <= share <= max(shares) + slack


def test_the_table_has_what_it_is_for():
    assert len(TEXTS) >= 80
    languages = {language for row in TEXTS for language, _ in row["parts"]}
    assert {"en", "zh", "ko", "ja", "de", "-"} <= languages and len(languages) > 15
    mixed = [row for row in TEXTS if len({language for language, _ in row["parts"]} - {"-"}) > 1]
    assert len(mixed) > 60


def test_segmentation_is_unicodes_default():
    """`regex` has Unicode's word boundaries too, and was not asked by the code."""
    for row in TEXTS:
        for language, text in row["parts"]:
            if language in NO_SPACES:
                text = regex.sub(r"[^\p{Han}\p{Hiragana}\p{Katakana}ー。、]", " ", text.replace("|", ""))
                segments = [s for s in regex.split(r"(?w)\b", text) if has_letter(s)]
                assert sum(sum(clause.words.values()) for clause in clauses(text)) == len(segments), text


NEUTRAL = [
    ("in\n```python\nfor x in wert: pass\n```\nout", "in out"),
    ("in\n```\nnever closed und so", "in"),
    ("in ``der `Wert` hier`` out", "in out"),
    ("in `der Wert` out", "in out"),
    ("in ` out", "in out"),
    ("in\n~~~\nder Wert\n~~~\nout", "in out"),
    ("in\ndef der(wert):\n    return wert + 1  # 然后\nout", "in out"),
    ("in\nint wert = das;\nfor (int i = 0; i < n; i++) {\n}\nout", "in out"),
    ("in\nfor wert in werte:\n    print(wert, das)\ntotal = sum(wert)\nimport der\nout", "in out"),
    ("for the sum:\nif it is even (it is) we say:\nfrom here on we stop; and so on", None),
    ("total is the sum; else we stop\nwhile we wait:\nwith that done, print it", None),
    ("in $der = Wert$ out $$das$$ up", "in out up"),
    ("it costs $5 and that costs $6 here", "it costs and that costs here"),
    (r"in \[ der \text{Wert} \] out \( das \) up", "in out up"),
    (r"in \begin{align} der &= Wert \end{align} out", "in out"),
    (r"in \frac{der}{\sqrt{das}} out", "in out"),
    ("in x=3, y_1 <= 2z, der=5 and a+b/c out", "in and out"),
    ("in num_werte or maxWert or os.path or gcd(12, 18) out", "in or or or out"),
    ("in https://der.wert/das?ist=1 or der@wert.de or /usr/lib/das or www.wert.de out", "in or or or out"),
    ("in 12 or 3.5 kg or 60 km/h or 2nd or ½ out", "in or or or or out"),
    ('in "der Wert" and “Das ist der Wert” and \'das\' out', "in and and out"),
    ('he said "Das ist der Wert. Er ist gut." twice', "he said Das ist der Wert Er ist gut twice"),
    ("in 《der Wert》 out, don't stop at Peter's", "in out don't stop at Peter's"),
    ("a number n, where I think b is", "a number where I think is"),
    ("in sin x and cos θ and Δx and log 2 out", "in and and and out"),
    ("in F = ma and ab + c < bc out at 5 m² so", "in and out at so"),
    ("sind kostet Kosinus sink", "sind kostet Kosinus sink"),
    ("**der** *Wert* _ist_ and/or # gut", "der Wert ist and or gut"),
    ("the triangle ABC and its side AB", "the triangle and its side"),
    ("DAS IST DER WERT", "DAS IST DER WERT"),
    ("by SSSS or SASAS, in ABCD", "by or SASAS in"),
    ("in ` out\n\nand ` up", "in out and up"),
    ("in <b>out</b> <think> up", "in out up"),
    ("hel\u200blo w\u00adorld \u202eabc\u202c", "hello world abc"),
    ("cafe\u0301 na\u00efve", "cafe\u0301 na\u00efve"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "left"), NEUTRAL, ids=lambda value: value and value[:20])
def test_what_is_no_word(text, left):
    found = [w for clause in clauses(without_neutral(text, "en")) for ws in clause.texts.values() for w in ws]
    assert " ".join(found) == (left or " ".join(re.findall(r"\w+", text)))  # None: all of it


def test_a_quotation_is_a_name_up_to_a_dozen_characters_of_chinese():
    for num, stays in ((12, False), (13, True)):
        assert ("然" in without_neutral(f"in “{'然' * num}” out", "en")) is stays


def test_what_is_no_word_ends_no_clause_and_hides_no_end():
    text = "call `f` on 4 or $x$ or https://a.b/c, or 3.5. Then so! Now 2, or https://a.b/d. The end"
    found = [" ".join(clause.texts["Latin"]) for clause in clauses(without_neutral(text, "en"))]
    assert found == ["call on or or", "or", "Then so", "Now", "or", "The end"]


def test_one_letter_words_are_those_of_the_target():
    def left(target):
        return [w for clause in clauses(without_neutral("ella y yo", target)) for w in clause.texts["Latin"]]

    assert left("es") == ["ella", "y", "yo"] and left("en") == ["ella", "yo"]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("p\u0430ypal is here", 2 / 3),  # a Cyrillic a
        ("\u0441\u043e\u0440 is here", 2 / 3),  # all Cyrillic, though it looks like "cop"
        ("\u03bd\u03b1\u03bb is here", 2 / 3),  # Greek letters
        ("Python编程 is", 2 / 4),
        ("\uff48\uff45\uff4c\uff4c\uff4f is here", 1.0),  # full-width Latin
        ("hello 👩‍👩‍👧 🎉 !!! ...", 1.0),
        ("so מספר is", 2 / 3),
        ("so አንድ ก กกกก is \ua4d0\ua4d1", 2 / 6),  # Ethiopic, Thai by four letters, and Lisu, which is no target
    ],
)
def test_scripts_of_odd_texts(text, share):
    assert share_of(text, "en") == pytest.approx(share)


def test_where_the_chain_of_thought_stands():
    assert chain_of_thought("<think>a</think><answer>b</answer>") == "a"
    assert chain_of_thought("a</think>b") == "a"
    assert chain_of_thought("x<think>a") == "a"
    assert chain_of_thought("<think>a</think>b<think>c</think>d") == "a</think>b<think>c"
    assert chain_of_thought("a</think>b<think>c") == "a</think>b<think>c"
    assert chain_of_thought("a <answer>b</answer>") is None


def judge(text, reward, target=""):
    return reward.judge(Prompt("1", "math", "q", "1", Int32s(), target_language=target), Answer(text, 5), ())


def test_the_reward_is_the_share_in_the_thought_alone():
    text = "<think>wir rechnen das jetzt aus und sind gleich fertig 然后</think><answer>here is the answer</answer>"
    assert judge(text, Language(language="de")).value == pytest.approx(9 / 11)
    assert judge(text, Language(language="zh")).value == pytest.approx(2 / 11)
    assert judge(text, Language()).value == judge(text, Language(language="en")).value == 0.0
    assert judge(text, Language(), "de").value == judge(text, Language(language="zh"), "de").value == 9 / 11
    assert Language().weight.plain() == 1.0


def test_silence_is_worth_nothing_and_says_why():
    for text, reason in (
        ("<answer>4</answer>", "no chain of thought"),
        ("<think></think>", "no words in the chain of thought"),
        ("<think>4-1=3, `x`, $y$ 🎉</think>", "no words in the chain of thought"),
    ):
        found = judge(text, Language())
        assert (found.status, found.value, found.reason) == ("scored", 0.0, reason)


def test_an_unknown_language_is_refused_and_never_a_zero():
    assert judge("<think>so</think>", Language(), "eo").status == "unscorable"
    with pytest.raises(ValidationError, match="the language reward does not know 'eng'"):
        Language(language="eng")


def test_every_language_that_shares_its_script_is_known_to_the_model():
    shared = [codes for script in table.SPACED if len(codes := table.of_one_script(script)) > 1]
    assert len(shared) >= 4
    for codes in shared:
        assert set(dict(identify._identifier(codes).rank("a"))) == set(codes)
    assert {code for codes in shared for code in codes} < set(table.SCRIPTS)


def test_two_syllables_begun_of_a_korean_unit_are_a_word():
    assert share_of("수를 더하면 답은 짝수입니다 so", "ko") == 7 / 8  # of 2, 3, 2 and 5 syllables
    assert share_of("Python을 so", "ko") == 1 / 3


def test_the_path_is_the_likeliest_of_all():
    draw = random.Random(3)
    for _ in range(60):
        evidence = [draw.uniform(-6, 6) for _ in range(draw.randint(1, 8))]

        def worth(spoken, evidence=evidence):
            changes = sum(a != b for a, b in itertools.pairwise((True, *spoken)))
            return sum(e for e, target in zip(evidence, spoken, strict=True) if target) - identify.SWITCH * changes

        best = max(itertools.product([True, False], repeat=len(evidence)), key=worth)
        assert tuple(identify.path(evidence)) == best
    assert identify.path([0.0, -0.9, 0.0]) == identify.path([1.0, -1.9, 1.0]) == [True] * 3  # too little to be told
    assert identify.path([1.0, -2.1, 1.0]) == [True, False, True]
    assert identify.path([]) == []
    assert identify.path([-1e9, *[1.0] * 20]) == [False, *[True] * 20]  # one clause counts for so much and no more


def test_a_short_clause_goes_with_its_neighbours():
    german = "Wir addieren die beiden Zahlen. {} Dann teilen wir das Ergebnis."
    english = "We add the two numbers together. {} Then we divide the result."
    assert share_of(german.format("Also."), "de") == share_of(english.format("Also."), "en") == 1.0
    assert share_of(german.format("Also."), "en") == share_of(english.format("Also."), "de") == 0.0
    assert (
        share_of("Wait.", "en") == share_of("Okay.", "en") == share_of("Okay.", "de") == 1.0
    )  # what cannot be told is the target


def test_few_words_said_often_are_no_more_evidence():
    assert share_of("4 plus 1 is 5 plus 3 is 8 plus 2 is 10 plus 7 is 17", "en") == 1.0


def test_chinese_and_japanese_are_told_by_kana_and_characters():
    assert share_of("計算結果", "ja") == 1.0  # in a heading there may be no kana
    assert share_of("计算结果", "ja") == 0.0  # characters that Japanese does not have
    assert share_of("次に計算します", "zh") == 0.0
    assert share_of("これは数です", "ja") == 1.0
    assert share_of("答案是三", "ja") == 0.0  # Japanese has these characters, and no such word
    assert share_of("まず足します。東京特許許可局。次に割ります。", "ja") == 1.0


HOSTILE = {
    "letters": "a" * 10**6, "words": "ab " * 330_000, "clauses": "ab," * 330_000, "Chinese": "我," * 500_000,
    "backticks": "".join("`" * i + " " for i in range(1, 1400)), "fences": "```\n~~~\n" * 120_000,
    "dollars": "$a " * 330_000, "brackets": r"\[\(" * 250_000, "braces": r"\a{" * 330_000,
    "nested": r"\a{\a{}" * 140_000,
    "environments": r"\begin{a}" * 110_000, "quotes": " 'a" * 330_000, "curly": "“a" * 500_000,
    "dots": "A." * 500_000, "paths": " /a" * 330_000, "addresses": "a@a." * 250_000, "tags": '<a a="' * 160_000,
    "digits": "1." * 500_000, "signs": "a=" * 500_000, "hyphens": "a-" * 500_000, "marks": "a" + "\u0301" * 10**6,
    "invisible": "h\u200b" * 500_000, "scripts": "aб" * 500_000, "surrogates": "\ud800" * 10**6, "zero": "\0" * 10**6,
    "capitals": "AB " * 330_000,
    "lines": ("if " + "=" * 190 + "\n") * 5_000, "assignments": ("a[" * 90 + "=\n") * 5_000,
    "think": "<think>" * 140_000, "sin": "sin " * 250_000, "emoji": "👩‍👩‍👧 " * 160_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_is_judged_within_a_fraction_of_a_tasks_time(name):
    """On an idle core in a tenth of what a worker gives a task."""
    share_of("what is loaded once is loaded", "en")
    started = time.process_time()
    found = judge_text(HOSTILE[name], "en", bare=True)
    assert time.process_time() - started < Limits().cpu_s
    assert 0.0 <= found.value <= 1.0


def test_nothing_hides_behind_the_limit():
    part = "the number is even and so on. "
    long = part * (2 * MAX_CHARACTERS // len(part)) + "然后我们除以三" * 40_000 + part * 20_000
    found = judge_text(long, "en", bare=True)
    assert found.value < 0.75 and f"of its {len(long):,} characters" in found.reason
    assert judge_text(part * 1000, "en", bare=True).reason == ""


def test_clauses_are_bounded(monkeypatch):
    monkeypatch.setattr(words, "MAX_CLAUSES", 10)
    assert len(clauses("ab, " * 1010)) == 10 + 1000 // words.LONG_CLAUSE
