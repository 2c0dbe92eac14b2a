"""Whether the truths of questions can ever be right: each is given back as the answer. Verifiers that may take long
are asked in workers, many at once."""

from collections.abc import Sequence
from concurrent.futures import Future

from r1mega.data.question import Question
from r1mega.data.sources.reasoning_gym import ANY
from r1mega.errors import RewardError
from r1mega.rewards.accuracy import can_be_right
from r1mega.rewards.choice import Choice
from r1mega.rewards.code import Code
from r1mega.rewards.pool import TaskOutcome, shared_pool
from r1mega.rewards.reasoning_gym import ReasoningGym
from r1mega.rewards.verifiers import verifier
from r1mega.runtime.progress import Bar

FEW = 100
"""So many are checked before a bar is shown."""


def hopeless(questions: Sequence[Question]) -> list[Question]:
    """The questions that no answer is right to, in their order.

    Raises:
        RewardError: no worker can tell.
    """
    asked = [question for question in questions if question.truth != ANY]  # the generator's own, without an example
    slow = [question for question in asked if not _is_quick(question.verifier)]
    judged = {id(q): shared_pool().submit(can_be_right, q) for q in slow}
    found: list[Question] = []
    with Bar("can the truths be right?", len(asked), unit="question", silent=len(asked) < FEW) as bar:
        for question in asked:
            if not (_outcome(question, judged[id(question)]) if id(question) in judged else can_be_right(question)):
                found.append(question)
            bar.advance()
    return found


def _outcome(question: Question, judged: Future[TaskOutcome]) -> bool:
    outcome = judged.result()
    if outcome.status == "failed":
        raise RewardError(f"the truth of question {question.id} cannot be checked: {outcome.reason}")
    return outcome.status == "done" and outcome.value


def _is_quick(name: str) -> bool:
    """Whether a verifier's truths are checked in no time to speak of; of a program, none is run."""
    judge = verifier(name)
    return isinstance(judge, Choice | Code) or (isinstance(judge, ReasoningGym) and judge.numeric)
