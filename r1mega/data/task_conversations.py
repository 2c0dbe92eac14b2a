"""Conversations made from tasks: a question and its worked answer, in the format that RL asks for.

They stand in for a teacher's samples where a tiny student is distilled. Held-out questions are left out.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from r1mega.data.pretrain_text import write_answer
from r1mega.data.sources.reasoning_gym import Task, draw
from r1mega.data.split import HELD_OUT


def task_conversations(tasks: Sequence[Task], num: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows {"messages": [user, assistant]}; the same arguments give the same rows.

    Raises:
        ConfigError, DataError: as `tasks.questions`.
    """
    for question in draw(tasks, num, seed, HELD_OUT, distinct=False):
        answer = write_answer(question, "think")
        yield {
            "messages": [
                {"role": "user", "content": question.text},
                {"role": "assistant", "content": answer},
            ]
        }
