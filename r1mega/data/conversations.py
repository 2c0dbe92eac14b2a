"""Conversations for SFT: what a row may have is in `turns`, where rows come from in `row_source`."""

from collections.abc import Collection, Sequence
from pathlib import Path

from r1mega.data.row_source import CheckedRows, RowForm
from r1mega.data.signed_rows import keeping_row
from r1mega.data.turns import FIELDS, Conversation, conversation

__all__ = ["Conversation", "Source", "conversation"]


def _needs(columns: Collection[str]) -> str:
    if "messages" in columns or {"prompt", "response"} <= set(columns):
        return ""
    return "a column `messages`, or `prompt` and `response`"


FORM = RowForm("conversations", FIELDS, keeping_row(conversation), _needs)


class Source(CheckedRows[Conversation]):
    """Files and a dataset to read conversations from."""

    def __init__(self, files: Sequence[Path], dataset: str, split: str, dataset_config: str = "") -> None:
        """See `CheckedRows`."""
        super().__init__(FORM, files, dataset, split, dataset_config)
