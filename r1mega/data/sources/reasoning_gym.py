"""Questions that reasoning-gym makes, of any of its families.

A row of `TASKS` is a family that text can be written of as well, for a tiny base: its steps are short enough for a
tiny model and its answer is much harder to give at once than step by step, so that RL has something to find. The
question keeps the library's wording: it is the same for every question of a task, and the tokenizer, trained on it,
folds it into a few tokens.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import random
import re
import types
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field

from r1mega.config.load import nearest
from r1mega.config.section import Section
from r1mega.data.question import Question, question_id
from r1mega.data.sources.families import FAMILIES
from r1mega.data.sources.source import Located, QuestionSource
from r1mega.data.split import HELD_OUT, TRAINED_ON, what_is_asked
from r1mega.data.worked_steps import count_bits, euclid, tape
from r1mega.errors import ConfigError, DataError


class Task(Section):
    """A family of reasoning-gym that text is written of."""

    name: str
    """Task name, as reasoning-gym spells it; one of `TASKS`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this task among the questions, relative to the other tasks' weights."""
    params: dict[str, Any] = Field(default={})
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


WHOLE = frozenset(("acre", "gsm_symbolic", "list_functions", "word_ladder"))
"""Families of which the library makes, or counts, all questions of a data set at once: they are made in parts."""
WHOLE_SIZE = 2000
"""Questions of a part."""

ANY = "any that the puzzle's own verifier accepts"
"""Truth of a question whose family gives none, since many answers are right."""


