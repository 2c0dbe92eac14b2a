"""Prompts of several sources: shares by weight over time, epochs of their own, and going on where it was."""

import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_questions import KNOWN, TRAINED, file, write
from pydantic import TypeAdapter

from r1mega.buffers import Int32s
from r1mega.config.scheduled import Scheduled
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


def mixed(prompts: list[Prompt], weights: dict[str, Any], seed: int) -> Mixture:
    """Of weights as a config says them, in a run of 24 steps."""
    return Mixture(prompts, {label: schedule(weight).of_run(24) for label, weight in weights.items()}, seed)


def schedule(weight: Any) -> Scheduled[float]:
    return TypeAdapter(Scheduled[float]).validate_python(weight)


def counts(stream: Mixture, n: int, step: int = 0) -> dict[str, int]:
    return dict(Counter(p.source for p in stream.take(n, step)))


def test_what_whole_numbers_leave_over_is_owed():
    # By hand: shares of 4 are 2, 4/3 and 2/3. Each take's third prompts are owed to b and c in turn.
    stream = mixed(prompts(a=9, b=9, c=9), {"a": 3.0, "b": 2.0, "c": 1.0}, 0)
    assert counts(stream, 4) == {"a": 2, "b": 1, "c": 1}
    assert counts(stream, 4) == {"a": 2, "b": 2}  # 8/3 - 1 = 5/3 and 4/3 - 1 = 1/3
    assert counts(stream, 4) == {"a": 2, "b": 1, "c": 1}
    assert stream.epochs == {"a": 6 / 9, "b": 4 / 9, "c": 2 / 9}


@given(weights=st.lists(st.floats(0.01, 50), min_size=2, max_size=6), takes=st.lists(st.integers(1, 40), max_size=40))
def test_counts_stay_by_the_weights_over_any_number_of_takes(weights, takes):
    named = {f"s{i}_": weight for i, weight in enumerate(weights)}
    stream, total = mixed(prompts(**dict.fromkeys(named, 40)), named, 0), Counter()
    for n in takes:
        taken = stream.take(n)
        assert len({p.id for p in taken}) == len(taken) == n
        total.update(p.source for p in taken)
    whole = sum(map(Fraction, weights))
    for label, weight in named.items():
        assert abs(total[label] - sum(takes) * Fraction(weight) / whole) < 2


def test_a_thousand_rollouts_have_no_drift():
    weights = {"a": 0.1, "b": 0.2, "c": 0.7}
    stream, total = mixed(prompts(a=50, b=50, c=50), weights, 1), Counter()
    for _ in range(1000):
        total.update(p.source for p in stream.take(7))
    assert total == {"a": 700, "b": 1400, "c": 4900}


def test_each_source_has_its_own_epochs_and_orders():
    stream, seen = mixed(prompts(a=4, b=10), {"a": 1.0, "b": 1.0}, 3), []
    for _ in range(10):
        seen += [p.id for p in stream.take(4)]
    of_a = [id for id in seen if id.startswith("a")]
    assert [set(of_a[i : i + 4]) for i in range(0, 20, 4)] == [{"a0", "a1", "a2", "a3"}] * 5
    assert len({tuple(of_a[i : i + 4]) for i in range(0, 20, 4)}) > 1  # an order an epoch
    assert len({id for id in seen if id.startswith("b")}) == 10
    alone = PromptStream([p for p in prompts(a=4, b=10) if p.source == "a"], 3)
    assert of_a == [p.id for _ in range(10) for p in alone.take(2)]


def test_a_small_source_is_capped_in_a_take_and_catches_up():
    stream = mixed(prompts(a=3, b=30), {"a": 1.0, "b": 3.0}, 0)
    assert counts(stream, 12) == {"a": 3, "b": 9}
    assert counts(stream, 14) == {"a": 3, "b": 11}  # 3.5 are its share
    assert counts(stream, 6) == {"a": 2, "b": 4}  # 1.5 and what is owed
    with pytest.raises(DataError, match="34 prompts a step asked for, but there are only 33"):
        stream.take(34)


def test_of_what_is_left_out_the_other_sources_fill_the_places():
    stream = mixed(prompts(a=3, b=30), {"a": 1.0, "b": 1.0}, 0)
    stream.leave_out(["a0", "b7", "nobody's"])
    assert counts(stream, 8) == {"a": 2, "b": 6}
    drawn = {p.id for _ in range(10) for p in stream.take(8)}
    assert len(drawn) == 31 and not drawn & {"a0", "b7"}
    stream.leave_out(["a1", "a2"])
    assert counts(stream, 8) == {"b": 8}
    with pytest.raises(DataError, match="30 prompts a step asked for, but there are only 29"):
        stream.take(30)


