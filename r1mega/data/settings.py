"""Settings of questions, texts and conversations. Reaches pydantic alone."""

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, ValidationInfo

from r1mega.config.load import nearest
from r1mega.config.section import AnchoredPath, OnResume, Section, anchor_if_path, anchored
from r1mega.data.sources.registry import Sources

TemplateName = Literal["r1_zero", "tiny", "chat"]
"""A name of `r1mega.data.template.TEMPLATES`, or the model's own chat template."""
JINJA = (".jinja", ".jinja2", ".j2")
Objective = Literal["pairwise", "pointwise"]
"""What a reward model learns from: pairs of answers, or labelled ones."""
Balance = Literal["none", "classes"]
AnswerFormat = Literal["r1_zero", "r1", "any"]
"""A name of `r1mega.evaluation.metrics.FORMATS`."""


# ---- questions ---------------------------------------------------------------------------------------------------


def _template(value: object, info: ValidationInfo) -> object:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("should be the name of a template or the path of a Jinja file")
    if value in get_args(TemplateName):
        return str(value)
    if value.endswith(JINJA) or "/" in value:
        return anchored(value, info)
    near = nearest(value, get_args(TemplateName))
    raise ValueError(
        f"there is no template of this name{near}: choose of {', '.join(get_args(TemplateName))}, or give the path "
        "of a Jinja file, such as own.jinja"
    )


class PromptSettings(Section):
    """How a question is put to the model."""

    template: Annotated[TemplateName | Path, BeforeValidator(_template)] = "tiny"
    """r1_zero: the report's Table 1 word for word. tiny: its short form, for tokenizers that `r1mega run` trained.
    chat: the model's own chat template. Or the path of a Jinja file, which is rendered as a chat template is."""
    system: str = ""
    """A system turn before the question, for chat and Jinja; "": none, and what the template writes of its own."""
    prefill: str = ""
    """What the answer begins with, such as "<think>\\n": written for the model and judged with what it writes."""
    few_shot: AnchoredPath | None = None
    """Rejection sampling: a file of examples (rows of `question` and `response`, or conversations of one question),
    which stand before every question in the template's own form; what is made of the answers does not have them."""
    num_shots: int = Field(default=1, gt=0)
    """How many of its examples are shown, drawn by the run's seed."""

    @property
    def named(self) -> bool:
        """Whether it is one of `data.template.TEMPLATES`."""
        return self.file is None and self.template != "chat"

    @property
    def file(self) -> Path | None:
        """The Jinja file, where the template is one."""
        return self.template if isinstance(self.template, Path) else None

    def faults(self) -> list[str]:
        """What is wrong with the settings, before anything is read."""
        faults = ["prompt.num_shots: has no effect without prompt.few_shot"] if self._counts_nothing else []
        if self.system and self.named:
            return [
                *faults,
                f'prompt.system: the template "{self.template}" has no place for a system turn; leave it out, or use '
                'prompt.template = "chat" or a Jinja file',
            ]
        return faults

    @property
    def _counts_nothing(self) -> bool:
        return self.few_shot is None and self.num_shots != 1

    @property
    def without_examples(self) -> Self:
        """These settings but for what stands before a question."""
        return self.model_copy(update={"few_shot": None, "num_shots": 1})


class Evaluation(Section):
    """Held-out questions, answered by the engine with the current weights."""

    every_steps: int = Field(gt=0)
    """Optimiser steps between evaluations; the first and last weights are always evaluated."""
    questions: Sources = Field(min_length=1)
    """Tables [[evaluation.questions]], as [[questions]] of GRPO: files are asked whole, made ones are of the held-out
    side; what is asked here is not trained on."""
    samples_per_question: int = Field(default=4, gt=0)
    """k: pass@1 is the mean over k answers at `sampling.temperature`."""
    seed: int = 999_999
    """Seed of the questions that are made or drawn; none of them is trained on (checked)."""
    format: AnswerFormat | None = None
    """What an answer has to look like to be right in the strict figures. r1_zero: a thought and an answer in their
    tags. r1: a thought in its tags, and an answer behind it. any: an answer where its verifier looks for one. Left
    out: r1_zero, or any where an endpoint is sent messages."""


# ---- text for a tiny base ----------------------------------------------------------------------------------------


class AnswerStyles(Section):
    """Shares of the ways an answer is written in the pretraining text; they must sum to 1."""

    think: float = Field(ge=0, le=1)
    """Worked steps inside <think>, then <answer>: the format RL asks for."""
    tags: float = Field(ge=0, le=1)
    """Nothing worked: an empty thought in the same tags, then <answer>."""
    steps: float = Field(ge=0, le=1)
    """Worked steps in plain prose, no tags."""
    plain: float = Field(ge=0, le=1)
    """The bare answer in a sentence."""


# ---- conversations -----------------------------------------------------------------------------------------------


class Conversations(Section):
    """Conversations: rows with `messages`, each {role, content}, or with `prompt` and `response`; and `system`."""

    files: tuple[AnchoredPath, ...] = ()
    """*.jsonl and *.parquet files, read in this order."""
    dataset: Annotated[str, BeforeValidator(anchor_if_path)] = ""
    """A dataset, beside files or instead: a name that `datasets.load_dataset` knows, on the hub or in its cache, or a
    folder, which begins with "/" or "." and then counts from this file."""
    dataset_config: str = ""
    """Which config of it (the hub says subset), where it has several."""
    split: str = "train"
    """Which split of it."""

    @property
    def on_the_hub(self) -> bool:
        """Whether the dataset is asked for by its name, and so perhaps not on this machine."""
        return bool(self.dataset) and not self.dataset.startswith("/")


class SFTData(Conversations):
    """Conversations to learn from."""

    max_tokens: int = Field(gt=0)
    """Context length (report: 32,768): the longest conversation, and the length of a chunk where
    batch_unit = "chunks"."""
    too_long: Literal["error", "truncate", "drop"] = "error"
    """What happens to a longer one: the run stops and names it; its first max_tokens tokens are learnt, so that it
    never ends; or it is left out. The summary counts those truncated and dropped."""


class PreferenceData(Conversations):
    """Preferences to learn from (`data/preferences.py` says what a row has)."""

    max_tokens: int = Field(default=8_192, gt=0)
    """Of a question and one answer as they are read (report: training length 8,192); scoring has no limit."""
    too_long: Literal["error", "drop"] = "error"
    """What happens where an answer is longer: the run stops and names the row; or the row is left out, a pair whole.
    Nothing is truncated. The summary counts those left out."""
    label: str = Field(default="safe", min_length=1)
    """Of labelled answers: the column that says which of them are safe (true or 1; false or 0)."""


class ValidationData(Conversations):
    """Rows that are not trained on: of files of their own, or a share of the training data."""

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training rows to hold out instead, by a hash of what is asked in them: no row that begins with a
    held-out one's question is trained on."""
    every_steps: Annotated[int, OnResume.FREE] = Field(gt=0)
    """Optimiser steps between validations; the first and the last weights are always validated."""
