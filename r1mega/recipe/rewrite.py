"""Settings of making kept answers readable; the stage's part is `r1mega.stages.rewriting`."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from r1mega.config.cluster import Cluster
from r1mega.config.section import AnchoredPath, OnResume
from r1mega.data.scope import Marks
from r1mega.data.settings import AnswerFormat
from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN
from r1mega.endpoint.settings import Endpoint
from r1mega.families.registry import read_model
from r1mega.recipe.judged_by import JudgedBy
from r1mega.recipe.memory import Holds
from r1mega.rewards.format import FORMATS
from r1mega.rewards.rewriting import RewriteWords


class Rewrite(JudgedBy, RewriteWords):
    """Kept answers are made readable (report 2.3.1) and verified again: by a model behind an endpoint or of a folder,
    or, where neither is named, by `template` alone, which changes no word of the thinking and the answer."""

    endpoint: Endpoint | None = None
    """A server that is there already; the report takes DeepSeek-V3."""
    model: AnchoredPath | None = None
    """A Hugging Face folder, which our own server serves once that of the answers has ended."""
    max_model_len: int = Field(default=65_536, gt=0)
    """Of a folder's server: tokens of an answer as it is shown and of the rewritten one, at most; where the model has
    fewer positions, so many."""
    max_failed: Annotated[float, OnResume.FREE] = Field(default=0.05, ge=0, le=1)
    """Share of the latest 64 answers of which no rewritten one may be had through no fault of theirs; past it the run
    stops and says why."""
    format: AnswerFormat = "r1"
    """What a rewritten answer has to look like, as verify.format."""
    marks: Marks | None = None
    """What opens and what closes the thinking in `template`; left out: answers.marks."""
    on_failure: Literal["drop", "keep_original"] = "drop"
    """What becomes of an answer of which no rewritten one can be used: it is left out and counted, or written as it
    was sampled, and counted."""

    @property
    def by(self) -> Literal["template", "endpoint", "model"]:
        """Who rewrites, for tables and rows."""
        return "endpoint" if self.endpoint else "model" if self.model else "template"

    @property
    def asks(self) -> bool:
        """Whether a model is asked."""
        return self.by != "template"

    def faults(self, setting: str) -> list[str]:
        faults = super().faults(setting) if self.asks else []
        shown = [self.text("", "a", answer) for answer in ("a", f"{ANSWER_OPEN}a{ANSWER_CLOSE}")]
        if self.format != "any" and not any(map(FORMATS[self.format], shown)):
            faults.append(
                f"{setting}.template: what it makes of a thought and an answer is not in {setting}.format = "
                f'"{self.format}", so that nothing would be left; an answer has its tags with it'
            )
        unused = sorted(self.model_fields_set & {*RewriteWords.model_fields, *JudgedBy.model_fields} - {"template"})
        if not self.asks and unused:
            faults.append(
                f"{setting}.{unused[0]}: is of a model that rewrites, and none is named: give {setting}.endpoint or "
                f"{setting}.model, or take it out"
            )
        return faults

    def faults_on(self, setting: str, holds: Holds, machine: Cluster) -> list[str]:
        faults, folder = super().faults_on(setting, holds, machine), self.model
        if folder is not None and (folder / "config.json").is_file():
            longest = min(self.max_model_len, read_model(folder).max_positions)
            if self.max_tokens >= longest:
                faults.append(
                    f"{setting}.max_tokens: {self.max_tokens:,} of {longest:,} tokens that its server takes leave no "
                    f"room for the answer that is shown; lower it, or raise {setting}.max_model_len where the model "
                    "has more positions"
                )
        return faults

    def leaves(self) -> Sequence[str]:
        """Files beside the rows."""
        return ("originals.jsonl",)
