"""Pretraining text: shares, correctness, what is left out."""

import re
from collections import Counter

import pytest

from r1mega.buffers import Float32s, Int32s
from r1mega.data.pretrain_text import STYLES, documents
from r1mega.data.settings import AnswerStyles
from r1mega.data.sources.reasoning_gym import TASKS, Task, questions
from r1mega.data.split import HELD_OUT
from r1mega.errors import ConfigError
from r1mega.evaluation.metrics import grade
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Completion, FinishReason, Prompt

MIX = AnswerStyles(think=0.35, tags=0.35, steps=0.15, plain=0.15)
SUMS = [Task(name="chain_sum", params={"max_digits": 1})]
ALL = [Task(name=name) for name in TASKS]


def test_shares_are_exact_and_the_order_is_mixed():
    docs = documents(ALL, MIX, 1001, 5)
    assert docs == documents(ALL, MIX, 1001, 5)
    assert docs != documents(ALL, MIX, 1001, 6)
    styles = Counter(doc.style for doc in docs)
    assert all(abs(styles[style] - 1001 * getattr(MIX, style)) < 1 for style in STYLES)
    assert set(Counter(doc.task for doc in docs).values()) <= {250, 251}
    assert set(STYLES) == {doc.style for doc in docs[:60]}
    assert set(TASKS) == {doc.task for doc in docs[:60]}


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_every_document_is_right_and_in_its_style(task):
    truth = {q.text: q for q in questions([task], 300, 5)}
    docs = [doc for doc in documents([task], MIX, 300, 5) if doc.question in truth]
    assert len(docs) > 100
    for doc in docs:
        question = truth[doc.question]
        prompt = Prompt(question.id, question.verifier, question.text, question.truth, Int32s(), entry=question.entry)
        completion = Completion(question.id, 0, Int32s([1]), Float32s([0.0]), doc.answer, FinishReason.STOP, 0, 0)
        graded = grade(prompt, completion)
        assert (graded.lenient, graded.style) == (True, doc.style)
        tagged = float(doc.style in ("think", "tags"))
        (verdict,) = Rubric({"accuracy": Accuracy(), "format": Format()}, "zero").judge(prompt, [completion], 0)
        assert verdict.parts == {"accuracy": tagged, "format": tagged}


def test_steps_are_in_words_where_languages_are_named():
    docs = documents(SUMS, MIX, 200, 5, languages=["en", "zh"])
    assert docs == documents(SUMS, MIX, 200, 5, languages=["en", "zh"])
    in_signs = documents(SUMS, MIX, 200, 5)
    assert [doc.question for doc in docs] == [doc.question for doc in in_signs]
    for doc, signs in zip(docs, in_signs, strict=True):
        said = doc.answer
        for word, sign in ((" plus ", "+"), (" minus ", "-"), (" is ", "="), ("加", "+"), ("减", "-"), ("得", "=")):
            said = said if doc.style in ("plain", "tags") else said.replace(word, sign)
        assert said.replace("So it=", "So it is ") == signs.answer
    thoughts = "".join(doc.answer for doc in docs if doc.style == "think")
    assert " is " in thoughts and "得" in thoughts and "=" not in thoughts


def test_with_slips_the_answer_is_what_the_steps_come_to_and_styles_without_steps_are_right():
    clean, slipping = documents(SUMS, MIX, 400, 5), documents(SUMS, MIX, 400, 5, slips=0.5)
    changed = [(a, b) for a, b in zip(clean, slipping, strict=True) if a != b]
    assert {b.style for _, b in changed} == {"think", "steps"}
    for _, doc in changed:
        last, answer = re.findall(r"-?\d+", doc.answer)[-2:]
        assert (last, doc.answer.count("=") > 0) == (answer, True)
    worked = [doc for doc in clean if doc.style in ("think", "steps")]
    assert 0.5 < len(changed) / len(worked) < 1  # each of its steps slips as likely as not


def test_examples_stand_before_a_question_in_its_style_and_its_languages():
    docs = documents(SUMS, MIX, 400, 5, languages=["en", "zh"], slips=0.5, examples=0.4)
    turns = [[turn.split("<|assistant|>") for turn in doc.prompt.split("<|user|>")[1:]] for doc in docs]
    for doc, asked in zip(docs, turns, strict=True):
        assert [question for question, _ in asked] == [*doc.shown, doc.question] and asked[-1][1] == ""
    shown = [(doc, asked[:-1]) for doc, asked in zip(docs, turns, strict=True) if doc.shown]
    assert 130 < len(shown) < 190 and {len(examples) for _, examples in shown} == {1, 2}
    alike = 0
    for doc, examples in shown:
        for question, answer in examples:
            assert answer.endswith("<|eos|>") and answer.startswith("<think>") == doc.answer.startswith("<think>")
            (terms,) = re.findall(r"(-?\d+(?: [-+] \d+)*) =", question)
            right = sum(map(int, re.findall(r"[-+]?\d+", terms.replace(" ", ""))))
            assert re.findall(r"-?\d+", answer)[-1] == str(right), "examples do not slip"
        said = "".join(answer for _, answer in examples)
        if doc.style == "think" and ("得" in said) != (" is " in said):
            alike += 1
            assert ("得" in doc.answer) == ("得" in said) or len(examples) == 1
    assert alike > 10
    assert len({doc.shown for doc in documents(SUMS, MIX, 400, 5)}) == 1, "none unless they are asked for"


def test_one_document_of_each_style_to_the_letter():
    docs = documents(SUMS, MIX, 400, 0)
    steps = {doc.answer.partition(". So it is ")[0] for doc in docs if doc.style == "steps"}
    think = next(doc for doc in docs if doc.style == "think")
    body = think.answer.removeprefix("<think>").removesuffix("</answer>")
    worked, _, answer = body.partition("</think><answer>")
    assert worked.endswith(f"={answer}") and all("=" in step for step in steps)
    assert think.prompt == f"<|user|>{think.question}<|assistant|>"
    assert {d.answer for d in docs if d.style == "tags"} <= {
        f"<think></think><answer>{n}</answer>" for n in range(-60, 61)
    }
    assert {d.answer for d in docs if d.style == "plain"} <= {f"The answer is {n}." for n in range(-60, 61)}


def test_held_out_questions_are_not_in_the_text():
    assert not any(doc.question in HELD_OUT for doc in documents(SUMS, MIX, 500, 0, exclude=HELD_OUT))
    assert any(doc.question in HELD_OUT for doc in documents(SUMS, MIX, 500, 0))


def test_styles_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ConfigError, match=r"sum to 0\.9"):
        documents(SUMS, AnswerStyles(think=0.5, tags=0.4, steps=0, plain=0), 10, 0)
