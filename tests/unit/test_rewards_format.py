"""Rules about the shape of an answer, on well-meant and on hostile text."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mega.buffers import Float32s, Int32s
from r1mega.data.template import TAGS
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format, find_answer, is_formatted, style_of
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.samples import Completion, FinishReason, Prompt

GOOD = "<think>4-1=3</think><answer>3</answer>"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "<think></think><answer>3</answer>",
        "\n<think>\nlong\nthought\n</think>\n\n<answer> 3 </answer>\n",
        "<think>a < b, </ think> <THINK></think><answer>3</answer>",
    ],
)
def test_formatted(text):
    assert is_formatted(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "<answer>3</answer>",
        "<think>4-1=3</think>3",
        "<think>4-1=3</think><answer>3",
        "<think>4-1=3<answer>3</answer>",
        "4-1=3</think><answer>3</answer>",
        "<answer>3</answer><think>4-1=3</think>",
        "<think><answer>3</answer></think>",
        "<think>4-1=3</think><answer></answer>",
        "<think>4-1=3</think><answer> \n</answer>",
        "</think><think><answer>3</answer>",
        f"{GOOD}{GOOD}",
        f"{GOOD}.",
        f"So: {GOOD}",
        "<think>4-1=3</think> so <answer>3</answer>",
        "<think><think>4-1=3</think></think><answer>3</answer>",
        "<think>4-1=3</think><answer>3</answer><answer>4</answer>",
        "<think>4-1=3</think><answer><answer>3</answer></answer>",
        "<Think>4-1=3</Think><answer>3</answer>",
        "<think>4-1=3</think>\u200b<answer>3</answer>",
    ],
)
def test_not_formatted(text):
    assert not is_formatted(text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (GOOD, "3"),
        ("<answer> 3\n</answer>", "3"),
        ("well <answer>3</answer> then", "3"),
        ("<answer></answer>", ""),
        ("<think>a</think><think>b</think><answer>3</answer>", "3"),
        ("<answer>3</answer><answer>3</answer>", None),
        ("<answer>3</answer></answer>", None),
        ("</answer>3<answer>", None),
        ("<answer>3", None),
        ("<think>4-1=3<answer>3</answer>", None),
        ("<think><answer>3</answer></think>", None),
        ("<answer>3</answer></think>", None),
        ("<think>a</think><think>b<answer>3</answer>", None),
        ("The answer is 3.", None),
    ],
)
def test_find_answer(text, answer):
    assert find_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "style"),
    [
        (GOOD, "think"),
        ("<think> </think><answer>3</answer>", "tags"),
        ("<think>first add, then halve</think><answer>3</answer>", "think"),
        ("<think>\n</think><answer>3</answer>", "tags"),
        ("<think>first add, then halve</think> 3", "other"),
        ("<think>4-1=3<answer>3</answer>", "other"),
        ("4-1=3. So it is 3.", "steps"),
        ("The answer is 3.", "plain"),
        ("3", "other"),
        ("", "other"),
    ],
)
def test_style(text, style):
    assert style_of(text) == style


soup = st.lists(st.sampled_from([*TAGS, "3", "-", " ", "\n", "=", "The answer is ", "٣"]), max_size=12).map("".join)


@given(soup)
def test_formatted_text_has_an_answer_and_is_rebuilt_from_its_parts(text):
    if is_formatted(text):
        answer = find_answer(text)
        assert answer
        thought = text.partition("<think>")[2].partition("</think>")[0]
        squeezed = f"<think>{thought}</think><answer>{answer}</answer>"
        assert is_formatted(squeezed) and style_of(squeezed) == style_of(text)
    else:
        assert style_of(text) not in ("think", "tags")


@given(soup, soup)
def test_one_more_tag_never_keeps_the_format(text, more):
    if is_formatted(text) and more.strip():
        assert not is_formatted(text + more) and not is_formatted(more + text)


def cpu_s(text: str) -> float:
    """Of this thread, for all rules together."""
    begin = time.thread_time()
    is_formatted(text), find_answer(text), style_of(text), VERIFIERS["chain_sum"].last_answer(text)
    return time.thread_time() - begin


@pytest.mark.parametrize("piece", [*TAGS, "<think", "<answer><answer>", "9", "-", ",", "=", "\n", "9,9."])
def test_huge_texts_cost_what_their_length_says(piece):
    """Of texts eight times as long each: a rule that looks back through the text would take 64 times as long."""
    small = 1e-3  # a hundred times what 8 kB take, and a hundredth of what looking back through them would
    for length in (8_000, 64_000, 512_000):
        text = piece * (length // len(piece))
        found = math.inf
        for _ in range(5):  # what else the machine does only adds
            found = min(found, cpu_s(text))
            if length == 8_000 or found <= 24 * small:
                break
        else:
            pytest.fail(f"{length} characters take {found:.3f} s, an eighth of them {small:.3f} s")
        small = max(found, small)


@pytest.mark.parametrize(
    ("prefill", "written", "accuracy", "r1", "r1_zero"),
    [
        ("<think>\n", "2 + 2 is 4\n</think>\n\nIt is \\boxed{4}.", 1.0, 1.0, 0.0),  # DeepSeek-R1's own template
        ("<think>\n", "\\boxed{4}", 0.0, 0.0, 0.0),  # a thought that is never closed
        ("<think>\n", "\\boxed{4}\n</think>\n\nIt is \\boxed{5}.", 0.0, 1.0, 0.0),
        ("<think>\n", "2 + 2 is 4</think> <answer>4</answer>", 1.0, 1.0, 1.0),
        ("", "2 + 2 is 4</think>\\boxed{4}", 1.0, 0.0, 0.0),  # nobody opened it
        ("", "It is \\boxed{\\frac{8}{2}}.", 1.0, 0.0, 0.0),
    ],
)
def test_what_a_prompt_begins_is_judged_with_the_answer(prefill, written, accuracy, r1, r1_zero):
    asked = Prompt("q", "math", "What is 2 + 2?", "4", Int32s([1]), prefill)
    answer = Completion("q", 0, Int32s([2, 3]), Float32s([-1.0, -1.0]), written, FinishReason.STOP, 0, 0)
    rewards = {"accuracy": Accuracy(), "r1": Format(style="r1"), "r1_zero": Format()}
    (verdict,) = Rubric(rewards, "zero").judge(asked, (answer,), 0)
    assert verdict.parts == {"accuracy": accuracy, "r1": r1, "r1_zero": r1_zero}
