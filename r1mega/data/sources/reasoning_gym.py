"""Questions that reasoning-gym makes.

A row of `TASKS` is a task whose steps are short enough for a tiny model and whose answer is much harder to give at
once than step by step, so that RL has something to find. The question keeps the library's wording: it is the same
for every question of a task, and the tokenizer, trained on it, folds it into a few tokens.
"""

import contextlib
import dataclasses
import hashlib
import io
import random
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from pydantic import Field

from r1mega.config.load import nearest
from r1mega.config.section import Section
from r1mega.data.question import Question, question_id
from r1mega.data.sources.source import Located, QuestionSource
from r1mega.data.split import HELD_OUT, what_is_asked
from r1mega.data.worked_steps import count_bits, euclid, tape
from r1mega.errors import ConfigError, DataError


class Task(Section):
    """A family of reasoning-gym questions with its own verifier."""

    name: str
    """Task name, as reasoning-gym spells it; one of `TASKS`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this task among the questions, relative to the other tasks' weights."""
    params: dict[str, int | float | bool | str] = Field(default={})
    """Parameters of the task's generator, e.g. min_terms = 4."""


@dataclass(frozen=True)
class TaskFamily:
    """One task of reasoning-gym that the project can teach."""

    name: str
    """As reasoning-gym spells it."""
    steps: Callable[[Mapping[str, Any]], str]
    """Metadata of a question -> its worked steps, which end in the right answer."""
    wording: re.Pattern[str]
    """The library's wording of a question, whatever its numbers."""


def _wording(text: str) -> re.Pattern[str]:
    """A question with {} where its numbers and what is between them stand."""
    return re.compile("[-+*, 0-9]+".join(re.escape(part) for part in text.split("{}")), re.ASCII)


TASKS: dict[str, TaskFamily] = {
    row.name: row
    for row in (
        TaskFamily("chain_sum", tape, _wording("State the final answer to the following arithmetic problem:{}=")),
        TaskFamily(
            "products",
            tape,
            _wording("Solve the following multiplication:{}. Give only the result as your final answer."),
        ),
        TaskFamily(
            "count_bits",
            count_bits,
            _wording("How many 1 bits are there in the binary representation of the number{}?"),
        ),
        TaskFamily(
            "gcd",
            euclid,
            _wording(
                "Find the Greatest Common Divisor (GCD) of these numbers:{}. Give only the GCD as your final answer."
            ),
        ),
    )
}


def questions_in(text: str) -> Iterator[str]:
    """The tasks' questions that a text asks, alone or among other words, each as `questions` writes it."""
    seen = what_is_asked(text)
    for row in TASKS.values():
        yield from row.wording.findall(seen)


def family(name: str) -> TaskFamily:
    """The row of `TASKS`. Raises ConfigError with the known names."""
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}: the supported ones are {', '.join(TASKS)}")
    return TASKS[name]


class MadeQuestions(QuestionSource):
    """Different questions of some tasks, shuffled; none of the held-out side."""

    sound = True

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    tasks: tuple[Task, ...] = Field(min_length=1)
    num: int = Field(gt=0)
    """Questions in all; the tasks' shares follow their weights."""

    @property
    def title(self) -> str:
        return "the tasks' questions"

    def read(self, seed: int) -> list[Located]:
        made = questions(self.tasks, self.num, seed, exclude=HELD_OUT)
        return [(f"question {q.id}", dataclasses.replace(q, domain=self.domain)) for q in made]


def questions(tasks: Sequence[Task], n: int, seed: int, exclude: Container[str] = frozenset()) -> list[Question]:
    """`n` questions with different texts, none of them in `exclude`, shuffled; shares follow the weights.

    `exclude` is a set of texts or one side of `data.split`.

    The same arguments give the same list. Raises ConfigError on an unknown task or parameter, DataError where
    a task with these parameters has too few different questions.
    """
    return draw(tasks, n, seed, exclude, distinct=True)


def draw(tasks: Sequence[Task], n: int, seed: int, exclude: Container[str], *, distinct: bool) -> list[Question]:
    """`questions`, which may repeat unless `distinct` (pretraining keeps the generator's own mix of lengths)."""
    drawn: list[Question] = []
    met: set[str] = set()
    for task, share in zip(tasks, apportion(n, [task.weight for task in tasks]), strict=True):
        num_found, fruitless = 0, 0
        for question in _generate(task, seed) if share else ():
            fruitless += 1
            is_new = question.text not in met
            met.add(question.text)
            if question.text not in exclude and (is_new or not distinct):
                drawn.append(question)
                num_found, fruitless = num_found + 1, 0
            if num_found == share:
                break
            # Were one fresh question left among those met, this many misses would have odds of e^-10.
            if fruitless > 10 * len(met) + 1000:
                raise DataError(
                    f"{task.name} with {task.params or 'its default parameters'} gives only {num_found} of the "
                    f"{share} different questions asked for: widen the parameters or ask for fewer"
                )
    random.Random(f"{seed}/order").shuffle(drawn)
    return drawn


def apportion(n: int, weights: Sequence[float]) -> list[int]:
    """Split `n` in proportion to `weights`, by largest remainder: whole numbers that sum to `n`."""
    total = sum(weights)
    exact = [n * weight / total for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    return shares


def _generate(task: Task, seed: int) -> Iterator[Question]:
    """Questions without end. Raises ConfigError on parameters that the generator does not take."""
    dataset = _dataset(task, seed)
    index = 0
    while True:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some of the library's generators print
                entry = dataset[index]
        except Exception as error:  # foreign code, which finds here what it cannot do with its parameters
            raise ConfigError(
                f"task {task.name} with parameters {task.params} fails at its question {index}: {error!r}"
            ) from error
        text = entry["question"]
        yield Question(question_id(task.name, text), task.name, text, entry["answer"], entry)
        index += 1


def _dataset(task: Task, seed: int) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    config = DATASETS[family(task.name).name][1]
    if faults := list(_parameter_faults(config, task.params)):
        raise ConfigError(f"task {task.name} {'; '.join(faults)}")
    # The library seeds question i with seed + i: neighbouring seeds would share almost all their questions.
    digest = hashlib.sha256(f"{seed}/{task.name}".encode()).digest()
    base = int.from_bytes(digest[:6], "big")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return create_dataset(task.name, seed=base, size=2**31, **task.params)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"task {task.name} refuses its parameters {task.params}: {error}") from error


def _parameter_faults(config: type[Any], params: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with names and types, by the library's own dataclass; what it accepts it may not mean."""
    hints = get_type_hints(config)
    valid = sorted({f.name for f in fields(config)} - {"seed", "size"})
    for name, value in sorted(params.items()):
        if name not in valid:
            yield f"has no parameter {name}{nearest(name, valid)}: it takes {', '.join(valid)}"
            continue
        wanted = [kind for kind in (get_args(hints[name]) or (hints[name],)) if kind in (bool, int, float, str)]
        fits = (type(value) is kind or (kind is float and type(value) is int) for kind in wanted)
        if wanted and not any(fits):
            kinds = " or ".join(kind.__name__ for kind in wanted)
            yield f"has a parameter {name} of kind {kinds}, not {value!r}"
