"""Rewards that a model gives: one forward pass over all ranks, between rollout and update.

rank 0: groups with the rules' verdicts
    -> what the model reads of each answer, divided over the data-parallel ranks by chunks
    -> every rank scores its share (`rewards.reward.Scorer`)
    -> rank 0: the groups, the scores of all models in their verdicts, and what an answer without one is worth
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from r1mega.data.packing import spread
from r1mega.rewards.reward import ModelReward, Score, Scorer, TextScorer, ToRead, Unread, failed, scored
from r1mega.rewards.rubric import Place, Rubric
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
) -> tuple[list[Group] | None, dict[str, float]]:
    """The groups with all verdicts complete, and how many answers had no score, `rewards/NAME/OUTCOME`.

    Every rank calls this; rank 0 gives the groups and has them back. Without a model among the rewards asked at
    `step` nothing is sent and nothing is waited for.

    Args:
        groups: with the rules' verdicts (`Rubric.judge`); None on every other rank.
        scorers: of each model in the rubric, by its reward's name.
        step: optimiser steps taken.
        chunk_tokens: as in `scatter`.
    """
    judged = None if groups is None else list(groups)
    found: dict[str, dict[Place, Score | Unread]] = {}
    for name, model in rubric.models(step).items():
        unread = _read(scorers[name], rubric.unread(name, judged, step)) if judged is not None else {}
        documents = {place: one for place, one in unread.items() if isinstance(one, Document)}
        found[name] = {place: one for place, one in unread.items() if not isinstance(one, Document)}
        # The scorer is a collective: all ranks call it or none does.
        longest = mesh.from_first(lambda read=documents: max((len(d.token_ids) for d in read.values()), default=0))
        if longest:
            # An answer may have more tokens to this model than it has to the policy.
            values = _values(mesh, list(documents.values()), scorers[name], max(chunk_tokens, longest))
            found[name] |= {p: _score(name, model, value) for p, value in zip(documents, values, strict=False)}
    if judged is None:
        return None, {}
    models = rubric.models(step)
    counts = {key: number for name, of in found.items() for key, number in _counts(name, models[name], of).items()}
    return (rubric.read(judged, found, step) if found else judged), counts


def _read(
    scorer: Scorer, unread: Mapping[Place, Document | ToRead | Score | Unread]
) -> dict[Place, Document | Score | Unread]:
    """The same, as documents what a scorer reads in words."""
    said = {place: one for place, one in unread.items() if isinstance(one, ToRead)}
    known = {place: one for place, one in unread.items() if not isinstance(one, ToRead)}
    if not said:
        return known
    if not isinstance(scorer, TextScorer):
        raise TypeError(f"{type(scorer).__name__} reads documents, and is given words: it needs a tokenizer")
    found = {**known, **dict(zip(said, scorer.documents(list(said.values())), strict=True))}
    return {place: found[place] for place in unread}


def _values(mesh: Mesh, documents: Sequence[Document], scorer: Scorer, chunk: int) -> list[float]:
    """On rank 0 the model's value of every document, in order; on the others nothing of use."""
    mine = scatter_documents(mesh, documents if mesh.first else None, chunk)
    by_rank = mesh.gather_over_data([float(value) for value in scorer.score(mine)])
    if mesh.world_size == 1:
        return by_rank[0]
    # As they were dealt.
    places = spread([len(d.token_ids) for d in documents], chunk, len(by_rank)) if mesh.first else []
    found = {i: v for dealt, values in zip(places, by_rank, strict=False) for i, v in zip(dealt, values, strict=True)}
    return [found[i] for i in range(len(documents))]


def _score(name: str, model: ModelReward, raw: float) -> Score:
    value = model.value(raw)
    return scored(value) if math.isfinite(value) else failed(f"the model of reward {name} gives {raw}")


def _counts(name: str, model: ModelReward, found: Mapping[Place, Score | Unread]) -> dict[str, float]:
    outcomes = Counter(one.outcome if isinstance(one, Unread) else one.status for one in found.values())
    return {f"rewards/{name}/{outcome}": float(outcomes[outcome]) for outcome in (*model.outcomes, "failed")}
