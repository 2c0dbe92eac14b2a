"""What a source of questions is: settings that read or make them.

    class Lines(QuestionSource):
        kind: Literal["lines"] = "lines"
        path: AnchoredPath

        def read(self, seed: int) -> list[Located]:
            rows = (line.split("\\t") for line in self.path.read_text(encoding="utf-8").splitlines())
            return [(f"line {n}", self.asked("chain_sum", text, truth)) for n, (text, truth) in enumerate(rows, 1)]

What a stage may train on of them (told apart, not held out, with a truth that can be right) is not a source's
business: `data.asked_questions`.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from r1mega.config.scheduled import Scheduled
from r1mega.config.section import Section
from r1mega.data.languages import Language
from r1mega.data.question import Domain, Question, question_id

Located = tuple[str, Question]
"""Where in its source a question stands, for messages ("line 7"), and the question."""

NOTHING: Mapping[str, Any] = {}


class QuestionSource(Section):
    """Settings of every source; a table of [[questions]] or of [[evaluation.questions]]."""

    kind: Any
    """Which source: a name of `sources.registry`."""
    domain: Domain = "math"
    """Of its questions; rewards are chosen by it."""
    target_language: Language = ""
    """The language that answers should be in, ISO 639-1; for the rewards that look at it."""
    weight: Scheduled[Annotated[float, Field(ge=0)]] | None = None
    """Its share of each rollout's prompts, relative to the other tables' (1 where others have one). A number, or a
    schedule (`config.scheduled`), which may be 0 for a while: it is not asked then. Where no table has one, all
    tables' questions are shuffled together, so that each is asked as often as any other."""
    num: int | None = Field(default=None, gt=0)
    """Take at most so many of its questions, drawn by their hash and the seed; unset: all of them."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to a question whose prompt is too long: the run stops and names it, or it is left out and
    counted."""
    duplicates: Literal["error", "drop"] = "error"
    """What happens to a question that an earlier one or the evaluation asks already: the run stops and lists them, or
    it is left out and counted."""

    @property
    def weight_or_1(self) -> Scheduled[float]:
        """Its weight where others have one."""
        return Scheduled[float].always(1.0) if self.weight is None else self.weight

    @property
    def sound(self) -> bool:
        """Whether its truths can all be right, and need not be asked."""
        return False

    @property
    def title(self) -> str:
        """What messages call it: the file that it reads, or its kind."""
        return next((str(path) for _, path in self.inputs()), f"source {self.kind}")

    @property
    def label(self) -> str:
        """Its short name in counts and metrics; two tables of one label are numbered."""
        return next((path.stem for _, path in self.inputs()), str(self.kind))

    @property
    def unseen(self) -> str:
        """What nobody looks at before the stage reads it; "" where nothing is."""
        return ""

    def faults(self) -> list[str]:
        """What is wrong with the settings, before anything is read: "setting: what and how to mend it"."""
        return []

    def verifiers(self) -> Collection[str]:
        """The names of verifiers that its settings give."""
        return ()

    def inputs(self) -> list[tuple[str, Path]]:
        """What it reads: the settings that are paths, by their names."""
        fields = ((name, getattr(self, name)) for name in type(self).model_fields)
        return [(name, value) for name, value in fields if isinstance(value, Path)]

    def read(self, seed: int) -> Sequence[Located]:
        """All its questions, in an order that follows from the settings and `seed` alone.

        Raises:
            DataError: names every row that is wrong, and where it stands.
            ConfigError: settings that its library refuses.
        """
        raise NotImplementedError

    def read_held_out(self, seed: int) -> Sequence[Located]:
        """Questions for an evaluation: what is given is asked whole, what is made is of the held-out side."""
        return self.read(seed)

    def asked(
        self, verifier: str, text: str, truth: str, entry: Mapping[str, Any] = NOTHING, *, id: str = ""
    ) -> Question:
        """A question of this source's domain, named by its text unless it has an id of its own."""
        name = id or question_id(verifier, text)
        return Question(name, verifier, text, truth, entry, self.domain, self.target_language)
