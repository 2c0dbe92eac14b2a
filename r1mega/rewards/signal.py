"""What false negatives of the verifiers cost a rollout: the share of the gradient's signal that is lost."""

from collections.abc import Sequence

from r1mega.diagnostics.false_negatives import signal_lost
from r1mega.rewards.accuracy import Accuracy
from r1mega.rewards.rubric import Rubric
from r1mega.rewards.verifiers import VERIFIERS
from r1mega.samples import Group


def signal_metrics(groups: Sequence[Group], rubric: Rubric, assumed: float, *, divided: bool) -> dict[str, float]:
    """`signal_lost/assumed` at an assumed rate of false negatives, and `signal_lost/published` over the questions
    whose verifier has published one (`Verifier.false_negatives`). Shares in [0, 1], by the accuracy rewards' parts;
    absent where no question has both right and wrong answers.

    Args:
        assumed: share of right answers that are taken for wrong.
        divided: whether advantages are divided by the group's standard deviation.
    """
    names = [name for name, reward in rubric.rewards.items() if isinstance(reward, Accuracy)]
    at: dict[str, list[tuple[Sequence[bool], float]]] = {"assumed": [], "published": []}
    for group in groups:
        published = getattr(VERIFIERS.get(group.prompt.verifier), "false_negatives", None)
        for name in names:
            judged = [v.parts[name] >= 1.0 for v in group.verdicts if v.scored and name in v.parts]
            at["assumed"].append((judged, assumed))
            if published is not None:
                at["published"].append((judged, published))
    lost = {f"signal_lost/{rate}": signal_lost(found, divided=divided) for rate, found in at.items()}
    return {name: value for name, value in lost.items() if value is not None}
