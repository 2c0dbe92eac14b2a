"""Prompts of several sources: shares by weight over time, epochs of their own, and going on where it was."""

import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_questions import KNOWN, TRAINED, file, write

from r1mega.buffers import Int32s
from r1mega.data.asked_questions import training_questions
from r1mega.data.mixture import Mixture, refuse_unfillable, stream_of, weights_of
from r1mega.data.prompts import PromptStream
from r1mega.errors import DataError
from r1mega.samples import Prompt


def prompts(**sizes: int) -> list[Prompt]:
    made = [
        Prompt(f"{label}{i}", "chain_sum", "?", "1", Int32s([i]), source=label)
        for label, size in sizes.items()
        for i in range(size)
    ]
    random.Random(0).shuffle(made)
    return made


def counts(stream: Mixture, n: int) -> dict[str, int]:
    return dict(Counter(p.source for p in stream.take(n)))


def test_what_whole_numbers_leave_over_is_owed():
    # By hand: shares of 4 are 2, 4/3 and 2/3. Each take's third prompts are owed to b and c in turn.
    stream = Mixture(prompts(a=9, b=9, c=9), {"a": 3.0, "b": 2.0, "c": 1.0}, 0)
    assert counts(stream, 4) == {"a": 2, "b": 1, "c": 1}
    assert counts(stream, 4) == {"a": 2, "b": 2}  # 8/3 - 1 = 5/3 and 4/3 - 1 = 1/3
    assert counts(stream, 4) == {"a": 2, "b": 1, "c": 1}
    assert stream.epochs == {"a": 6 / 9, "b": 4 / 9, "c": 2 / 9}


@given(weights=st.lists(st.floats(0.01, 50), min_size=2, max_size=6), takes=st.lists(st.integers(1, 40), max_size=40))
def test_counts_stay_by_the_weights_over_any_number_of_takes(weights, takes):
    named = {f"s{i}_": weight for i, weight in enumerate(weights)}
    stream, total = Mixture(prompts(**dict.fromkeys(named, 40)), named, 0), Counter()
    for n in takes:
        taken = stream.take(n)
        assert len({p.id for p in taken}) == len(taken) == n
        total.update(p.source for p in taken)
    whole = sum(map(Fraction, weights))
    for label, weight in named.items():
        assert abs(total[label] - sum(takes) * Fraction(weight) / whole) < 2


def test_a_thousand_rollouts_have_no_drift():
    weights = {"a": 0.1, "b": 0.2, "c": 0.7}
    stream, total = Mixture(prompts(a=50, b=50, c=50), weights, 1), Counter()
    for _ in range(1000):
        total.update(p.source for p in stream.take(7))
    assert total == {"a": 700, "b": 1400, "c": 4900}


def test_each_source_has_its_own_epochs_and_orders():
    stream, seen = Mixture(prompts(a=4, b=10), {"a": 1.0, "b": 1.0}, 3), []
    for _ in range(10):
        seen += [p.id for p in stream.take(4)]
    of_a = [id for id in seen if id.startswith("a")]
    assert [set(of_a[i : i + 4]) for i in range(0, 20, 4)] == [{"a0", "a1", "a2", "a3"}] * 5
    assert len({tuple(of_a[i : i + 4]) for i in range(0, 20, 4)}) > 1  # an order an epoch
    assert len({id for id in seen if id.startswith("b")}) == 10
    alone = PromptStream([p for p in prompts(a=4, b=10) if p.source == "a"], 3)
    assert of_a == [p.id for _ in range(10) for p in alone.take(2)]


def test_a_small_source_is_capped_in_a_take_and_catches_up():
    stream = Mixture(prompts(a=3, b=30), {"a": 1.0, "b": 3.0}, 0)
    assert counts(stream, 12) == {"a": 3, "b": 9}
    assert counts(stream, 14) == {"a": 3, "b": 11}  # 3.5 are its share
    assert counts(stream, 6) == {"a": 2, "b": 4}  # 1.5 and what is owed
    with pytest.raises(DataError, match="34 prompts a step asked for, but there are only 33"):
        stream.take(34)


@given(before=st.lists(st.integers(1, 9), max_size=6), after=st.lists(st.integers(1, 9), max_size=6))
def test_a_restored_mixture_goes_on_with_the_next_prompt(before, after):
    weights = {"a": 1.5, "b": 1.0, "c": 0.3}
    first = Mixture(prompts(a=5, b=7, c=4), weights, 3)
    for n in before:
        first.take(n)
    second = Mixture(prompts(a=5, b=7, c=4), weights, 99)
    second.restore(json.loads(json.dumps(first.state())))
    assert [first.take(n) for n in after] == [second.take(n) for n in after]


def test_another_mixture_is_not_gone_on_with():
    stream = Mixture(prompts(a=5, b=5), {"a": 1.0, "b": 2.0}, 0)
    for other in (Mixture(prompts(a=5, b=5), {"a": 1.0, "b": 1.0}, 0), PromptStream(prompts(a=5, b=5), 0)):
        with pytest.raises(DataError, match="belongs to another mixture"):
            stream.restore(other.state())
        with pytest.raises(DataError, match=r"belongs to (another mixture|other prompts)"):
            other.restore(stream.state())
    with pytest.raises(DataError, match="belongs to other prompts"):
        stream.restore(Mixture(prompts(a=5, b=6), {"a": 1.0, "b": 2.0}, 0).state())


def test_without_weights_all_are_shuffled_together_and_one_weight_makes_the_others_1(tmp_path: Path):
    one, two = write(tmp_path / "one.jsonl", *TRAINED[:5]), write(tmp_path / "two.jsonl", *TRAINED[5:15])

    def asked(*weights: float | None):
        sources = [file(path, weight=weight) for path, weight in zip((one, two), weights, strict=True)]
        read = training_questions(sources, 0, verifiers=KNOWN)
        made = [Prompt(q.id, q.verifier, q.text, q.truth, Int32s(), source=q.source) for q in read.questions]
        return read, made

    read, made = asked(None, None)
    plain, before = stream_of(made, read, 7), PromptStream(made, 7)
    assert [plain.take(4) for _ in range(9)] == [before.take(4) for _ in range(9)]
    refuse_unfillable(read, {"one": 0, "two": 1}, 99)  # nothing is promised of either
    read, made = asked(None, 3.0)
    assert weights_of(read) == {"one": 1.0, "two": 3.0}
    stream = stream_of(made, read, 7)
    assert Counter(p.source for _ in range(5) for p in stream.take(8)) == {"one": 10, "two": 30}
    left = Counter(p.source for p in made)
    refuse_unfillable(read, left, 13)
    with pytest.raises(
        DataError, match=r"two.jsonl: with weight = 3 its share of a rollout's 14 prompts is 10.5, and"
    ):
        refuse_unfillable(read, left, 14)
