"""What a run watches of reward hacking (`diagnostics.hacking`)."""

from pydantic import Field

from r1mega.config.section import Section


class Hacking(Section):
    """Whether a trained reward and held-out truth part. It changes nothing of the training.

    What is compared are means over a rollout's answers. The chance of any warning in a run in which nothing parts is
    at most `alpha`, however often it is looked at; `diagnostics.trend` says under which assumption.
    """

    trained: tuple[str, ...] = ()
    """Names of rewards that are learnt from and may be hacked; none named: each that a model gives."""
    truths: tuple[str, ...] = ()
    """Names of rewards that tell what the trained ones stand for: of weight 0 (a rule, a second reward model of
    another seed), or rules. None named: each of weight 0."""
    window: int = Field(default=20, ge=12, le=200)
    """Rollouts over which trends are tested; what is slower than a few windows is not seen."""
    alpha: float = Field(default=0.05, gt=0, le=0.5)
    """Chance of a false alarm in the whole run, all rewards, truths and looks together."""
    patience: int = Field(default=2, gt=0)
    """Rollouts in a row at which trends must part before it is said."""
    min_change: float = Field(default=0.25, ge=0)
    """Least rise of the reward, and fall of the truth, over the window: in standard deviations of single answers."""
    length_growth: float = Field(default=0.5, ge=0)
    """Growth of answers over the window that is suspect while no truth rises: a share of their length."""
    repetition_growth: float = Field(default=0.1, ge=0, le=1)
    """The same of the share of repeated 4-grams (`diagnostics.repetition`), in absolute terms."""
