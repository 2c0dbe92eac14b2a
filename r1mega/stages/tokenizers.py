"""The tokenizer that a stage's model goes out with: the one it came with, and the chat template it was trained on."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1mega.data.prompt_form import PromptForm
from r1mega.errors import DataError
from r1mega.formats import companions
from r1mega.runtime import files
from r1mega.samples import Prompt


def write(folder: Path, to: Path, chat_template: str, roles: Mapping[str, str | None] | None = None) -> None:
    """The tokenizer and the licences of a model's folder as they are, but for the chat template; whole or not at all.

    Args:
        folder: of the model that a stage starts from.
        to: of the run; replaced if it exists.
        chat_template: Jinja.
        roles: tokens that are given a role, such as {"pad_token": "<|pad|>"}; None: no token has it.
    """
    files.write_folder(to, lambda into: _fill(folder, into, chat_template, roles or {}))


def _fill(folder: Path, to: Path, chat_template: str, roles: Mapping[str, str | None]) -> None:
    companions.copy(companions.collect(folder, folder), to)
    if (folder / companions.CARD).is_file():  # it states the licence
        shutil.copyfile(folder / companions.CARD, to / companions.CARD)
    for other in to.glob("chat_template.*"):  # readers do not agree on which comes first
        other.unlink()
    (to / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    # Older readers look for the template in the settings, and for roles in a map of their own.
    settings = _changed(to / "tokenizer_config.json", roles)
    if "chat_template" in settings:
        _changed(to / "tokenizer_config.json", {"chat_template": chat_template})
    if (to / "special_tokens_map.json").is_file():
        _changed(to / "special_tokens_map.json", roles)


def _changed(file: Path, fields: Mapping[str, str | None]) -> dict[str, Any]:
    """A JSON object's file with these fields, of which None are taken out; written where they change it."""
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    after = {k: v for k, v in {**before, **fields}.items() if k not in fields or v is not None}
    if after != before:
        file.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return after


def chat_template_of(prompts: Sequence[Prompt], form: PromptForm) -> str:
    """The chat template that makes of a question the very tokens that RL asks, up to where the answer begins.

    Raises:
        DataError: this tokenizer makes something else of the first question's text.
    """
    asked = prompts[0]
    made = form.tokenizer.apply_chat_template(
        [{"role": "user", "content": asked.question}],
        chat_template=form.chat_template, add_generation_prompt=True, return_dict=True,
    )["input_ids"]  # fmt: skip
    if list(made) != asked.token_ids.tolist():
        raise DataError(
            f"template {form.name}: as a chat template it makes {len(made)} tokens of question {asked.id}, which is "
            f"asked in {len(asked.token_ids)}: the export could not say how its model was trained"
        )
    return form.chat_template
