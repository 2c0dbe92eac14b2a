"""Recipe of asking a finished model held-out questions; the stage is `r1mega.stages.evaluate`."""

from typing import Literal

from r1mega.data.settings import AnswerFormat
from r1mega.recipe.answering import Answering
from r1mega.recipe.asking import Evaluated


class Evaluate(Answering, Evaluated):
    """Held-out questions answered by a finished model, no trainer."""

    runs = "r1mega.stages.evaluate:run"
    checks_data = "r1mega.preflight.questions:check_held_out"
    learns_from = "nothing"

    stage: Literal["evaluate"]

    @property
    def answer_format(self) -> AnswerFormat:
        """`evaluation.format`, resolved."""
        chat = self.endpoint is not None and self.endpoint.form == "chat"
        return self.evaluation.format or ("any" if chat else "r1_zero")
