"""Settings that change in the course of a run: their values worked by hand, how they are read, what is refused."""

import pickle
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from r1mega.config.load import validate
from r1mega.config.scheduled import Scheduled, Since
from r1mega.config.section import Section
from r1mega.errors import ConfigError


class Asked(Section):
    heat: Scheduled[Annotated[float, Field(ge=0.01)]] = Scheduled.always(1.0)
    limit: Scheduled[Annotated[int, Field(gt=0)]] = Scheduled.always(8)
    share: Scheduled[Annotated[float, Field(ge=0)]] | None = None


def read(**settings: Any) -> Asked:
    return validate(Asked, settings, Path("run.toml"))


def limit(*entries: dict[str, Any]) -> Scheduled[int]:
    return read(limit=list(entries)).limit


def test_a_plain_value_holds_throughout_and_is_written_as_it_was():
    made = read(heat=0.7)
    assert [made.heat.at(step) for step in (0, 1, 10**6)] == [0.7] * 3
    assert made.heat.constant and made.heat.largest == 0.7
    assert (made.heat.changes(9), made.heat.faults(9, 4)) == ((), [])
    assert made.model_dump(mode="json") == {"heat": 0.7, "limit": 8, "share": None}


def test_the_reports_length_limit():
    length = limit({"value": 32_768}, {"from_step": 8_192, "value": 65_536})
    assert [length.at(step, 10_400) for step in (0, 8_191, 8_192, 10_400)] == [32_768, 32_768, 65_536, 65_536]
    assert (length.largest, length.smallest, length.changes(10_400)) == (65_536, 32_768, (8_192,))
    assert length.faults(10_400, 16) == []


def test_the_last_steps_of_a_run_count_from_its_end():
    share = read(share=[{"value": 0}, {"last_steps": 400, "value": 2.5}]).share
    assert share is not None and share.counts_from_the_end
    assert [share.at(step, 1_700) for step in (0, 1_299, 1_300, 1_699)] == [0, 0, 2.5, 2.5]
    assert [share.at(step, 1_000) for step in (599, 600)] == [0, 2.5]
    fixed = share.of_run(1_700)
    assert not fixed.counts_from_the_end and [fixed.at(step) for step in (1_299, 1_300)] == [0, 2.5]
    with pytest.raises(ValueError, match="last_steps = 400 counts from the end of a run, which is not known"):
        share.at(0)


def test_over_steps_it_goes_in_a_straight_line():
    heat = read(heat=[{"value": 1.0}, {"from_step": 100, "over_steps": 40, "value": 0.6}]).heat
    assert [heat.at(s) for s in (0, 100, 110, 120, 130, 140, 999)] == pytest.approx([1, 1, 0.9, 0.8, 0.7, 0.6, 0.6])
    assert heat.at(140) == 0.6  # to the last bit
    assert heat.changes() == (100, 140)
    # Three steps from 10 to 20 by 10/3, to the nearest whole number; then down at once.
    length = limit({"value": 10}, {"from_step": 2, "over_steps": 3, "value": 20}, {"from_step": 7, "value": 4})
    assert [length.at(step) for step in range(9)] == [10, 10, 10, 13, 17, 20, 20, 4, 4]
    assert all(type(length.at(step)) is int for step in range(9))
    assert length.changes() == (2, 5, 7)


@given(
    values=st.lists(st.integers(1, 99), min_size=1, max_size=5),
    gaps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=4, max_size=4),
    step=st.integers(0, 99),
)
def test_it_is_what_the_tables_say_in_fractions(values, gaps, step):
    tables, free, expected = [{"value": values[0]}], 0, Fraction(values[0])
    for (gap, over), before, value in zip(gaps, values, values[1:], strict=False):
        begins = free + gap
        tables.append({"value": value, "from_step": begins, "over_steps": over})
        free = begins + over
        if step >= begins:
            done = min(Fraction(step - begins, over), Fraction(1)) if over else Fraction(1)
            expected = before + (value - before) * done
    heat = read(heat=tables).heat
    assert heat.at(step) == pytest.approx(float(expected))
    assert heat.faults(100, 1) == []
    assert min(values) <= heat.at(step) <= max(values)


