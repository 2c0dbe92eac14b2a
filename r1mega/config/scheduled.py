"""Settings that may change in the course of a run: a value, or what it becomes from which optimiser step on.

    max_new_tokens = 32_768
    max_new_tokens = [{ value = 32_768 }, { from_step = 8_192, value = 65_536 }]
    weight = [{ value = 0 }, { last_steps = 400, value = 1 }]
    temperature = [{ value = 1.0 }, { from_step = 96, over_steps = 48, value = 0.7 }]

Steps are optimiser steps taken, the counter of the report's schedules. `from_step` counts from the run's beginning,
`last_steps` from its end; with `over_steps` the value goes in a straight line from what it was to what it becomes.
A rollout keeps the values of its first step, so changes belong on the border of two (`Scheduled.faults`).
"""

import math
from collections.abc import Sequence
from typing import Any, Generic, Self, TypeVar, cast, get_args

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationError, field_validator
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from r1mega.config.section import Section

N = TypeVar("N", int, float)


class Since(Section):
    """One table of a schedule."""

    value: int | float
    """What the setting is from here on, or at the end of `over_steps`."""
    from_step: int | None = Field(default=None, ge=0)
    """Optimiser steps after which it holds; the first table's is 0."""
    last_steps: int | None = Field(default=None, gt=0)
    """In place of from_step: it holds in so many last steps of the run."""
    over_steps: int = Field(default=0, ge=0)
    """Steps over which the value goes there in a straight line; 0: at once."""

    @field_validator("value", mode="before")
    @classmethod
    def _one_number(cls, value: object) -> object:
        """Said once, where pydantic would say it of int and of float."""
        if isinstance(value, list | tuple | dict) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError("should be a finite number")
        return value

    def begins(self, num_steps: int | None) -> int:
        """The step from which it holds. Raises ValueError where that counts from an end that is not known."""
        if self.last_steps is None:
            return self.from_step or 0
        if num_steps is None:
            raise ValueError(f"last_steps = {self.last_steps} counts from the end of a run, which is not known here")
        return num_steps - self.last_steps


class Scheduled(Generic[N]):  # no dataclass: pydantic would read the tables as its fields
    """A setting's values over a run; `Scheduled[int]` in a section reads a number or a list of tables.

    >>> limit = Scheduled((Since(value=8), Since(from_step=4, value=16)))
    >>> limit.at(3), limit.at(4), limit.largest
    (8, 16, 16)

    `num_steps`, the run's optimiser steps, may be left out where no table counts from the end (`of_run`).
    """

    def __init__(self, entries: tuple[Since, ...]) -> None:
        self.entries = entries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scheduled) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(self.entries)

    def __repr__(self) -> str:
        return f"Scheduled({self.plain()!r})"

    @classmethod
    def always(cls, value: N) -> Self:
        """One value for the whole run."""
        return cls((Since(value=value),))

    @property
    def constant(self) -> bool:
        """Whether it is one value, which never changes."""
        return len(self.entries) == 1

    @property
    def counts_from_the_end(self) -> bool:
        """Whether it depends on how long the run is."""
        return any(entry.last_steps is not None for entry in self.entries)

    @property
    def values(self) -> tuple[N, ...]:
        """Those that it comes to, in order; what it passes through on the way lies between two of them."""
        return tuple(entry.value for entry in self.entries)  # type: ignore[misc] # as validated

    @property
    def largest(self) -> N:
        """The largest value that it ever has, be the run long enough for it or not."""
        return max(self.values)

    @property
    def smallest(self) -> N:
        return min(self.values)

    def at(self, step: int, num_steps: int | None = None) -> N:
        """The value after `step` optimiser steps; whole numbers on the way are the nearest ones."""
        before, found = self.values[0], self.values[0]
        for entry, value in zip(self.entries, self.values, strict=True):
            if (passed := step - entry.begins(num_steps)) < 0:
                break
            before, found = found, value
            if passed < entry.over_steps:
                on_the_way = before + (value - before) * passed / entry.over_steps
                found = round(on_the_way) if isinstance(value, int) else on_the_way
        return found  # type: ignore[return-value] # of int an int

    def largest_by(self, step: int, num_steps: int | None = None) -> N:
        """The largest of the values that it has had by `step`, or is on its way to."""
        begun = (v for e, v in zip(self.entries, self.values, strict=True) if e.begins(num_steps) <= step)
        return max(begun)

    def changes(self, num_steps: int | None = None) -> tuple[int, ...]:
        """The steps at which it begins to change or ends to, in order; between them it is constant or a straight
        line."""
        borders = {entry.begins(num_steps) + more for entry in self.entries[1:] for more in (0, entry.over_steps)}
        return tuple(sorted(borders))

    def on_its_way(self, step: int, num_steps: int | None = None) -> tuple[int, N] | None:
        """The step at which a straight line that it is on after `step` steps ends, and the value there."""
        for entry, value in zip(self.entries, self.values, strict=True):
            begins = entry.begins(num_steps)
            if begins <= step < begins + entry.over_steps:
                return begins + entry.over_steps, value
        return None

    def of_run(self, num_steps: int) -> Self:
        """The same in a run of so many steps, with nothing that counts from its end."""
        if not self.counts_from_the_end:
            return self
        first, *others = self.entries
        told = (e.model_copy(update={"from_step": e.begins(num_steps), "last_steps": None}) for e in others)
        return type(self)((first, *told))

    def faults(self, num_steps: int, every: int) -> list[str]:
        """What is wrong in a run of `num_steps` whose rollouts take `every` steps: "1.last_steps: what, and how to
        mend it", by a table's place."""
        found: list[str] = []
        holds, begun = 0, 0  # since which steps the table before holds, and began to
        for place, entry in enumerate(self.entries[1:], 1):
            name = "from_step" if entry.last_steps is None else "last_steps"
            begins = entry.begins(num_steps)
            what = f"{place}.{name}"
            found += border_faults(what, getattr(entry, name), begins, num_steps, every)
            if entry.over_steps % every:
                found.append(
                    f"{place}.over_steps: {entry.over_steps} steps end inside a rollout; use a multiple of "
                    f"rollout.num_minibatches = {every}"
                )
            if 0 <= begins < holds or begins == begun:
                found.append(
                    f"{what}: begins at step {begins}, and the table before it holds from step {holds} on: tables "
                    "stand in the order of their steps, each behind the end of the one before"
                )
            holds, begun = max(holds, begins + entry.over_steps), max(begun, begins)
        return found

    # ---- in a section ---------------------------------------------------------------------------------------

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = get_args(source)
        number: TypeAdapter[Any] = TypeAdapter(kinds[0] if kinds else float)

        def read(value: Any) -> Any:
            if isinstance(value, Scheduled):
                return cast(Any, value)
            return cls(_entries(value, number))

        def write(scheduled: Scheduled[Any]) -> Any:
            return scheduled.plain()

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )

    def plain(self) -> N | list[dict[str, Any]]:
        """As a config says it: a number, or tables without what they leave out."""
        if self.constant:
            return self.values[0]
        return [entry.model_dump(exclude_defaults=True) for entry in self.entries]


