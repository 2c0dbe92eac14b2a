"""Recipe of asking a finished model held-out questions; the stage is `r1mega.stages.evaluate`."""

from typing import Literal

from r1mega.recipe.asking import Asking


class Evaluate(Asking):
    """Held-out questions answered by a Hugging Face folder; needs the engine alone, no trainer."""

    runs = "r1mega.stages.evaluate:run"
    checks_data = "r1mega.preflight.questions:check_held_out"
    learns_from = "nothing"

    stage: Literal["evaluate"]
