"""What a run watches: reward hacking (`diagnostics.hacking`), and engine against trainer (`diagnostics.mismatch`)."""

from typing import Annotated

from pydantic import Field

from r1mega.config.section import OnResume, Section


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


class Mismatch(Section):
    """How far engine and trainer may be apart on the log-probabilities of sampled tokens; past it the run stops.

    Where both compute in fp32, every token is bounded (`max_abs`). Where either rounds to bf16 or fp8, the largest of
    millions of differences says nothing (a mixture of experts chooses others wherever two lead closely), so what a
    rollout comes to is bounded, by `mean` and `kl`; the rest is logged: the 99.9th percentile, the share of tokens
    that are more than 1 nat apart, and the trend of the KL.
    """

    max_abs: float = Field(default=1e-4, gt=0)
    """In fp32: the most that |logp(vLLM) - logp(Megatron)| of a token may be, nats."""
    tie_margin: float = Field(default=5e-6, ge=0)
    """In fp32: lead, in the router's scores, below which its choice of experts counts as a tie that rounding may
    decide either way; an answer after a tie is exempt from the bound. 0 exempts none."""
    mean: Annotated[float | None, OnResume.FREE] = Field(default=None, gt=0)
    """In bf16 or fp8: the most that the mean of |logp(vLLM) - logp(Megatron)| over a rollout's tokens may be, nats.
    None: 0.01 of dense models, 0.03 of mixtures of experts, five and three times what engines with head and router
    in fp32 should leave. NeMo-RL asks for a look where the mean of exp|difference| passes 1.05, which is about
    0.05 here."""
    kl: Annotated[float | None, OnResume.FREE] = Field(default=None, gt=0)
    """In bf16 or fp8: the most that KL(engine || trainer) may be, nats a token, estimated by k3 on a rollout's
    tokens. None: 0.001 of dense models, 0.01 of mixtures of experts. Published (arXiv 2510.11370): 0.00064 of
    Qwen3-8B, 0.0015 of Qwen3-30B-A3B."""
    window: Annotated[int, OnResume.FREE] = Field(default=20, ge=12, le=200)
    """In bf16 or fp8: rollouts over which the KL's trend is tested; a rise is warned of, and stops nothing."""
    alpha: Annotated[float, OnResume.FREE] = Field(default=0.05, gt=0, le=0.5)
    """Chance of such a warning in a whole run whose KL does not rise, however often it is looked at."""
