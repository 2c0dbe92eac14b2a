"""On every rank: answers scored by two toy models at once, one of which reads more than a chunk holds.

`of(FOLDER, AXIS)`, with two ranks on that axis of the mesh: rank 0's verdicts go to FOLDER/AXIS.json, and the number
of documents that each rank's first model has read to FOLDER/AXIS.RANK.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from r1mega.buffers import Float32s, Int32s
from r1mega.config.cluster import TrainerLayout
from r1mega.rewards.format import Format
from r1mega.rewards.reward import ModelReward, Score, Unread, scored
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Completion, Document, FinishReason, Group, Prompt
from r1mega.trainer import mesh as meshes


class Taste(ModelReward):
    """By default, the whole answer is read."""

    kind: Literal["taste"] = "taste"


class Sums:
    """A model that gives the sum of a document's targets, whatever else is scored with it."""

    def __init__(self) -> None:
        self.num_read: list[int] = []

    def score(self, documents: Sequence[Document]) -> list[float]:
        self.num_read.append(len(documents))
        return [float(sum(int(i) for i in d.token_ids[d.learn_from :])) for d in documents]


class Thrice(ModelReward):
    """What is read is scored at its end, and longer than the answer; that of an even first token is none."""

    kind: Literal["thrice"] = "thrice"
    outcomes = ("even",)

    def documents(self, asked: Sequence[tuple[Prompt, Completion]]) -> list[Document | Score | Unread]:
        return [
            Document.of_texts([a.token_ids + a.token_ids + a.token_ids]) if a.token_ids[0] % 2 else Unread("even", "")
            for _, a in asked
        ]

    def unread(self, why: Unread, values: Sequence[float]) -> Score:
        return scored(min(values, default=0.0))


class Ends:
    """A model that gives the sum of a text's tokens at its end."""

    def score(self, documents: Sequence[Document]) -> list[float]:
        assert all(d.scored and d.num_targets == 1 and not d.fields for d in documents)
        return [float(sum(int(i) for i in d.token_ids)) for d in documents]


def groups(rubric: Rubric, num: int) -> list[Group]:
    """`num` groups of three answers: of 1 to 19 tokens, all of them the answer's place in the rollout."""
    found = []
    for i in range(num):
        prompt = Prompt(str(i), "chain_sum", "4 - 1 =", "3", Int32s([1, 2, 3]))
        completions = tuple(
            Completion(
                str(i), j, Int32s(tokens), Float32s.repeated(-0.5, len(tokens)), "bare", FinishReason.STOP, 0, j
            )
            for j in range(3)
            if (tokens := (3 * i + j,) * (1 + 7 * (3 * i + j) % 19))
        )
        found.append(Group(prompt, completions, rubric.judge(prompt, completions, 0)))
    return found


def of(folder: Path, axis: str) -> None:
    from r1mega.trainer.scoring import scored_by_models

    mesh = meshes.start(TrainerLayout.model_validate({"threads": 1, axis: 2}), device="cpu", seed=0)
    taste, thrice = Taste.model_validate({"weight": 0.5}), Thrice.model_validate({"weight": 100})
    rewards = {"format": Format(), "taste": taste, "thrice": thrice}
    rubric, model, told = Rubric(rewards, "zero"), Sums(), []
    for num in (5, 0, 1):  # the second has nothing to read, and of the third one rank has little
        asked = groups(rubric, num) if mesh.first else None
        scorers = {"taste": model, "thrice": Ends()}
        judged, counts = scored_by_models(mesh, asked, rubric, scorers, step=0, chunk_tokens=32)
        assert (judged is None) == (not mesh.first) == (not counts)
        evens = {"rewards/taste/failed": 0, "rewards/thrice/failed": 0, "rewards/thrice/even": (3 * num + 1) // 2}
        assert not mesh.first or counts == evens
        told.append([[v.reward for v in group.verdicts] for group in judged or []])
    (folder / f"{axis}.{dist.get_rank()}.json").write_text(json.dumps(model.num_read))
    if mesh.first:
        (folder / f"{axis}.json").write_text(json.dumps(told))
