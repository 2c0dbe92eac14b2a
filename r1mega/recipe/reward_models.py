"""Laws of the rewards that reward models give: folder, scope of a cut answer, positions, layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from r1mega.config.cluster import TrainerLayout
from r1mega.config.training import Batch
from r1mega.errors import ConfigError
from r1mega.families.registry import read_model
from r1mega.families.spec import ModelSpec
from r1mega.layout.laws import model_faults
from r1mega.layout.placement import layout_for
from r1mega.rewards.reward import Reward
from r1mega.rewards.reward_model import LearntReward

Rewards = Mapping[str, Reward]
"""A config's, by name."""


def folders(rewards: Rewards) -> dict[str, Path]:
    """Setting -> folder of each reward that a reward model gives."""
    return {f"rewards.{name}.path": reward.path for name, reward in _learnt(rewards)}


def specs(rewards: Rewards) -> tuple[ModelSpec, ...]:
    """The reward models that are there and can be read, one a folder."""
    once = {path.resolve(): path for path in folders(rewards).values() if (path / "config.json").is_file()}
    found = (_read(path) for path in once.values())
    return tuple(spec for spec in found if isinstance(spec, ModelSpec))


def reward_model_faults(rewards: Rewards, truncated: str, max_new_tokens: int) -> list[str]:
    """What is wrong with these rewards by themselves; a folder that is not there yet is no fault (`inputs`).

    Args:
        truncated: `objective.truncated`.
        max_new_tokens: tokens of the longest answer.
    """
    faults: list[str] = []
    for name, reward in _learnt(rewards):
        if truncated == "zero" and reward.squash == "none" and reward.weight.largest:
            faults.append(
                f"rewards.{name}: with objective.truncated = zero an answer that is cut scores 0, more than a whole "
                'one whose score is negative; take judge or mask, or squash = "sigmoid", which gives nothing below 0'
            )
        elif truncated == "zero" and reward.missing != "lowest" and reward.missing < 0 and reward.weight.largest:
            faults.append(
                f"rewards.{name}.missing: {reward.missing:g}, and with objective.truncated = zero an answer that is "
                "cut scores 0, more than a whole one without its part to read; take judge or mask, or 0 and more"
            )
        if not reward.path.exists():
            continue
        if not (reward.path / "config.json").is_file():
            faults.append(
                f"rewards.{name}.path: no file {reward.path / 'config.json'}: name the folder of a reward model, "
                "with config.json, weights and tokenizer, such as the hf of a reward_model run"
            )
            continue
        spec = _read(reward.path)
        if isinstance(spec, str):
            faults.append(f"rewards.{name}.path: {spec}")
        elif spec.head != "score":
            faults.append(
                f"rewards.{name}.path: {reward.path} is a language model, which writes text and gives no score: name "
                "the folder of a reward model, such as the hf of a reward_model run"
            )
        elif max_new_tokens >= spec.max_positions:
            faults.append(
                f"rewards.{name}.path: {reward.path} has {spec.max_positions} positions (max_position_embeddings), "
                f"and answers may be of sampling.max_new_tokens = {max_new_tokens} tokens, with the question before "
                "them: what it cannot read whole would not be scored; lower the one, or take a model with more"
            )
    return faults


def reward_model_layout_faults(rewards: Rewards, layout: TrainerLayout, batch: Batch) -> list[str]:
    """Why the trainer's layout cannot hold a reward model."""
    return [
        f"rewards.{name}.path: {fault}"
        for name, reward in _learnt(rewards)
        if (reward.path / "config.json").is_file()
        for spec in [_read(reward.path)]
        if isinstance(spec, ModelSpec) and spec.head == "score"
        for fault in model_faults(spec, layout_for(spec, layout), batch)
    ]


def _learnt(rewards: Rewards) -> Iterator[tuple[str, LearntReward]]:
    return ((name, reward) for name, reward in rewards.items() if isinstance(reward, LearntReward))


def _read(path: Path) -> ModelSpec | str:
    try:
        return read_model(path)
    except ConfigError as error:
        return str(error)
