"""The models that score answers in GRPO, in their own turn between rollout and update (report, v2 B.1).

rollout -> [the policy is put aside] -> reward models -> [the policy is back] -> logprobs -> updates
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from r1mega.data.preference_text import readings, refuse_unreadable
from r1mega.data.tokenizer import load_tokenizer
from r1mega.diagnostics.rollout import reward_metrics, transcripts
from r1mega.errors import ConfigError, RolloutError
from r1mega.families.registry import read_model
from r1mega.recipe.grpo import GRPO
from r1mega.rewards.failures import Failures
from r1mega.rewards.reward import ModelReward, Scorer, ToRead, Unread
from r1mega.rewards.reward_model import LearntReward
from r1mega.rollout.collect import Rollout
from r1mega.runtime import files, heartbeat
from r1mega.runtime.progress import Stopwatch
from r1mega.samples import Document, Group
from r1mega.stages.rank_zero import usable
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.policy import Policy
from r1mega.trainer.scoring import scored_by_models

Scorers = Mapping[str, Scorer]
"""By the names of their rewards in config.rewards."""
Load = Callable[..., Scorer]
"""Loads a reward model, as `RewardModel` does."""


def refuse_without_scorer(config: GRPO, given: Scorers) -> None:
    """Raises ConfigError before anything is started, where the first rollout would be lost on a missing scorer, or on
    a reward model's tokenizer that cannot put a question and its answer."""
    models = {n: r for n, r in config.rewards.items() if isinstance(r, ModelReward) and n not in given}
    if missing := [n for n, r in models.items() if not isinstance(r, LearntReward)]:
        raise ConfigError(
            f"rewards: a model gives {', '.join(missing)}, and this run has no scorer for it: take it out of "
            "[rewards], or hand grpo.run its scorer"
        )
    for path in {r.path for r in models.values() if isinstance(r, LearntReward)}:
        refuse_unreadable(load_tokenizer(path))


def scorers_of(config: GRPO, mesh: Mesh, given: Scorers, load: Load) -> Scorers:
    """The scorers of all rewards that a model gives: those that are given, and one for each reward model's folder."""
    loaded: dict[Path, Scorer] = {}
    scorers = dict(given)
    for name, reward in config.rewards.items():
        if isinstance(reward, LearntReward):
            folder = reward.path.resolve()
            if name not in given and folder not in loaded:
                batch = config.batch
                loaded[folder] = load(folder, mesh, batch.chunk_tokens, batch.chunks_per_micro_batch)
            scorers[name] = InWords(given.get(name) or loaded[folder], reward.path)
    return scorers


class InWords:
    """A reward model with the tokenizer and the chat template in which it reads (`rewards.reward.TextScorer`)."""

    def __init__(self, model: Scorer, folder: Path) -> None:
        """Raises as `load_tokenizer` and `read_model` do of its folder."""
        self._model, self._tokenizer = model, load_tokenizer(folder)
        self._positions = read_model(folder).max_positions

    def documents(self, said: Sequence[ToRead]) -> list[Document | Unread]:
        """A text of each, scored at its end; too long is one of more tokens than the model has positions."""
        read = readings(self._tokenizer, [(one.question, one.text) for one in said])
        return [Document.of_texts([ids]) if len(ids) <= self._positions else self._too_long(len(ids)) for ids in read]

    def score(self, documents: Sequence[Document]) -> Sequence[float]:
        return self._model.score(documents)

    def _too_long(self, tokens: int) -> Unread:
        return Unread("too_long", f"{tokens} tokens to read, and the model has {self._positions} positions")


class Scoring:
    """The reward models' turn of a run."""

    def __init__(
        self, config: GRPO, mesh: Mesh, policy: Policy, failures: Failures, samples: Path, scorers: Scorers
    ) -> None:
        """
        Args:
            samples: where people read the answers of a rollout, step_N.jsonl.
        """
        self._config, self._mesh, self._policy, self._scorers = config, mesh, policy, scorers
        self._failures, self._samples = failures, samples

    def turn(self, rollout: Rollout, step: int) -> tuple[Sequence[Group], dict[str, float], dict[str, float]]:
        """On rank 0 the rollout's groups with what models say of them, the figures that this changes, and
        {"reward_models": its seconds}; nothing of it where no model is asked at `step`. Every rank calls this.

        Raises RolloutError where this leaves too little to learn from, RewardError where too many scores have failed.
        """
        config, rubric = self._config, self._config.rubric()
        if not rubric.models(step):
            return rollout.groups, {}, {}
        heartbeat.phase("rewards", step)
        with Stopwatch() as watch, aside(self._policy, self._mesh):
            groups, counts = scored_by_models(
                self._mesh,
                rollout.groups if self._mesh.first else None,
                rubric,
                self._scorers,
                step=step,
                chunk_tokens=config.batch.chunk_tokens,
            )
        seconds = {"reward_models": watch.seconds}
        if not groups:
            return (), {}, seconds
        self._write(step, groups)
        self._failures.see_again(step, groups)
        least = config.rollout.num_minibatches
        if (left := len(usable(config, groups))) < least:
            raise RolloutError(
                f"step {step}: with the models' scores {left} answers are left to learn from, fewer than the {least} "
                "mini-batches: their scores are alike or failed; samples/ holds the answers"
            )
        # Groups that the scores have made constant, or answers that failed, are not learnt from.
        return groups, {**reward_metrics(groups), **counts, "rollout/learnt_from": float(left)}, seconds

    def _write(self, step: int, groups: Sequence[Group]) -> None:
        """Put the models' scores into the file that people read; before the rollout in it may stand others, of which
        too little could be learnt."""
        file = self._samples / f"step_{step}.jsonl"
        rows = transcripts(step, groups)
        written = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        before = [json.loads(line) for line in written[: -len(rows)]]
        files.write_jsonl(file, [*before, *rows])


@contextmanager
def aside(policy: Policy, mesh: Mesh) -> Iterator[None]:
    """With the device's memory free of the policy, which on a GPU would leave no room for another model."""
    if mesh.device.type != "cuda":
        yield
        return
    policy.offload()
    try:
        yield
    finally:
        policy.onload()
