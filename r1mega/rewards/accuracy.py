"""Accuracy: the answer is right by its task's own verifier."""

from r1mega.data.tasks import Question, family
from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN
from r1mega.errors import ConfigError
from r1mega.rewards.format import find_answer
from r1mega.samples import Prompt


def is_right(prompt: Prompt, text: str) -> bool:
    """Whether the answer inside the answer tags of `text` is right; an answer anywhere else does not count.

    Raises ConfigError on an unknown task, and whatever the verifier raises.
    """
    answer = find_answer(text)
    return answer is not None and family(prompt.task).verify(answer, prompt.truth, prompt.entry)


def ends_right(prompt: Prompt, text: str) -> bool:
    """Whether the last thing in `text` that looks like an answer is right, tags or not. Raises as `is_right`.

    For evaluation alone, to tell skill from format: as a reward it would pay for any number written last.
    """
    task = family(prompt.task)
    return task.verify(task.last_answer(text), prompt.truth, prompt.entry)


def can_be_right(question: Question) -> bool:
    """Whether a question's own truth, given back word for word as the answer, is right: otherwise none ever is.

    Raises ConfigError on an unknown task. A verifier that raises has no right answer either.
    """
    prompt = Prompt(question.id, question.task, question.text, question.truth, (), "", question.entry)
    try:
        return is_right(prompt, f"{ANSWER_OPEN}{question.truth}{ANSWER_CLOSE}")
    except ConfigError:
        raise
    except Exception:  # foreign code
        return False
