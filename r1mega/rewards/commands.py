"""`r1mega score`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from r1mega.errors import ConfigError

Kind = Literal["math", "choice", "format", "language", "reasoning-gym", "code", "rubric"]


def score(
    kind: Annotated[Kind, typer.Argument(help="math, choice, format, language, reasoning-gym, code or rubric.")],
    file: Annotated[Path, typer.Argument(help="Responses, a JSON line each: id, response and what the kind needs.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Verdicts; default: standard output.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Of a rubric: a config with [rewards].")] = None,
) -> None:
    """Judge a file of responses: a JSON line a row, a summary last. Started again, it goes on where OUT ends."""
    from r1mega.rewards import score as scoring
    from r1mega.rewards.registry import rubric_of

    if (kind == "rubric") != (config is not None):
        raise ConfigError("score rubric takes its rewards from --config FILE; the other kinds take no --config")
    scoring.score(kind, file, out, None if config is None else rubric_of(config))
