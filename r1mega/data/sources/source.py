"""What a source of questions is: settings that read or make them.

    class Lines(QuestionSource):
        kind: Literal["lines"] = "lines"
        path: AnchoredPath

        def read(self, seed: int) -> list[Located]:
            rows = (line.split("\\t") for line in self.path.read_text(encoding="utf-8").splitlines())
            return [(f"line {n}", self.question("chain_sum", text, truth)) for n, (text, truth) in enumerate(rows, 1)]

What a stage may train on of them (told apart, not held out, with a truth that can be right) is not a source's
business: `data.training_questions`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from r1mega.config.section import Section
from r1mega.data.question import Domain, Question, question_id

Located = tuple[str, Question]
"""Where in its source a question stands, for messages ("line 7"), and the question."""

NOTHING: Mapping[str, Any] = {}


class QuestionSource(Section):
    """Settings of every source; a table of [[questions]]."""

    sound: ClassVar[bool] = False
    """Whether its questions are all different, of the side that is trained on, and have truths that can be right."""

    kind: Any
    """Which source: a name of `sources.registry`."""
    domain: Domain = "math"
    """Of its questions; rewards are chosen by it."""

    @property
    def title(self) -> str:
        """What messages call it: the file that it reads, or its kind."""
        return next(map(str, self.files()), f"source {self.kind}")

    def faults(self) -> list[str]:
        """What is wrong with the settings, before anything is read."""
        return []

    def files(self) -> list[Path]:
        """What it reads: the settings that are paths."""
        return [value for name in type(self).model_fields if isinstance(value := getattr(self, name), Path)]

    def read(self, seed: int) -> Sequence[Located]:
        """All its questions, in an order that follows from the settings and `seed` alone.

        Raises:
            DataError: names every row that is wrong, and where it stands.
            ConfigError: settings that its library refuses.
        """
        raise NotImplementedError

    def question(
        self, verifier: str, text: str, truth: str, entry: Mapping[str, Any] = NOTHING, *, id: str = ""
    ) -> Question:
        """A question of this source's domain, named by its text unless it has an id of its own."""
        return Question(id or question_id(verifier, text), verifier, text, truth, entry, self.domain)
