"""Answers written anew by another model: what it is sent, what of its replies is read, what becomes of the rest."""

import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from pydantic import ValidationError

from r1mega.endpoint.replies import CUT
from r1mega.errors import EndpointError
from r1mega.rewards.rewriting import REPLY_FORM, REWRITE_SYSTEM, RewriteWords, Rewritten, reader, rewrite

QUESTION, THOUGHT, ANSWER = "What is 2 + 3?", "2+3 -> 5 . 所以 5", "<answer>5</answer>"
GOOD = "Gladly.\n\n[[reasoning]]\nI add 2 and 3.\n\nThat is 5.\n[[summary]]\n2 + 3 = <answer>5</answer>\n"
PARTS = ("I add 2 and 3.\n\nThat is 5.", "2 + 3 = <answer>5</answer>")


class Rewriter:
    """Says at once what `say` makes of the seed."""

    def __init__(self, say: Callable[[int], str]) -> None:
        self.say, self.asked = say, list[dict[str, Any]]()

    def ask(self, messages: Any, *, seed: int, temperature: float, max_tokens: int) -> Future[str]:
        self.asked.append(
            {"messages": list(messages), "seed": seed, "temperature": temperature, "max_tokens": max_tokens}
        )
        future: Future[str] = Future()
        try:
            future.set_result(self.say(len(self.asked)))
        except Exception as error:
            future.set_exception(error)
        return future


def rewritten(
    rewriter: Rewriter, thought: str = THOUGHT, answer: str = ANSWER, seed: int = 1, **words: Any
) -> Rewritten:
    return rewrite(rewriter, QUESTION, thought, answer, RewriteWords(**words), seed=seed).result(0)


def test_both_parts_are_read_and_put_into_the_template():
    found = rewritten(Rewriter(lambda _: GOOD))
    assert (found.status, found.thought, found.answer, found.unreadable) == ("scored", *PARTS, 0)
    text = RewriteWords().text(QUESTION, found.thought, found.answer)
    assert text == "<think>\nI add 2 and 3.\n\nThat is 5.\n</think>\n\n2 + 3 = <answer>5</answer>"
    own = RewriteWords(template="Q {question}: {thought} \\boxed{{answer}}")
    assert own.text("{answer}?", "{question}", "5") == "Q {answer}?: {question} \\boxed{5}"


def test_the_model_is_sent_all_three_texts_in_frames_and_told_what_to_do():
    rewriter = Rewriter(lambda _: GOOD)
    rewritten(rewriter, temperature=0.3, max_tokens=99)
    (asked,) = rewriter.asked
    system, user = asked["messages"]
    assert system == {"role": "system", "content": f"{REWRITE_SYSTEM}\n\n{REPLY_FORM}"}
    (mark,) = set(re.findall(r"begins ([0-9a-f]{12}) ===", user["content"]))
    parts = (("question", QUESTION), ("model's reasoning", THOUGHT), ("model's answer", ANSWER))
    framed = [f"=== {name} begins {mark} ===\n{text}\n=== {name} ends {mark} ===" for name, text in parts]
    assert user == {"role": "user", "content": "\n\n".join(framed)}
    assert (asked["temperature"], asked["max_tokens"]) == (0.3, 99)
    assert "language of the question" in REWRITE_SYSTEM and "Keep every step" in REWRITE_SYSTEM
    rewriter = Rewriter(lambda _: GOOD)
    rewritten(rewriter, system="In French.", prompt="{question}: {thought} = {answer}!")
    system, user = rewriter.asked[0]["messages"]
    assert system["content"] == f"In French.\n\n{REPLY_FORM}" and user["content"].endswith("===!")


