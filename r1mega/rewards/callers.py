"""Connections to the endpoints of rewards, with what these have said before in the run directory.

with connected(config.rewards, run_dir.path) as callers:
    judges = Judges(pool, callers)
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from r1mega.endpoint.asker import EndpointAsker
from r1mega.endpoint.cache import ReplyCache
from r1mega.endpoint.client import Client
from r1mega.rewards.endpoint_reward import EndpointReward
from r1mega.rewards.reward import Reward
from r1mega.runtime import env

SAID = "judgements.jsonl"
"""In a run directory: what endpoints have said, by content."""


class Callers(dict[str, EndpointAsker]):
    """A connection for each reward that an endpoint gives, by its name."""

    def take_figures(self) -> dict[str, float]:
        """What was asked since the last call, over all of them; nothing where there are none."""
        if not self:
            return {}
        total = Counter[str]()
        for asker in self.values():
            total.update(asker.take_figures())
        return {f"judging/{name}": float(num) for name, num in total.items()}


@contextmanager
def connected(rewards: Mapping[str, Reward], folder: Path | None) -> Iterator[Callers]:
    """Each is connected at its first question; at the end what is under way is given up.

    Args:
        folder: where what they say is kept; None: for as long as this lasts.

    Raises:
        ConfigError: a key that cannot be sent.
    """
    asked = {name: reward for name, reward in rewards.items() if isinstance(reward, EndpointReward)}
    callers = Callers()
    with ExitStack() as stack:
        cache = ReplyCache(folder / SAID if folder is not None and asked else None)
        stack.callback(cache.close)
        for name, reward in asked.items():
            key = reward.endpoint.api_key_env
            client = Client(reward.endpoint, env.secret(key) if key else None)
            callers[name] = stack.enter_context(EndpointAsker(client, cache))
        yield callers