def border_faults(what: str, steps: int, begins: int, num_steps: int, every: int) -> list[str]:
    """Whether something that begins at a step of a run does so between two rollouts.

    Args:
        what: the setting that says it: from_step, or last_steps, which counts from the end.
        steps: its value.
        begins: the step that it means.
    """
    if begins < 0:
        return [f"{what}: {steps} is more than the run's num_steps = {num_steps}"]
    if begins % every:
        late = what.endswith("last_steps")
        meant = f"{steps} steps before the end of num_steps = {num_steps}, step {begins}," if late else str(begins)
        below = begins - begins % every
        return [
            f"{what}: {meant} falls inside a rollout of rollout.num_minibatches = {every} steps, whose "
            f"values are those of its first; the next before it begins at step {below}, the next after it at "
            f"{below + every}"
        ]
    return []


def _entries(value: object, number: TypeAdapter[Any]) -> tuple[Since, ...]:
    """Raises ValidationError and ValueError, which pydantic puts below the setting's name."""
    if not isinstance(value, list | tuple):
        if isinstance(value, bool | str):
            raise ValueError("should be a number, written without quotes")
        if isinstance(value, dict):
            raise ValueError("should be a number, or a list of tables: write [...] around it")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("should be a finite number")
        return (Since(value=number.validate_python(value)),)
    tables = cast(Sequence[object], value)
    for place, one in enumerate(tables):
        if not isinstance(one, dict | Since):
            like = "{ from_step = 8, value = 1.0 }"
            raise ValueError(f"table {place} should be a table, such as {like}, not {one!r}")
    entries = TypeAdapter(tuple[Since, ...]).validate_python(tables)
    if not entries:
        raise ValueError("should be a number, or a list with at least one table in it")
    _refuse_misplaced(entries)
    wrong: list[InitErrorDetails] = []
    read: list[Since] = []
    for place, entry in enumerate(entries):
        try:
            read.append(entry.model_copy(update={"value": number.validate_python(entry.value)}))
        except ValidationError as error:
            wrong += [
                InitErrorDetails(type=e["type"], loc=(place, "value"), input=e["input"], ctx=e.get("ctx", {}))
                for e in error.errors()
            ]
    if wrong:
        raise ValidationError.from_exception_data("Scheduled", wrong)
    return tuple(read)


def _refuse_misplaced(entries: Sequence[Since]) -> None:
    """Raises ValueError where a list of tables is no schedule, whatever the run."""
    first = entries[0]
    if first.last_steps is not None or first.over_steps or first.from_step:
        raise ValueError(
            "the first table holds from step 0 and says its value alone: put { value = ... } before the others"
        )
    for place, entry in enumerate(entries[1:], 1):
        if (entry.from_step is None) == (entry.last_steps is None):
            raise ValueError(f"table {place} should say from_step or last_steps, one of them")