@pytest.mark.parametrize(
    "reply",
    [
        "[[reasoning]]\na\n[[summary]]\nb",
        "<think>[[reasoning]]\nx\n[[summary]]\ny</think>\n[[reasoning]]\na\n[[summary]]\nb",
        "## [[Reasoning]]\n\na\n\n**[[summary]]**:\n\nb\n\n",
        "It asks for [[reasoning]] and [[summary]].\n[[reasoning]]\na\n[[summary]]\nb",
    ],
)
def test_parts_are_found(reply: str):
    assert reader(("<think>", "</think>"))(reply) == ("a", "b")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "It is 5.",
        "[[reasoning]]\na",
        "[[summary]]\nb\n[[reasoning]]\na",
        "[[reasoning]]\na\n[[summary]]\nb\n[[summary]]\nc",
        "[[reasoning]]\n[[summary]]\nb",
        "[[reasoning]]\na\n[[summary]]\n ",
        "[[reasoning]]\na\n[[summary]]\nb" + CUT,
        "<think>\n[[reasoning]]\na\n[[summary]]\nb",
        "[[reasoning]]\na\n[[summary]]\nb</think>",
        "[[reasoning]]\n<think>a\n[[summary]]\nb",
        "[[reasoning]]\n=== model's reasoning begins 0123456789ab ===\na\n[[summary]]\nb",
        "reasoning: a [[reasoning]] summary: b [[summary]]",
    ],
)
def test_replies_that_are_none_are_not_read(reply: str):
    assert reader(("<think>", "</think>"))(reply) is None


def test_marks_of_ones_own_may_stand_in_no_part():
    read = reader(("|special_token|", "|special_token|"))
    assert read("[[reasoning]]\na|special_token|\n[[summary]]\nb") is None
    assert read("[[reasoning]]\na\n[[summary]]\nb") == ("a", "b")


def test_what_cannot_be_read_is_asked_again_with_other_seeds():
    rewriter = Rewriter(lambda times: GOOD if times == 3 else "Hm.")
    found = rewritten(rewriter)
    assert (found.status, found.answer, found.unreadable) == ("scored", PARTS[1], 2)
    assert len({asked["seed"] for asked in rewriter.asked}) == 3
    rewriter = Rewriter(lambda _: "Hm. I would rather not.")
    found = rewritten(rewriter, retries=1)
    assert found.status == "unscorable" and len(rewriter.asked) == 2 == found.unreadable
    assert found.reason == "no rewrite can be read in 2 replies; the last ends with 'Hm. I would rather not.'"


def test_an_endpoint_that_is_at_fault_has_failed_and_not_the_answer():
    def refuse(_: int) -> str:
        raise EndpointError("it is too long for the model")

    found = rewritten(Rewriter(refuse))
    assert (found.status, found.reason) == ("failed", "it is too long for the model")


def test_an_answer_that_is_too_long_is_not_asked_about():
    rewriter = Rewriter(lambda _: GOOD)
    found = rewritten(rewriter, max_characters=len(QUESTION + THOUGHT + ANSWER) - 1)
    assert found.status == "unscorable" and "max_characters" in found.reason and not rewriter.asked
    assert rewritten(rewriter, max_characters=len(QUESTION + THOUGHT + ANSWER)).status == "scored"


def test_seeds_follow_from_the_runs_and_the_texts():
    def seed(*texts: str, of: int = 1) -> int:
        rewriter = Rewriter(lambda _: GOOD)
        rewritten(rewriter, *texts, seed=of)
        return rewriter.asked[0]["seed"]

    assert seed() == seed() and len({seed(), seed(of=2), seed("another"), seed(THOUGHT, "5")}) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"template": "{thought}"}, "{answer} should stand in it"),
        ({"template": "{answer}"}, "{thought} should stand in it"),
        ({"template": "{thought} {answer} {truth}"}, "{truth}: nothing is put there"),
        ({"prompt": "{question} {answer}"}, "{thought} should stand in it"),
    ],
)
def test_words_that_leave_something_out_are_refused(words: dict[str, str], said: str):
    with pytest.raises(ValidationError, match=re.escape(said)):
        RewriteWords(**words)
