"""The table of rewards: the kinds that a config's [rewards] may name."""

import difflib
import functools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.format import Format
from r1mega.rewards.reward import Reward

MEMBERS: tuple[type[Reward], ...] = (
    Accuracy,
    Format,
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
    """Every reward as a table that says its kind: the one that it states, or its own name."""
    if not isinstance(table, dict):
        return table
    return {n: reward if isinstance(reward, Reward) else _table(n, reward) for n, reward in table.items()}


def _table(name: str, reward: Any) -> dict[str, Any]:
    if isinstance(reward, bool) or not isinstance(reward, dict | int | float):
        raise ValueError(f"{name} should be a weight, written without quotes, or a table")
    found = {"kind": name, **reward} if isinstance(reward, dict) else {"kind": name, "weight": reward}
    if found["kind"] not in REWARDS:
        near = difflib.get_close_matches(str(found["kind"]), REWARDS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"there is no reward {found['kind']!r}{hint}: choose of {', '.join(REWARDS)}; one of another name says "
            'kind = "..." in its table'
        )
    return found


Rewards = Annotated[dict[str, AnyReward], BeforeValidator(_named)]
"""A config's [rewards]: name -> reward. The name is also that of its curve, reward/NAME; two of a kind have two:

    [rewards]
    accuracy = 1.0                 # a weight alone
    [rewards.format_of_prose]
    kind = "format"
    weight = 0.5
    domains = ["general"]
"""
