"""Examples that stand before a question (report 2.3.1: few-shot prompting with a long chain of thought): read, drawn.

    {"question": "What is 3 + 4?", "response": "<think>\\n3 and 4 more are 7.\\n</think>\\n\\nIt is 7."}

or a conversation of one question and one answer, as SFT reads them (`data.turns`). They are shown to whoever answers,
as turns of the conversation before the question, and are no part of any row that is made of the answer.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1mega.data.row_source import CheckedRows, RowForm
from r1mega.data.settings import PromptSettings
from r1mega.data.turns import FIELDS, Message, conversation
from r1mega.errors import DataError


@dataclass(frozen=True)
class Shot:
    """A question with its answer, to be shown before others are asked."""

    question: str
    response: str
    where: str = ""
    """File and line, for messages about it."""

    @property
    def turns(self) -> tuple[Message, Message]:
        """The user's turn and the assistant's."""
        return {"role": "user", "content": self.question}, {"role": "assistant", "content": self.response}


def drawn_shots(settings: PromptSettings, seed: int) -> tuple[Shot, ...]:
    """The examples that a run shows, in the order in which it shows them; none where no file is named.

    Args:
        seed: of the run, by which they are drawn from the file.

    Raises:
        DataError: the file is not there, a row is malformed or has more than one question and one answer, or there
            are fewer rows than are to be shown.
    """
    if settings.few_shot is None:
        return ()
    found = list(CheckedRows(FORM, [settings.few_shot], "", ""))
    if len(found) < settings.num_shots:
        raise DataError(
            f"prompt.num_shots: {settings.num_shots} examples asked for, and {settings.few_shot} has {len(found)}: "
            "add some, or lower it"
        )
    return tuple(random.Random(f"{seed}/few_shot").sample(found, settings.num_shots))


def _shot(row: Any, where: str) -> Shot:
    if isinstance(row, Mapping) and "question" in row:
        row = {"prompt": row["question"], "response": row.get("response")}
    messages = conversation(row, where).messages
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise DataError(f"{where}: an example is one question and its answer, not {len(messages)} turns")
    return Shot(messages[0]["content"], messages[1]["content"], where)


def _needs(columns: Any) -> str:
    some = {"question", "response"} <= set(columns) or {"prompt", "response"} <= set(columns)
    return "" if some or "messages" in columns else "messages, or question and response"


FORM = RowForm("examples", ("question", *FIELDS), _shot, _needs)
