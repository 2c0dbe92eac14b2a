"""Rows of a mixture read and chosen as the stage does, without writing them; what was found good is remembered."""

import logging
from pathlib import Path

from r1mega.families.spec import ModelSpec
from r1mega.preflight import verdicts
from r1mega.preflight.data import left_out
from r1mega.recipe.mixture import MakeMixture

log = logging.getLogger(__name__)


def check_mixture(recipe: MakeMixture, spec: ModelSpec | None, tokenizer: Path | None, *, brief: bool) -> None:
    """Every row, and whether each table has as many as it is to give.

    Raises:
        DataError: as the stage would.
    """
    if brief:
        return
    from r1mega.stages.mixture_card import earlier_stages, looked_into

    named = [one.path for one in recipe.inputs()]
    settings = recipe.model_dump(mode="json", exclude={"processes"})
    files = [file for table in recipe.data for file in table.files]
    key = verdicts.key("mixture", settings, verdicts.digest([*named, *looked_into(files)]))
    if verdicts.known(key):
        return
    earlier_stages(files)
    from r1mega.stages.mixture_choice import choose, counts
    from r1mega.stages.mixture_reading import see

    _, seen = see(recipe, None)
    outcomes, _ = choose(recipe, seen.rows)
    told: list[str] = []
    for i in range(len(recipe.data)):
        found = counts(outcomes[seen.rows["table"] == i])
        told += left_out(f"data.{i}", found | {"read": sum(found.values())})
    for line in told:
        log.warning("%s", line)
    verdicts.keep(key, f"the rows of {', '.join(map(str, named))}", told)
