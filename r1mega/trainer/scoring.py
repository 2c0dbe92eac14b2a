"""Rewards that a model gives: one forward pass over all ranks, between rollout and update.

rank 0: groups with the rules' verdicts
    -> what the model reads of each answer, divided over the data-parallel ranks by chunks
    -> every rank scores its share (`rewards.reward.Scorer`)
    -> rank 0: the groups, the scores in their verdicts
"""

import math
from collections.abc import Mapping, Sequence

from r1mega.data.packing import spread
from r1mega.rewards.reward import Score, Scorer, failed, scored
from r1mega.rewards.rubric import Rubric
from r1mega.samples import Document, Group
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.scatter import scatter_documents


def scored_by_models(
    mesh: Mesh,
    groups: Sequence[Group] | None,
    rubric: Rubric,
    scorers: Mapping[str, Scorer],
    *,
    step: int,
    chunk_tokens: int,
) -> list[Group] | None:
    """The groups with all verdicts complete. Every rank calls this; rank 0 gives the groups and has them back.

    Without a model among the rewards asked at `step` nothing is sent and nothing is waited for.

    Args:
        groups: with the rules' verdicts (`Rubric.judge`); None on every other rank.
        scorers: of each model in the rubric, by its reward's name.
        step: optimiser steps taken.
        chunk_tokens: as in `scatter`.
    """
    judged = None if groups is None else list(groups)
    for name in rubric.models(step):
        unread = rubric.unread(name, judged, step) if judged is not None else {}
        scores = {place: found for place, found in unread.items() if isinstance(found, Score)}
        documents = {place: found for place, found in unread.items() if isinstance(found, Document)}
        # The scorer is a collective: all ranks call it or none does.
        if mesh.from_first(lambda documents=documents: bool(documents)):
            values = _values(mesh, list(documents.values()), scorers[name], chunk_tokens)
            scores |= {place: _score(name, value) for place, value in zip(documents, values, strict=False)}
        judged = None if judged is None else rubric.read(name, judged, scores, step)
    return judged


def _values(mesh: Mesh, documents: Sequence[Document], scorer: Scorer, chunk_tokens: int) -> list[float]:
    """On rank 0 the model's value of every document, in order; on the others nothing of use."""
    mine = scatter_documents(mesh, documents if mesh.first else None, chunk_tokens)
    by_rank = mesh.gather_over_data([float(value) for value in scorer.score(mine)])
    if mesh.world_size == 1:
        return by_rank[0]
    # As they were dealt.
    places = spread([len(d.token_ids) for d in documents], chunk_tokens, len(by_rank)) if mesh.first else []
    found = {i: v for dealt, values in zip(places, by_rank, strict=False) for i, v in zip(dealt, values, strict=True)}
    return [found[i] for i in range(len(documents))]


def _score(name: str, value: float) -> Score:
    return scored(value) if math.isfinite(value) else failed(f"the model of reward {name} gives {value}")
