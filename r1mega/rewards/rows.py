"""Rows of a file that is scored: what each kind needs, and how a row is judged.

    math          id, response, answer        the final answer against the truth
    choice        id, response, answer        the letter, or letters, that it names
    format        id, response, style         r1_zero: <think> and <answer>; r1: <think> and a summary
    language      id, response, target_language (ISO 639-1); or text, the bare chain of thought, for response
    reasoning-gym id, response, entry         by the verifier of the entry's data set
    code          id, response, tests         the program passes them; language (python or cpp), and where wanted
                  checker, program (with a fault, to mend), time_s, memory_mib
    rubric        id, response, and as the config's rewards ask for them question, answer, verifier, domain, entry,
                  prefill, truncated, num_tokens, step, target_language

Other fields of a row are the user's own. The functions that judge are called in workers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from r1mega.buffers import Int32s
from r1mega.data.question import Domain
from r1mega.errors import DataError
from r1mega.rewards import choice, language, math, reasoning_gym
from r1mega.rewards.code import NAMES, Code
from r1mega.rewards.endpoint_reward import EndpointReward
from r1mega.rewards.format import FORMATS
from r1mega.rewards.mathematics.answer import find_answer
from r1mega.rewards.programs.settings import CodeSettings
from r1mega.rewards.programs.task import FIELDS
from r1mega.rewards.reward import Answer
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.samples import Prompt, Verdict, VerdictStatus

Kind = Literal["math", "choice", "format", "language", "reasoning-gym", "code", "rubric"]
COUNT_TOKENS = ("overlong", "own")
"""Kinds of rewards that may ask for an answer's length in tokens."""
MAX_ANSWER_CHARACTERS = 20_000
"""Of an answer that a data set's own verifier reads."""


@dataclass(frozen=True)
class Response:
    """A checked row."""

    id: str | int
    response: str
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What its kind needs beside."""


def read_row(kind: Kind, value: Any, where: str, rubric: Rubric | None) -> Response:
    """A line's value as a row of this kind. Raises DataError with the place of what is wrong."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is an object, and this is {_name_of(value)}")
    identity = value.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise DataError(f"{where}: id should be a text or a whole number, and is {_shown(value, 'id')}")
    fields: dict[str, Any] = {}
    bare = kind == "language" and "text" in value
    response = _text(value, "text" if bare else "response", where)
    if kind in ("math", "choice"):
        fields["answer"] = _text(value, "answer", where, numbers=True)
    elif kind == "format":
        fields["style"] = value.get("style")
        if fields["style"] not in FORMATS:
            known = " or ".join(FORMATS)
            raise DataError(f"{where}: style should be {known}, and is {_shown(value, 'style')}")
    elif kind == "language":
        fields |= {"bare": bare, "target_language": _text(value, "target_language", where)}
        if fault := language.unknown(fields["target_language"]):
            raise DataError(f"{where}: target_language: {fault}")
    elif kind == "reasoning-gym":
        fields["entry"] = _entry(value, where)
    elif kind == "code":
        fields["entry"] = {name: value[name] for name in FIELDS if name in value}
        if (fault := Code().fault_of(fields["entry"])) is not None:
            raise DataError(f"{where}: {fault}")
    else:
        assert rubric is not None
        fields = _for_rubric(value, where, rubric)
    return Response(identity, response, fields)


def _for_rubric(value: Mapping[str, Any], where: str, rubric: Rubric) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "domain": value.get("domain", "math"), "prefill": value.get("prefill", ""),
        "truncated": value.get("truncated", False), "num_tokens": value.get("num_tokens", 0),
        "step": value.get("step", 0), "entry": value.get("entry", {}), "answer": "", "verifier": "math",
        "question": value.get("question", ""), "target_language": value.get("target_language", ""),
    }  # fmt: skip
    if "num_tokens" not in value and (counts := [n for n, r in rubric.rewards.items() if r.kind in COUNT_TOKENS]):
        raise DataError(f"{where}: num_tokens is missing, and rewards.{counts[0]} may ask how long the answer is")
    asked = [name for name, reward in rubric.rewards.items() if isinstance(reward, EndpointReward)]
    if asked and "question" not in value:
        raise DataError(f"{where}: question is missing, and rewards.{asked[0]} sends it to whoever judges the answer")
    kinds = {
        "question": str,
        "target_language": str,
        "prefill": str,
        "truncated": bool,
        "num_tokens": int,
        "step": int,
        "entry": dict,
    }
    for name, kind in kinds.items():
        if not isinstance(fields[name], kind) or (kind is int and isinstance(fields[name], bool)):
            raise DataError(f"{where}: {name} should be {_NAMES[kind]}, and is {_shown(value, name)}")
    if fields["domain"] not in get_args(Domain):
        known = ", ".join(get_args(Domain))
        raise DataError(f"{where}: domain should be one of {known}, and is {_shown(value, 'domain')}")
    if "answer" in value or any(reward.kind == "accuracy" for reward in rubric.rewards.values()):
        fields["verifier"] = value.get("verifier", "math")
        if "answer" in value or fields["verifier"] not in NAMES:  # the truth of code is its tests
            fields["answer"] = _text(value, "answer", where, numbers=True)
        if fields["verifier"] not in VERIFIERS:
            known = ", ".join(VERIFIERS)
            raise DataError(f"{where}: verifier should be one of {known}, and is {_shown(value, 'verifier')}")
    return fields


