"""Per-token numbers: four bytes each, whatever they came from, and nothing of them in tuples of Python numbers."""

import copy
import dataclasses
import doctest
import math
import pickle
import random
import struct
import sys
import tracemalloc
import typing

import numpy as np
import pytest

from r1mega import buffers, samples
from r1mega.algos.advantage import samples_from_groups
from r1mega.buffers import Float32s, Int32s
from r1mega.samples import Completion, FinishReason, Group, Prompt, Verdict, VerdictStatus

NO_NUMBERS_OF_TOKENS = {"LayerLoad.load", "Document.starts"}
"""Tuples of numbers of which there is one an expert, or a text of a pair."""


@pytest.mark.parametrize("module", [buffers, samples])
def test_the_examples_are_true(module):
    found = doctest.testmod(module)
    assert found.attempted >= 2 and not found.failed


def test_no_tuple_of_python_numbers_is_left_in_what_crosses_rooms():
    found = {}
    for name, cls in vars(samples).items():
        if dataclasses.is_dataclass(cls) and cls.__module__ == samples.__name__:
            hints = typing.get_type_hints(cls)
            found |= {f"{name}.{field.name}": hints[field.name] for field in dataclasses.fields(cls)}
    assert found["Completion.token_ids"] is Int32s and found["Document.token_ids"] is Int32s
    assert found["Document.fields"].__args__ == (str, Float32s)
    assert {name for name, kind in found.items() if _numbers(kind)} == NO_NUMBERS_OF_TOKENS


def _numbers(kind) -> bool:
    """Whether a type has a place for any number of Python numbers."""
    arguments = typing.get_args(kind)
    many = typing.get_origin(kind) in (tuple, list) and (Ellipsis in arguments or typing.get_origin(kind) is list)
    return (many and bool({int, float} & set(arguments))) or any(map(_numbers, arguments))


def test_a_tokens_id_and_log_probability_take_eight_bytes_from_answer_to_sample():
    length, num = 2000, 4
    rng = random.Random(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        answers = tuple(_answer(i, [rng.randrange(130_000) for _ in range(length)], rng) for i in range(num))
        of_answers = tracemalloc.get_traced_memory()[0] - before
        group = Group(
            Prompt("p", "task", "question", "truth", Int32s(range(3))), answers,
            tuple(Verdict(VerdictStatus.SCORED, float(i)) for i in range(num)),
        )  # fmt: skip
        before = tracemalloc.get_traced_memory()[0]
        made = samples_from_groups([group], std="population", constant_groups="keep")
        of_samples = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(made) == num
    assert 8 <= of_answers / (num * length) <= 10
    assert of_samples / (num * length) <= 1  # which take over what the answers have


def _answer(i: int, ids: list[int], rng: random.Random) -> Completion:
    logp = Float32s([-rng.random() for _ in ids])
    return Completion("p", i, Int32s(ids), logp, "", FinishReason.STOP, 0, i)


VALUES = [-0.0, 0.1, -1 / 3, 1e-45, 3.4028234e38, -math.inf, 2.0**-24]


def test_floats_are_rounded_once_to_the_nearest_float32():
    assert [struct.pack("f", x) for x in Float32s(VALUES)] == [struct.pack("f", x) for x in VALUES]
    again = Float32s(VALUES).tolist()
    assert Float32s(again) == Float32s(VALUES) == Float32s(np.array(VALUES, np.float32))
    assert Float32s(np.array(VALUES)) == Float32s(VALUES)  # of float64 in memory


def test_equal_is_equal_in_every_bit():
    assert Float32s([0.0]) != Float32s([-0.0])
    assert Float32s([math.nan]) == Float32s([math.nan])
    assert Int32s([0]) != Float32s([0.0]) and Int32s([1]) != (1,)
    assert len({Int32s([1, 2]), Int32s(np.array([1, 2])), Int32s([2, 1])}) == 2


def test_it_is_a_sequence():
    ids = Int32s(range(10, 20))
    assert (len(ids), ids[3], ids[-1], 12 in ids, 9 in ids, ids.index(14)) == (10, 13, 19, True, False, 4)
    assert list(ids) == ids.tolist() == list(range(10, 20)) and list(reversed(ids)) == list(range(19, 9, -1))
    assert (ids[2:4], ids[::5], ids[20:]) == (Int32s([12, 13]), Int32s([10, 15]), Int32s())
    assert ids[:2] + ids[8:] == Int32s([10, 11, 18, 19])
    assert Int32s.repeated(7, 3) == Int32s([7, 7, 7]) and Float32s.repeated(0.1, 0) == Float32s()
    with pytest.raises(IndexError):
        ids[10]
    with pytest.raises(TypeError):
        ids + Float32s([1.0])
    assert (repr(ids[:2]), repr(ids + ids)[-19:]) == ("Int32s([10, 11])", "15, ... 20 in all])")


@pytest.mark.parametrize("values", [[1.5], ["1"], [None], 7])
def test_what_is_no_id_is_refused(values):
    with pytest.raises(TypeError):
        Int32s(values)


def test_an_id_beyond_32_bits_is_refused():
    assert Int32s([2**31 - 1, -(2**31)]).tolist() == [2**31 - 1, -(2**31)]
    with pytest.raises(OverflowError):
        Int32s([2**31])


@pytest.mark.parametrize("kind", [Int32s, Float32s])
def test_a_table_of_numbers_is_not_read_as_one_row(kind):
    with pytest.raises(TypeError):
        kind(np.zeros((2, 2), np.int32 if kind is Int32s else np.float32))


def test_numpy_reads_the_memory_itself_and_cannot_change_it():
    ids, logp = Int32s([1, 2, 3]), Float32s([0.5, -1.0])
    for buffer, dtype in ((ids, np.int32), (logp, np.float32), (Int32s(), np.int32)):
        array = np.asarray(buffer)
        assert (array.dtype, array.tolist()) == (dtype, buffer.tolist())
        assert not array.flags.writeable
        assert np.shares_memory(array, np.asarray(buffer)) == bool(len(buffer))
    assert Int32s(np.arange(6, dtype=np.int32)[::2]) == Int32s([0, 2, 4])  # memory with gaps, too


def test_it_is_sent_and_copied_whole():
    for buffer in (Int32s([1, -2]), Float32s(VALUES)):
        assert pickle.loads(pickle.dumps(buffer)) == copy.deepcopy(buffer) == type(buffer)(buffer) == buffer
        assert sys.getsizeof(buffer) < 64
