"""`r1mega score` and `r1mega make-tests`."""

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


def make_tests(
    file: Annotated[Path, typer.Argument(help="Problems, a JSON line each: id, language, generator, right, wrong.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The same rows, with tests in place of these programs.")],
    inputs: Annotated[int, typer.Option("--inputs", min=1, help="Runs of each problem's generator.")] = 100,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Tests of a problem at most.")] = 20,
) -> None:
    """Make test cases: inputs on which right programs agree and wrong ones fail. Started again, it goes on."""
    from r1mega.rewards import make_tests as making

    making.make_tests(file, out, num_inputs=inputs, keep=keep, say=lambda line: print(line, flush=True))