class MadeQuestions(QuestionSource):
    """Different questions of one family, shuffled; to train on, none of the held-out side."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    family: str
    """As reasoning-gym spells it: chain_sum, knights_knaves, ..."""
    params: dict[str, Any] = Field(default={})
    """Parameters of its generator, e.g. min_terms = 4; the library's own defaults where left out."""
    num: int = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride] (a file's is optional)
    """Different questions to make."""

    @property
    def sound(self) -> bool:
        """The verifiers of families that the project teaches are held to their truths by tests."""
        return self.family in TASKS

    @property
    def title(self) -> str:
        return f"reasoning-gym's {self.family}"

    @property
    def label(self) -> str:
        return self.family

    def faults(self) -> list[str]:
        if self.family in FAMILIES:
            return []
        if self.family == "composite":
            return ["family: composite is a mixture of families: give each of them a table, and weights if wanted"]
        known = f"reasoning-gym has {', '.join(sorted(FAMILIES))}"
        return [f"family: unknown family {self.family!r}{nearest(self.family, FAMILIES)}: {known}"]

    def verifiers(self) -> Collection[str]:
        return [self.family] if self.family in FAMILIES else []

    def read(self, seed: int) -> list[Located]:
        return self._made(seed, HELD_OUT)

    def read_held_out(self, seed: int) -> list[Located]:
        return self._made(seed, TRAINED_ON)

    def _made(self, seed: int, exclude: Container[str]) -> list[Located]:
        made = questions([Task(name=self.family, params=self.params)], self.num, seed, exclude)
        own = {"domain": self.domain, "target_language": self.target_language}
        return [(f"question {q.id}", dataclasses.replace(q, **own)) for q in made]


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
        drawn += _drawn(task, share, seed, exclude, met, distinct=distinct) if share else []
    random.Random(f"{seed}/order").shuffle(drawn)
    return drawn


def _drawn(
    task: Task, share: int, seed: int, exclude: Container[str], met: set[str], *, distinct: bool
) -> list[Question]:
    """`share` questions of a family; `met`: what was asked before, to which they are added."""
    from r1mega.runtime.progress import Bar

    drawn: list[Question] = []
    fruitless = 0
    with Bar(f"making {task.name}", share, unit="question", silent=task.name in TASKS) as bar:
        for question in _generate(task, seed):
            fruitless += 1
            asked = what_is_asked(question.text)
            is_new = asked not in met
            met.add(asked)
            if question.text not in exclude and (is_new or not distinct):
                drawn.append(question)
                fruitless = 0
                bar.advance()
            if len(drawn) == share:
                break
            # Were one fresh question left among those met, this many misses would have odds of e^-10.
            if fruitless > 10 * len(met) + 1000:
                raise DataError(
                    f"{task.name} with {task.params or 'its default parameters'} gives only {len(drawn)} of the "
                    f"{share} different questions asked for: widen the parameters or ask for fewer"
                )
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
    for index in itertools.count():
        try:
            if task.name in WHOLE and index and index % WHOLE_SIZE == 0:
                dataset = _dataset(task, seed, part=index // WHOLE_SIZE)
            with contextlib.redirect_stdout(io.StringIO()):  # some of the library's generators print
                entry = dataset[index % WHOLE_SIZE if task.name in WHOLE else index]
        except Exception as error:  # foreign code, which finds here what it cannot do with its parameters
            raise ConfigError(
                f"task {task.name} with parameters {task.params} fails at its question {index}: {error!r}"
            ) from error
        text = entry["question"]
        yield Question(question_id(task.name, text), task.name, text, _truth(entry), entry)


def _truth(entry: Mapping[str, Any]) -> str:
    """The library's answer, or the example that it has of one where many are right, or `ANY`."""
    if (answer := entry["answer"]) is not None:
        return str(answer)
    metadata = entry["metadata"]
    examples = (metadata.get(name) for name in ("possible_answer", "example_answer", "example_correct_answer"))
    example = next((one for one in examples if one), ANY)
    return example if isinstance(example, str) else json.dumps(example)


def _dataset(task: Task, seed: int, part: int = 0) -> Any:
    """A family's data set; `part`: which of those that are made whole."""
    from reasoning_gym.factory import DATASETS, create_dataset

    if task.name not in FAMILIES:
        raise ConfigError(f"unknown task {task.name!r}{nearest(task.name, FAMILIES)}")
    config = DATASETS[task.name][1]
    if faults := list(_parameter_faults(config, task.params)):
        raise ConfigError(f"task {task.name} {'; '.join(faults)}")
    # The library seeds question i with seed + i: neighbouring seeds would share almost all their questions.
    digest = hashlib.sha256(f"{seed}/{task.name}{f'/{part}' if part else ''}".encode()).digest()
    # Some families take no seed of more than 32 bits, numpy's; those of old have more, and keep their questions.
    base = int.from_bytes(digest[:6], "big") if task.name in TASKS else int.from_bytes(digest[:4], "big") >> 1
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            size = WHOLE_SIZE if task.name in WHOLE else 2**31
            return create_dataset(task.name, seed=base, size=size, **_as_declared(config, task.params))
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"task {task.name} refuses its parameters {task.params}: {error}") from error


def _as_declared(config: type[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of TOML as tuples where the library declares them so."""
    hints = get_type_hints(config)
    tuples = {name for name, hint in hints.items() if tuple in (hint, get_origin(hint))}
    return {name: tuple(value) if name in tuples else value for name, value in params.items()}


def _parameter_faults(config: type[Any], params: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with names and types, by the library's own dataclass; what it accepts it may not mean."""
    hints = get_type_hints(config)
    valid = sorted({f.name for f in fields(config)} - {"seed", "size"})
    for name, value in sorted(params.items()):
        if name not in valid:
            yield f"has no parameter {name}{nearest(name, valid)}: it takes {', '.join(valid)}"
            continue
        kinds = _kinds(hints[name])
        fits = (type(value) is kind or (kind is float and type(value) is int) for kind in kinds)
        if not any(fits) and object not in kinds:
            known = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            yield f"has a parameter {name} of kind {known}, not {value!r}"


def _kinds(hint: Any) -> list[type]:
    """The kinds of which TOML's value may be; `object` where the library's type says nothing about them."""
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return [kind for part in get_args(hint) for kind in _kinds(part)]
    if origin is Literal:
        return [type(value) for value in get_args(hint)]
    if origin in (list, tuple):
        return [list]
    return [origin if origin in (bool, int, float, str, dict, type(None)) else object]
