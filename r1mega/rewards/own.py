"""A reward of the user's own: a function in a Python file that the config names.

    [rewards.brevity]
    file = "my_reward.py"           # counted from the config's folder
    function = "brevity"
    weight = 0.3
    settings = { max_tokens = 60 }

    def brevity(num_tokens, *, max_tokens):         # my_reward.py
        return max(0.0, 1.0 - num_tokens / max_tokens)

The function takes by name what it needs of `GIVEN`; every other parameter is one of the settings. It returns a
number, or a `Score` of `rewards.reward` where it has to say more. It runs in the pool's workers alone, as the file
stood when the config was read: a later change of it is another run's. What it raises, and a result that is no finite
number, is failed, with the place in the file.
"""

import functools
import hashlib
import inspect
import numbers
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from r1mega.config.load import nearest
from r1mega.config.section import AnchoredPath
from r1mega.rewards.format import find_answer
from r1mega.rewards.pool import Pool
from r1mega.rewards.reward import Answer, Reward, RuleReward, Score, failed, scored
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.rewards.worker import Limits, Loads
from r1mega.samples import Prompt

GIVEN: Mapping[str, str] = {
    "question": "text of the question, without the template",
    "response": "the whole answer as text, the template's prefill included; untrusted",
    "answer": "the final answer in it, where the question's verifier looks for one; None where there is none",
    "truth": "the reference answer; empty where there is none",
    "entry": "the question's own record, a dict",
    "domain": "of the question: math, code, stem, logic, general, helpful, harmless",
    "num_tokens": "length of the answer, its end token included",
    "truncated": "whether it was cut at the length limit",
}
"""What a function may take, by the names of its parameters."""
LOADING = Limits(cpu_s=120.0, wall_s=300.0, memory_mib=8192)
"""What loading a file may use, once, before anything is judged."""


