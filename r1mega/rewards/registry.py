"""The table of rewards: the kinds that a config's [rewards] may name."""

import functools
import operator
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import BeforeValidator, Discriminator, Tag, TypeAdapter, ValidationError

from r1mega.config.load import nearest, raise_if_any
from r1mega.config.scheduled import Scheduled
from r1mega.errors import ConfigError
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.constraints import ConstraintsMet
from r1mega.rewards.format import Format
from r1mega.rewards.judge import Judge
from r1mega.rewards.language import Language
from r1mega.rewards.overlong import Overlong
from r1mega.rewards.own import Own
from r1mega.rewards.own import faults as own_faults
from r1mega.rewards.reward import ModelReward, Reward
from r1mega.rewards.reward_model import LearntReward
from r1mega.rewards.rubric import Rubric, Truncated
from r1mega.rewards.served_reward_model import ServedRewardModel

MEMBERS: tuple[type[Reward], ...] = (
    Accuracy,
    Format,
    Language,
    Overlong,
    Own,
    ConstraintsMet,
    Judge,
    ServedRewardModel,
    LearntReward,
)
"""A row a kind of reward."""

REWARDS: Mapping[str, type[Reward]] = {member.model_fields["kind"].default: member for member in MEMBERS}


def _kind(reward: Any) -> Any:
    return reward["kind"] if isinstance(reward, dict) else getattr(reward, "kind", None)


if TYPE_CHECKING:
    AnyReward = Reward
else:
    _each = (Annotated[member, Tag(kind)] for kind, member in REWARDS.items())
    AnyReward = Annotated[functools.reduce(operator.or_, _each), Discriminator(_kind)]


def _named(table: Any) -> Any:
    """Every reward as a table that says its kind: the one that it states, that of a file, or its own name."""
    if not isinstance(table, dict):
        return table
    return {n: reward if isinstance(reward, Reward) else _table(n, reward) for n, reward in table.items()}


def _table(name: str, reward: Any) -> dict[str, Any]:
    if isinstance(reward, bool) or not isinstance(reward, dict | list | int | float):
        raise ValueError(f"{name} should be a weight, written without quotes, or a table")
    if not isinstance(reward, dict):
        reward = {"weight": reward}
    found = {"kind": "own" if "file" in reward else name, **reward}
    if found["kind"] not in REWARDS:
        near = nearest(str(found["kind"]), REWARDS)
        raise ValueError(
            f"there is no reward {found['kind']!r}{near}: choose of {', '.join(REWARDS)}; one of another name says "
            'kind = "..." in its table, and one of your own file = "..." and function = "..."'
        )
    return found


Rewards = Annotated[dict[str, AnyReward], BeforeValidator(_named)]
"""A config's [rewards]: name -> reward. The name is also that of its curve, reward/NAME; two of a kind have two:

    [rewards]
    accuracy = 1.0                 # a weight alone, which may be a schedule (`config.scheduled`)
    [rewards.format_of_prose]
    kind = "format"
    weight = 0.5
    domains = ["general"]
    [rewards.brevity]              # a function of one's own (`rewards.own`)
    file = "my_reward.py"
    function = "brevity"
"""


def lacks(rewards: Mapping[str, Reward]) -> list[str]:
    """What the environment lacks of what rewards cannot be asked without."""
    return [f"rewards.{name}.{what}" for name, reward in rewards.items() for what in reward.lacks()]


def rubric_of(config: Path) -> Rubric:
    """A config's [rewards], rules and endpoints, and what its [objective] says of truncated answers; nothing else is
    read.

    Raises ConfigError: it cannot be read; a reward is unknown, has a wrong setting or file, lacks the key of its
    endpoint, or is given by a model.
    """
    try:
        table = tomllib.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config}: {error}") from error
    try:
        anchor = {"folder": str(config.resolve().parent)}
        rewards = TypeAdapter(Rewards).validate_python(table.get("rewards", {}), context=anchor)
    except ValidationError as error:
        faults = "; ".join(f"rewards.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"{config}: {faults}") from error
    if not rewards:
        raise ConfigError(f"{config}: there is no [rewards] in it")
    models = [name for name, reward in rewards.items() if isinstance(reward, ModelReward)]
    if models:
        raise ConfigError(f"{config}: rewards.{models[0]} is given by a model, which `score` has none of")
    truncated = table.get("objective", {}).get("truncated", "zero")
    if truncated not in get_args(Truncated):
        raise ConfigError(f"{config}: objective.truncated: {truncated!r} is none of {', '.join(get_args(Truncated))}")
    raise_if_any(config, own_faults(rewards))
    raise_if_any(config, lacks(rewards))
    return Rubric(_of_run(rewards, table, config), truncated)


def _of_run(rewards: Mapping[str, Reward], table: Mapping[str, Any], config: Path) -> dict[str, Reward]:
    """The rewards in the run that the config describes. Raises ConfigError where it does not say what one needs."""
    num_steps = table.get("num_steps")
    late = [n for n, r in rewards.items() if r.last_steps is not None or r.weight.counts_from_the_end]
    if late and not (isinstance(num_steps, int) and num_steps > 0):
        raise ConfigError(
            f"{config}: rewards.{late[0]} counts from the run's end: say num_steps, or give it from_step in place of "
            "last_steps"
        )
    limited = [n for n, r in rewards.items() if isinstance(r, Overlong) and r.max_tokens is None]
    limit = table.get("sampling", {}).get("max_new_tokens") if limited else 1  # which nothing follows
    try:
        max_new_tokens = TypeAdapter(Scheduled[int]).validate_python(limit)
        return {name: reward.of_run(num_steps or 1, max_new_tokens) for name, reward in rewards.items()}
    except (ValidationError, ValueError):
        raise ConfigError(
            f"{config}: rewards.{limited[0]} follows sampling.max_new_tokens, which is {limit!r}: say "
            "how long an answer may be, or give the reward max_tokens"
        ) from None