@given(before=st.lists(st.integers(1, 9), max_size=6), after=st.lists(st.integers(1, 9), max_size=6))
def test_a_restored_mixture_goes_on_with_the_next_prompt(before, after):
    weights = {"a": 1.5, "b": 1.0, "c": 0.3}
    first = mixed(prompts(a=5, b=7, c=4), weights, 3)
    for n in before:
        first.take(n)
    second = mixed(prompts(a=5, b=7, c=4), weights, 99)
    second.restore(json.loads(json.dumps(first.state())))
    assert [first.take(n) for n in after] == [second.take(n) for n in after]


def test_another_mixture_is_not_gone_on_with():
    stream = mixed(prompts(a=5, b=5), {"a": 1.0, "b": 2.0}, 0)
    for other in (mixed(prompts(a=5, b=5), {"a": 1.0, "b": 1.0}, 0), PromptStream(prompts(a=5, b=5), 0)):
        with pytest.raises(DataError, match="belongs to another mixture"):
            stream.restore(other.state())
        with pytest.raises(DataError, match=r"belongs to (another mixture|other prompts)"):
            other.restore(stream.state())
    with pytest.raises(DataError, match="belongs to other prompts"):
        stream.restore(mixed(prompts(a=5, b=6), {"a": 1.0, "b": 2.0}, 0).state())


def test_without_weights_all_are_shuffled_together_and_one_weight_makes_the_others_1(tmp_path: Path):
    one, two = write(tmp_path / "one.jsonl", *TRAINED[:5]), write(tmp_path / "two.jsonl", *TRAINED[5:15])

    def asked(*weights: float | None):
        sources = [file(path, weight=weight) for path, weight in zip((one, two), weights, strict=True)]
        read = training_questions(sources, 0, verifiers=KNOWN)
        made = [Prompt(q.id, q.verifier, q.text, q.truth, Int32s(), source=q.source) for q in read.questions]
        return read, made

    read, made = asked(None, None)
    plain, before = stream_of(made, read, 7, 24), PromptStream(made, 7)
    assert [plain.take(4) for _ in range(9)] == [before.take(4) for _ in range(9)]
    refuse_unfillable(read, {"one": 0, "two": 1}, 99, 24)  # nothing is promised of either
    read, made = asked(None, 3.0)
    assert {label: weight.plain() for label, weight in weights_of(read).items()} == {"one": 1.0, "two": 3.0}
    stream = stream_of(made, read, 7, 24)
    assert Counter(p.source for _ in range(5) for p in stream.take(8)) == {"one": 10, "two": 30}
    left = Counter(p.source for p in made)
    refuse_unfillable(read, left, 13, 24)
    with pytest.raises(
        DataError, match=r"two.jsonl: with weight = 3 its share of a rollout's 14 prompts is 10.5, and"
    ):
        refuse_unfillable(read, left, 14, 24)


# ---- weights that change -----------------------------------------------------------------------------------------

LATE = [{"value": 0}, {"last_steps": 12, "value": 3}]


def test_a_source_of_weight_0_is_not_asked_and_counts_follow_the_new_weights_from_the_switch_on():
    """By hand: a alone, and from step 12 on shares of 5 are 5/4 and 15/4; what was owed before plays no part."""
    stream = mixed(prompts(a=9, b=9), {"a": 1, "b": LATE}, 0)
    assert [counts(stream, 5, step) for step in (0, 4, 8)] == [{"a": 5}] * 3
    with pytest.raises(DataError, match="10 prompts a step asked for, but there are only 9 of them"):
        stream.take(10, 8)
    # 1.25 and 3.75; then 2.5 - 1 and 7.5 - 4 (of equals the first table's); 3.75 - 3 and 11.25 - 7; then all even.
    assert [counts(stream, 5, step) for step in (12, 13, 14, 15)] == [
        {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 1, "b": 4}, {"a": 1, "b": 4},
    ]  # fmt: skip
    stream = mixed(prompts(a=9, b=9), {"a": 1, "b": [{"value": 3}, {"from_step": 12, "value": 0}]}, 0)
    assert counts(stream, 5, 0) == {"a": 1, "b": 4}
    assert [counts(stream, 5, step) for step in (12, 16)] == [{"a": 5}] * 2  # nothing is owed to b any more
    # One of a: half of it is owed to b, and 3/4 of the next are a's by the new weights.
    stream = mixed(prompts(a=9, b=9), {"a": [{"value": 1}, {"from_step": 4, "value": 3}], "b": 1}, 0)
    assert (counts(stream, 1, 0), counts(stream, 1, 4)) == ({"a": 1}, {"a": 1})


