"""The stream of prompts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_forms import byte_level, save

from r1mega.buffers import Int32s
from r1mega.data.pretrain_text import documents
from r1mega.data.prompt_form import PromptForm
from r1mega.data.prompts import PromptStream, prompt_of, prompts
from r1mega.data.question import Question
from r1mega.data.settings import AnswerStyles, PromptSettings
from r1mega.data.sources.reasoning_gym import Task, questions
from r1mega.data.split import HELD_OUT, TRAINED_ON
from r1mega.data.tokenizer import load_tokenizer, train_tokenizer
from r1mega.errors import DataError
from r1mega.samples import Prompt

TASKS = [Task(name="chain_sum", params={"max_digits": 1})]


def some_prompts(n):
    return [Prompt(f"p{i}", "chain_sum", f"question {i}", "1", Int32s([1])) for i in range(n)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    docs = documents(TASKS, AnswerStyles(think=1, tags=0, steps=0, plain=0), 200, 0)
    return train_tokenizer([d.prompt + d.answer for d in docs], 300, tmp_path_factory.mktemp("tokenizer"))


@given(num=st.integers(1, 12), takes=st.lists(st.integers(1, 12), max_size=12), seed=st.integers(0, 3))
def test_a_take_has_no_prompt_twice_and_an_epoch_has_each_once(num, takes, seed):
    stream, seen = PromptStream(some_prompts(num), seed), []
    for n in (min(n, num) for n in takes):
        taken = [p.id for p in stream.take(n)]
        assert len(set(taken)) == len(taken) == n
        seen += taken
    for start in range(0, len(seen) - num + 1, num):
        assert len(set(seen[start : start + num])) == num
    assert stream.epoch * num == pytest.approx(len(seen))


@given(before=st.lists(st.integers(1, 7), max_size=6), after=st.lists(st.integers(1, 7), max_size=6))
def test_a_restored_stream_goes_on_with_the_next_prompt(before, after):
    first = PromptStream(some_prompts(7), 3)
    for n in before:
        first.take(n)
    second = PromptStream(some_prompts(7), 99)
    second.restore(json.loads(json.dumps(first.state())))
    assert [first.take(n) for n in after] == [second.take(n) for n in after]


def test_epochs_and_seeds_differ_in_order():
    stream = PromptStream(some_prompts(50), 0)
    orders = [[p.id for p in stream.take(50)] for _ in range(2)]
    orders.append([p.id for p in PromptStream(some_prompts(50), 1).take(50)])
    assert len({tuple(order) for order in orders}) == 3


def test_a_stream_refuses_what_it_cannot_keep():
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], 0)
    with pytest.raises(DataError, match="same id"):
        PromptStream(some_prompts(1) * 2, 0)
    with pytest.raises(DataError, match="5 prompts a step asked for, but there are only 4"):
        PromptStream(some_prompts(4), 0).take(5)
    with pytest.raises(DataError, match="other prompts"):
        PromptStream(some_prompts(4), 0).restore(PromptStream(some_prompts(5), 0).state())


@given(num=st.integers(4, 12), out=st.sets(st.integers(0, 11), max_size=3), at=st.integers(0, 9))
def test_what_is_left_out_is_drawn_no_more_and_the_others_keep_their_order(num: int, out: set[int], at: int):
    """From a draw on, and in a stream that is restored there."""
    left_out = {f"p{i}" for i in out}
    kept = num - len(left_out & {f"p{i}" for i in range(num)})
    plain, stream = PromptStream(some_prompts(num), 3), PromptStream(some_prompts(num), 3)
    order = [p.id for _ in range(6 * num) for p in plain.take(1)]
    assert [p.id for _ in range(at) for p in stream.take(1)] == order[:at]
    stream.leave_out(left_out)
    again = PromptStream(some_prompts(num), 3)
    again.leave_out(left_out)
    again.restore(json.loads(json.dumps(stream.state())))
    wanted = [id for id in order[at:] if id not in left_out][: 3 * kept]
    assert [p.id for _ in wanted for p in stream.take(1)] == wanted
    assert [p.id for _ in wanted for p in again.take(1)] == wanted
    assert len({p.id for p in stream.take(kept)}) == kept  # across an epoch's end as well
    with pytest.raises(DataError, match=f"there are only {kept} different ones"):
        stream.take(kept + 1)


def test_training_and_held_out_prompts_are_disjoint(tokenizer):
    form = PromptForm(PromptSettings(), tokenizer)
    train = prompts(questions(TASKS, 300, 0, exclude=HELD_OUT), form)
    held_out = prompts(questions(TASKS, 100, 0, exclude=TRAINED_ON), form)
    assert (len(train), len(held_out)) == (300, 100)
    assert {p.question for p in train}.isdisjoint(p.question for p in held_out)
    assert tokenizer.decode(train[0].token_ids) == f"<|bos|><|user|>{train[0].question}<|assistant|>"
    assert train[0].entry["answer"] == train[0].truth


def test_control_tokens_must_be_the_templates_alone(tokenizer, tmp_path):
    tiny = PromptForm(PromptSettings(), tokenizer)
    with pytest.raises(DataError, match=r"special token <\|assistant\|>"):
        prompts([Question("a", "chain_sum", "1 + 1 =<|assistant|>", "2")], tiny)
    of_another_model = load_tokenizer(save(byte_level(("<|end|>",)), tmp_path, model_type=None, cls=None))
    asked = [Question(str(i), "chain_sum", text, "1") for i, text in enumerate(("<|assistant|>", "1 + 1", "<|eos|>"))]
    with pytest.raises(DataError) as error:
        prompts(asked, tiny, "a.jsonl, line {}".format)
    head, *told = str(error.value).splitlines()
    assert head == "2 questions are wrong"
    assert told[0] == "  a.jsonl, line 0: contains the special token <|assistant|>: take it out"
    assert told[1] == "  a.jsonl, line 2: contains the special token <|eos|>: take it out"
    with pytest.raises(DataError, match=r"template tiny needs the special tokens .*<\|user\|>"):
        PromptForm(PromptSettings(), of_another_model)
    assert prompts([], PromptForm(PromptSettings(template="r1_zero"), of_another_model)) == []


def test_a_prompt_has_all_of_its_question():
    asked = Question("a", "gcd", "gcd of 4 and 6?", "2", {"answer": "2"}, "stem", "de", "own")
    prompt = prompt_of(asked, Int32s([7]), "<think>")
    assert (prompt.id, prompt.verifier, prompt.question, prompt.truth) == ("a", "gcd", "gcd of 4 and 6?", "2")
    assert (prompt.entry, prompt.domain, prompt.target_language, prompt.source) == (
        {"answer": "2"},
        "stem",
        "de",
        "own",
    )
    assert (prompt.token_ids, prompt.prefill) == (Int32s([7]), "<think>")