def _entry(value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    entry = value.get("entry")
    if not isinstance(entry, dict) or "answer" not in entry:
        raise DataError(f"{where}: entry should be reasoning-gym's own record, with its answer and metadata")
    metadata = entry.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("source_dataset"), str):
        raise DataError(f"{where}: entry.metadata.source_dataset should name the data set that the entry is of")
    return entry


def _text(value: Mapping[str, Any], name: str, where: str, *, numbers: bool = False) -> str:
    found = value.get(name)
    if numbers and isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    if not isinstance(found, str):
        raise DataError(f"{where}: {name} should be a text, and is {_shown(value, name)}")
    return found


_NAMES: Mapping[type, str] = {
    str: "a text", bool: "true or false", int: "a whole number", dict: "an object", list: "a list", float: "a number",
    type(None): "null",
}  # fmt: skip


def _name_of(value: Any) -> str:
    return _NAMES.get(type(value), "something else")


def _shown(value: Mapping[str, Any], name: str) -> str:
    if name not in value:
        return "missing"
    found = value[name]
    return repr(found)[:60] if isinstance(found, str | int | float) else _name_of(found)


def judge_math(row: Response) -> Verdict:
    """1 for an answer equal to the truth; unscorable where the truth cannot be read."""
    truth = row.fields["answer"]
    fault = math.can_be_right(truth)
    if fault is not None:
        return Verdict(VerdictStatus.UNSCORABLE, reason=f"the truth: {fault}")
    judgement = math.judge_response(row.response, truth)
    return _scored("accuracy", judgement.right, judgement.reason)


def judge_choice(row: Response) -> Verdict:
    """1 for an answer that names the truth's letters; unscorable where the truth names none."""
    truth = row.fields["answer"]
    if choice.truth_letters(truth) is None:
        return Verdict(VerdictStatus.UNSCORABLE, reason="the truth names no letter")
    answer = find_answer(row.response)
    if answer is None:
        return _scored("accuracy", False, "no answer")
    named = choice.letters(answer)
    return _scored("accuracy", choice.is_right(answer, truth), "" if named else "no letter that can be told")


def judge_format(row: Response) -> Verdict:
    return _scored("format", FORMATS[row.fields["style"]](row.response), "")


def judge_language(row: Response) -> Verdict:
    """The share of words of the row's language in its thought."""
    score = language.judge_text(row.response, row.fields["target_language"], bare=row.fields["bare"])
    return Verdict(score.status, score.value, {"language": score.value}, score.reason)


def judge_reasoning_gym(row: Response) -> Verdict:
    """1 where the data set's own verifier gives the full score; what it gave is a part. Raises what it raises."""
    entry = row.fields["entry"]
    if not reasoning_gym.is_known(entry):
        name = entry["metadata"]["source_dataset"]
        return Verdict(VerdictStatus.UNSCORABLE, reason=f"reasoning-gym has no data set {name!r}")
    answer = find_answer(row.response)
    reason = "no answer" if answer is None else ""
    if answer is not None and (len(answer) > MAX_ANSWER_CHARACTERS or "__" in answer):
        answer, reason = None, "unreadable"  # some verifiers evaluate what they are given
    given = 0.0 if answer is None else reasoning_gym.score_of(answer, entry)
    parts = {"accuracy": float(given >= 1.0), "score": given}
    return Verdict(VerdictStatus.SCORED, parts["accuracy"], parts, reason)


def judge_code(row: Response) -> Verdict:
    """1 where the program passes all tests. Raises RewardError."""
    passed = Code().judge(Code().find_answer(row.response), row.fields["entry"], CodeSettings())
    return _scored("accuracy", passed.passed == passed.total, passed.reason)


def asked_of_rubric(row: Response) -> tuple[Prompt, Answer, int]:
    """What a config's rules are asked: an answer to a question, after so many steps."""
    fields = row.fields
    prompt = Prompt(
        str(row.id), fields["verifier"], fields["question"], fields["answer"], Int32s(), fields["prefill"],
        fields["entry"], fields["domain"], target_language=fields["target_language"],
    )  # fmt: skip
    answer = Answer(fields["prefill"] + row.response, fields["num_tokens"], fields["truncated"])
    return prompt, answer, fields["step"]


JUDGES: Mapping[Kind, Callable[[Response], Verdict]] = {
    "math": judge_math,
    "choice": judge_choice,
    "format": judge_format,
    "language": judge_language,
    "reasoning-gym": judge_reasoning_gym,
    "code": judge_code,
}
"""Kind -> what judges a row; a rubric's rules do it themselves (`rewards.judges`)."""


def _scored(part: str, right: bool, reason: str) -> Verdict:
    return Verdict(VerdictStatus.SCORED, float(right), {part: float(right)}, reason)
