"""What of an answer is scored, by hand."""

import pytest

from r1mega.data.scope import scoped

COLD_START = ("|special_token|", "|special_token|")


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("<think>2 + 2</think> It is 4.\n", "It is 4."),
        ("<think>a</think>b</think>c", "c"),  # the last closing mark
        ("<think>a</think>b<think>c</think>d", "d"),
        ("no thought at all", "no thought at all"),
        (" 4 ", "4"),
        ("thought</think>4", "4"),  # the template's prefill has opened it
        ("<think>still thinking", None),
        ("answer first <think>", None),
        ("<think>a</think>b<think>c", None),  # opened again
        ("<think>a</think>", None),
        ("<think>a</think> \n ", None),
        ("", None),
        ("<think>a</think> <answer> 4 </answer>\n", "4"),
        ("<answer>4</answer>", "4"),
        ("<think>a</think>so <answer>4</answer>", "so <answer>4</answer>"),  # not around all of it
        ("<think>a</think><answer>1</answer> or <answer>2</answer>", "<answer>1</answer> or <answer>2</answer>"),
        ("<think>a</think><answer>4", "<answer>4"),
        ("<think>a</think><answer>  </answer>", None),
        ("<Think>a</Think>b", "<Think>a</Think>b"),  # another spelling is no mark
    ],
)
def test_a_summary_is_what_stands_behind_the_thinking(text: str, summary: str | None):
    assert scoped(text, "summary") == summary


@pytest.mark.parametrize("text", ["<think>2 + 2</think> 4\n", "<think>still", "</think>", " a"])
def test_a_response_is_the_text_as_it_is(text: str):
    assert scoped(text, "response") == text


def test_a_blank_response_is_none():
    assert scoped("", "response") is None and scoped(" \n", "response") is None


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("|special_token|a b|special_token|c ", "c"),
        ("|special_token|a b", None),
        ("|special_token|a|special_token|b|special_token|c", None),  # a third one opens again
        ("|special_token|a|special_token|", None),
        ("<think>a</think>b", "<think>a</think>b"),
    ],
)
def test_marks_may_be_the_same(text: str, summary: str | None):
    assert scoped(text, "summary", COLD_START) == summary


def test_marks_are_those_that_are_given():
    marks = ("[THINK]", "[/THINK]")
    assert scoped("[THINK]a[/THINK] b", "summary", marks) == "b"
    assert scoped("<think>a</think> b", "summary", marks) == "<think>a</think> b"


def test_a_hostile_text_takes_no_longer_than_it_is_long():
    assert scoped("<think>" * 300_000 + "</think>" * 300_000, "summary") is None
