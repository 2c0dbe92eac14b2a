"""The tokenizer that a stage's model goes out with: the one it came with, and the chat template it was trained on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r1mega.data.prompt_form import PromptForm
from r1mega.errors import DataError
from r1mega.formats import companions
from r1mega.runtime import files
from r1mega.samples import Prompt


def write(folder: Path, to: Path, chat_template: str) -> None:
    """The tokenizer and the licences of a model's folder as they are, but for the chat template; whole or not at all.

    Args:
        folder: of the model that a stage starts from.
        to: of the run; replaced if it exists.
        chat_template: Jinja.
    """
    files.write_folder(to, lambda into: _fill(folder, into, chat_template))


def _fill(folder: Path, to: Path, chat_template: str) -> None:
    companions.copy(companions.collect(folder, folder), to)
    if (folder / companions.CARD).is_file():  # it states the licence
        shutil.copyfile(folder / companions.CARD, to / companions.CARD)
    for other in to.glob("chat_template.*"):  # readers do not agree on which comes first
        other.unlink()
    (to / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    settings: Any = json.loads((to / "tokenizer_config.json").read_text(encoding="utf-8"))
    if "chat_template" in settings:  # older readers look here, newer ones at the file
        settings["chat_template"] = chat_template
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (to / "tokenizer_config.json").write_text(text, encoding="utf-8")


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