@given(
    weights=st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=2, max_size=4),
    takes=st.lists(st.integers(1, 9), min_size=24, max_size=24),
)
def test_counts_stay_by_the_weights_from_each_switch_on(weights, takes):
    steps = [4 * (i + 1) for i in range(len(weights) - 1)]
    named = {
        f"s{j}_": [{"value": weights[0][j]}]
        + [{"from_step": s, "value": w[j]} for s, w in zip(steps, weights[1:], strict=True)]
        for j in range(3)
    }
    stream, total, since = mixed(prompts(**dict.fromkeys(named, 9)), named, 0), Counter(), 0
    for step, n in enumerate(takes):
        if step in steps:
            total, since = Counter(), step
        taken = stream.take(n, step)
        total.update(p.source for p in taken)
        now = weights[sum(s <= step for s in steps)]
        for label, weight in zip(named, now, strict=True):
            assert weight or not total[label]
            assert abs(total[label] - sum(takes[since : step + 1]) * Fraction(weight, sum(now))) < 2


def test_while_weights_are_on_their_way_each_take_adds_its_own_shares():
    """b goes from 0 to 10 beside a = 10 over 16 steps of 8 prompts: of each, w / (10 + w) are b's, w = 10 s / 16."""
    way = [{"value": 0}, {"from_step": 4, "over_steps": 16, "value": 10}]
    stream, of_b = mixed(prompts(a=9, b=9), {"a": 10, "b": way}, 0), 0.0
    taken = Counter()
    for step in range(20):
        found = counts(stream, 8, step)
        taken.update(found)
        weight = 10 * max(step - 4, 0) / 16
        of_b += 8 * weight / (10 + weight)
        assert abs(taken["b"] - of_b) < 1
        assert ("b" in found) <= (step > 4)
        state = json.loads(json.dumps(stream.state()))
        assert all(Fraction(due).denominator <= 2**40 for due in state["due"].values())  # however long it takes
    assert 37 < of_b < 38
    assert counts(stream, 8, 20) == {"a": 4, "b": 4}


def test_it_goes_on_on_either_side_of_a_switch_with_the_next_prompt():
    way = [{"value": 1}, {"from_step": 6, "over_steps": 6, "value": 5}, {"last_steps": 6, "value": 0}]
    weights = {"a": 2, "b": way, "c": LATE}
    sizes = {"a": 7, "b": 8, "c": 9}
    whole = mixed(prompts(**sizes), weights, 3)
    expected = [whole.take(7, step) for step in range(24)]
    for broken_off in range(24):
        first = mixed(prompts(**sizes), weights, 3)
        for step in range(broken_off):
            first.take(7, step)
        second = mixed(prompts(**sizes), weights, 99)
        second.restore(json.loads(json.dumps(first.state())))
        assert [second.take(7, step) for step in range(broken_off, 24)] == expected[broken_off:]
    other = mixed(prompts(**sizes), {**weights, "c": 0}, 3)
    with pytest.raises(DataError, match="belongs to another mixture"):
        other.restore(whole.state())


def test_a_share_that_cannot_be_filled_is_refused_wherever_in_the_run_it_comes(tmp_path: Path):
    one, two = write(tmp_path / "one.jsonl", *TRAINED[:5]), write(tmp_path / "two.jsonl", *TRAINED[5:15])
    sources = [file(one, weight=schedule(1)), file(two, weight=schedule(LATE))]
    read = training_questions(sources, 0, verifiers=KNOWN)
    left = {"one": 5, "two": 9}
    refuse_unfillable(read, left, 5, 24)
    with pytest.raises(
        DataError, match=r"one.jsonl: with weight = 1 its share of a rollout's 6 prompts is 6 from step 0"
    ):
        refuse_unfillable(read, left, 6, 24)
    with pytest.raises(
        DataError, match=r"two.jsonl: with weight = 3 its share .* is 3.75 from step 12 on, and it has 3"
    ):
        refuse_unfillable(read, {"one": 5, "two": 3}, 5, 24)
    with pytest.raises(DataError, match=r"step 3: every weight of \[\[questions\]\] is 0"):
        mixed(prompts(a=9), {"a": LATE}, 0).take(2, 3)
