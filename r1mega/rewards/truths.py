"""Whether the truths of questions can ever be right: each is given back as the answer. Verifiers that may take long
are asked in workers, many at once."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from r1mega.data.question import NO_VERIFIER, Question
from r1mega.data.sources.reasoning_gym import ANY
from r1mega.errors import RewardError
from r1mega.rewards import math
from r1mega.rewards.accuracy import can_be_right
from r1mega.rewards.choice import Choice
from r1mega.rewards.code import Code
from r1mega.rewards.mathematics.verifier import Mathematics
from r1mega.rewards.pool import TaskOutcome, shared_pool
from r1mega.rewards.reasoning_gym import ReasoningGym
from r1mega.rewards.verifiers import verifier
from r1mega.runtime.progress import Bar

FEW = 100
"""So many are checked before a bar is shown."""


@dataclass(frozen=True)
class Doubt:
    """What is wrong with a truth."""

    why: str
    never: bool = True
    """Whether no answer is right; otherwise only one that says it word for word."""


def doubts(questions: Sequence[Question]) -> list[tuple[Question, Doubt]]:
    """The questions whose truths are in doubt, in their order.

    Raises:
        RewardError: no worker can tell.
    """
    # The generator's own, without an example, and those that no rule judges.
    asked = [q for q in questions if q.truth != ANY and q.verifier != NO_VERIFIER]
    slow = [question for question in asked if not _is_quick(question.verifier)]
    judged = {id(q): shared_pool().submit(doubt_of, q) for q in slow}
    found: list[tuple[Question, Doubt]] = []
    with Bar("can the truths be right?", len(asked), unit="question", silent=len(asked) < FEW) as bar:
        for question in asked:
            doubt = _outcome(question, judged[id(question)]) if id(question) in judged else doubt_of(question)
            if doubt is not None:
                found.append((question, doubt))
            bar.advance()
    return found


def doubt_of(question: Question) -> Doubt | None:
    """What is wrong with a question's truth by its own verifier; None where nothing is."""
    mathematics = isinstance(verifier(question.verifier), Mathematics)
    if mathematics and (fault := math.can_be_right(question.truth)):
        return Doubt(fault)
    if not can_be_right(question):
        return Doubt("given back as the answer it is wrong")
    return (
        Doubt("it is not read as mathematics", never=False) if mathematics and math.is_text(question.truth) else None
    )


def _outcome(question: Question, judged: Future[TaskOutcome]) -> Doubt | None:
    outcome = judged.result()
    if outcome.status == "failed":
        raise RewardError(f"the truth of question {question.id} cannot be checked: {outcome.reason}")
    return outcome.value if outcome.status == "done" else Doubt(f"its verifier does not end on it: {outcome.reason}")


def _is_quick(name: str) -> bool:
    """Whether a verifier's truths are checked in no time to speak of; of a program, none is run."""
    judge = verifier(name)
    return isinstance(judge, Choice | Code) or (isinstance(judge, ReasoningGym) and judge.numeric)