def test_what_is_read_is_written_and_read_again_and_goes_to_other_processes():
    tables = [{"value": 1.0}, {"value": 0.5, "last_steps": 4, "over_steps": 2}]
    made = read(heat=tables, share=3)
    again = Asked.model_validate(made.model_dump(mode="json"))
    assert made.model_dump(mode="json")["heat"] == tables
    assert again == made == pickle.loads(pickle.dumps(made)) and hash(again.heat) == hash(made.heat)
    assert made.heat != read().heat


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"limit": "8"}, "limit: should be a number, written without quotes (got '8')"),
    ({"heat": True}, "heat: should be a number, written without quotes (got True)"),
    ({"limit": 0}, "limit: input should be greater than 0 (got 0)"),
    ({"limit": 8.5}, "limit: input should be a valid integer"),
    ({"limit": {"value": 3}}, "limit: should be a number, or a list of tables: write [...] around it"),
    ({"limit": []}, "limit: should be a number, or a list with at least one table in it"),
    ({"limit": [{"from_step": 4, "value": 9}]}, "limit: the first table holds from step 0 and says its value alone"),
    ({"share": [{"last_steps": 4, "value": 9}]}, "share: the first table holds from step 0 and says its value alone"),
    ({"limit": [{"value": 8}, {"value": 9}]}, "limit: table 1 should say from_step or last_steps, one of them"),
    (
        {"limit": [{"value": 8}, {"value": 9, "from_step": 2, "last_steps": 2}]},
        "limit: table 1 should say from_step or last_steps, one of them",
    ),
    ({"limit": [{"value": 8}, {"from_step": 4}]}, "limit.1.value: missing"),
    (
        {"share": [{"value": 8}, {"from_step": 4, "valu": 9}]},
        "share.1.valu: unknown key (did you mean 'value'?); valid: value, from_step, last_steps, over_steps",
    ),
    ({"share": [{"value": 8}, {"from_step": 4, "value": -1}]}, "share.1.value: input should be greater than or"),
    ({"heat": [{"value": 1}, {"from_step": -4, "value": 1}]}, "heat.1.from_step: input should be greater than or"),
    ({"heat": [{"value": 1}, {"last_steps": 0, "value": 1}]}, "heat.1.last_steps: input should be greater than 0"),
    ({"heat": float("nan")}, "1 fault(s)\n  heat: should be a finite number (got nan)"),
    ({"heat": float("inf")}, "1 fault(s)\n  heat: should be a finite number (got inf)"),
    (
        {"share": [{"value": 1}, {"from_step": 4, "value": float("nan")}]},
        "1 fault(s)\n  share.1.value: should be a finite number (got nan)",
    ),
    ({"heat": [{"value": [1]}]}, "1 fault(s)\n  heat.0.value: should be a finite number (got [1])"),
    ({"heat": [1.0, 0.7]}, "1 fault(s)\n  heat: table 0 should be a table, such as { from_step = 8, value = 1.0 }"),
    ({"heat": [{"value": "hot"}]}, "heat.0.value: should be a number, written without quotes (got 'hot')"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_what_is_no_schedule_is_refused_by_its_name(settings: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as error:
        read(**settings)
    assert said in str(error.value)


FAULTS: list[tuple[list[dict[str, Any]], str]] = [
    (
        [{"from_step": 10, "value": 9}],
        "1.from_step: 10 falls inside a rollout of rollout.num_minibatches = 4 steps, whose values are those of its "
        "first; the next before it begins at step 8, the next after it at 12",
    ),
    (
        [{"last_steps": 6, "value": 9}],
        "1.last_steps: 6 steps before the end of num_steps = 24, step 18, falls inside a rollout",
    ),
    ([{"last_steps": 28, "value": 9}], "1.last_steps: 28 is more than the run's num_steps = 24"),
    ([{"from_step": 4, "over_steps": 6, "value": 9}], "1.over_steps: 6 steps end inside a rollout; use a multiple"),
    ([{"last_steps": 24, "value": 9}], "1.last_steps: begins at step 0, and the table before it holds from step 0"),
    (
        [{"from_step": 8, "value": 9}, {"from_step": 4, "value": 7}],
        "2.from_step: begins at step 4, and the table before it holds from step 8 on",
    ),
    ([{"from_step": 8, "value": 9}, {"last_steps": 16, "value": 7}], "2.last_steps: begins at step 8, and the table"),
    (
        [{"from_step": 8, "over_steps": 8, "value": 9}, {"from_step": 12, "value": 7}],
        "2.from_step: begins at step 12, and the table before it holds from step 16 on",
    ),
]


@pytest.mark.parametrize(("tables", "said"), FAULTS)
def test_what_does_not_fit_the_run_is_said_in_one_message(tables: list[dict[str, Any]], said: str):
    (fault,) = limit({"value": 8}, *tables).faults(24, 4)
    assert fault.startswith(said)


def test_tables_at_the_borders_of_a_run_pass():
    tables = ({"from_step": 4, "over_steps": 4, "value": 9}, {"from_step": 8, "value": 7})
    assert limit({"value": 8}, *tables, {"last_steps": 4, "value": 1}).faults(24, 4) == []
    # A run that is shorter than the schedule takes as much of it as it is long.
    assert limit({"value": 8}, {"from_step": 96, "value": 9}).faults(24, 4) == []
    assert Since(value=3, from_step=7).begins(None) == 7