class Own(RuleReward):
    """A function of a file of the user's; see this module."""

    kind: Literal["own"] = "own"
    file: AnchoredPath
    function: str = Field(min_length=1)
    """A function at the top level of the file."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Handed to the function by name."""
    _source: bytes | None = PrivateAttr(default=None)

    def model_post_init(self, context: Any, /) -> None:
        try:
            self._source = self.file.read_bytes()
        except OSError:  # `faults` says so
            self._source = None

    def content(self) -> str:
        return hashlib.sha256(self._source or b"").hexdigest()

    def judge(self, prompt: Prompt, answer: Answer, group: Sequence[Answer]) -> Score:
        try:
            function, names = self._loaded()
            value = function(**{name: _given(name, prompt, answer) for name in names}, **self.settings)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            return failed(f"{_place(self.file, error)}: {type(error).__name__}: {error}")
        if isinstance(value, Score):
            return value
        if isinstance(value, numbers.Real):
            return scored(float(value))  # one that is not finite has failed, as any reward's has
        return failed(f"{self.file}: {self.function} gave {_shown(value)}, which is no number")

    def load(self) -> None:
        """What a worker needs before it judges. Raises whatever the file raises."""
        self._loaded()

    def _loaded(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return _function(str(self.file), self._source or b"", self.function, tuple(self.settings))

    def examine(self) -> list[str]:
        """What is wrong with file, function or settings; in a worker, since it runs the file."""
        try:
            names = vars(_module(str(self.file), self._source or b""))
        except (Exception, SystemExit) as error:
            return [f"{_place(self.file, error)}: {type(error).__name__}: {_said(error)}"]
        if self.function not in names:
            functions = [name for name, value in names.items() if isinstance(value, types.FunctionType)]
            known = f"; its functions are {', '.join(functions)}" if functions else ""
            near = nearest(self.function, functions)
            return [f"{self.file}: there is no function {self.function!r} in it{near}{known}"]
        function = names[self.function]
        if not callable(function):
            return [f"{self.file}: {self.function} is no function, but {_shown(function)}"]
        place = f"{self.file}:{_line(function)}: {self.function}"
        return [f"{place}: {fault}" for fault in _faults(function, self.settings)]


def faults(rewards: Mapping[str, Reward]) -> list[str]:
    """What is wrong with the files of one's own that a config's rewards name, each loaded in a process of its own."""
    told: list[str] = []
    for name, reward in rewards.items():
        if isinstance(reward, Own):
            told += [f"rewards.{name}: {fault}" for fault in _faults_of(reward)]
    return told


def loads(rewards: Mapping[str, Reward]) -> Loads:
    """What a pool loads before it judges by these rewards."""
    return [(reward.load, ()) for reward in rewards.values() if isinstance(reward, Own)]


def _faults_of(reward: Own) -> list[str]:
    try:
        reward.file.read_bytes()
    except OSError as error:
        return [f"file: {reward.file}: {error.strerror}; name a Python file"]
    with Pool(1, LOADING, preloaded=(), loads=()) as pool:
        outcome = pool.submit(reward.examine).result()
    if outcome.status == "done":
        return outcome.value
    return [f"{reward.file}: cannot be loaded: {outcome.reason}"]


def _faults(function: Callable[..., Any], settings: Mapping[str, Any]) -> list[str]:
    """What does not fit between a function's parameters, what it is given, and its settings."""
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return ["should be a plain function that returns a number"]
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError) as error:  # one of C's, say
        return [f"does not say what it takes ({error}): call it in a function of this file"]
    told = [
        f"settings.{name}: {name} is what it is given ({GIVEN[name]}): call the setting otherwise"
        for name in settings
        if name in GIVEN
    ]
    by_name: list[str] = []
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
            told.append(f"takes {parameter} by position, and all is handed over by name")
        elif parameter.kind is not parameter.VAR_KEYWORD:
            by_name.append(name)
            if name not in GIVEN and name not in settings and parameter.default is parameter.empty:
                near = nearest(name, [*GIVEN, *settings])
                told.append(
                    f"takes {name!r}, which is neither given ({', '.join(GIVEN)}) nor one of its settings{near}: "
                    f"set it in settings = {{ {name} = ... }}"
                )
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        takes = [name for name in by_name if name not in GIVEN]
        told += [
            f"settings.{name}: it takes no such setting{nearest(name, takes)}; it takes {', '.join(takes) or 'none'}"
            for name in settings
            if name not in by_name
        ]
    return told


@functools.lru_cache(maxsize=32)
def _function(
    file: str, source: bytes, name: str, settings: tuple[str, ...]
) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The function, and what of `GIVEN` it takes."""
    function = vars(_module(file, source))[name]
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return function, tuple(n for n in GIVEN if (n in parameters or takes_all) and n not in settings)


@functools.lru_cache(maxsize=32)
def _module(file: str, source: bytes) -> types.ModuleType:
    """The file's module, run once a process, under a name that is no other's."""
    module = types.ModuleType(f"r1mega_own_{hashlib.sha256(file.encode() + source).hexdigest()[:16]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    exec(compile(source, file, "exec"), vars(module))
    return module


def _given(name: str, prompt: Prompt, answer: Answer) -> Any:
    match name:
        case "question" | "truth" | "entry" | "domain":
            return getattr(prompt, name)
        case "num_tokens" | "truncated":
            return getattr(answer, name)
        case "response":
            return answer.text
        case _:
            verifier = VERIFIERS.get(prompt.verifier)
            return find_answer(answer.text) if verifier is None else verifier.find_answer(answer.text)


def _place(file: Any, error: BaseException) -> str:
    """Where in the file an error came up: the innermost of its lines."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}:{error.lineno}"
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{file}:{line}" if line else str(file)


def _said(error: BaseException) -> str:
    return str(error.msg if isinstance(error, SyntaxError) else error)[:300]


def _line(function: Callable[..., Any]) -> int:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_firstlineno if code is not None else 1


def _shown(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__} ({repr(value)[:60]})"
