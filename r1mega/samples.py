"""What crosses rooms: prompts, completions, verdicts, groups and training samples. Frozen, torch-free.

    Prompt -> Completion (G of each) -> Verdict -> Group -> Sample -> Document

What there is one of per token is a buffer (`r1mega.buffers`): a rollout of the report is 8,192 answers of up to
32,768 tokens, on one rank. A sample takes over its prompt's and its completion's buffers, it does not copy them.

`logp` fields are natural-log probabilities of the sampled tokens under softmax(logits / T), one per token.
Behaviour logprobs (what the engine sampled with) and old logprobs (what the policy had when the rollout was
scored) are separate fields: the first comes from vLLM, the second from Megatron.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from r1mega.buffers import Float32s, Int32s


@dataclass(frozen=True)
class Prompt:
    """One question as the engine sees it, with what its verifier needs to judge an answer.

    >>> asked = Prompt("chain_sum/17", "chain_sum", "1 + 1", "2", Int32s([0, 81, 93, 14, 2]), prefill="<think>")
    """

    id: str
    """Unique in the run, stable over restarts."""
    verifier: str
    """Name of what judges its answers (`rewards.verifiers`); of a made question, the task it is of."""
    question: str
    truth: str
    """The reference answer."""
    token_ids: Int32s
    """[P] int32: template and question, tokenised; ends where the model starts to answer."""
    prefill: str = ""
    """Text of the answer that the template already wrote (such as `<think>`); judged with the completion."""
    entry: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The source's own record, passed to its verifier untouched."""
    domain: str = "math"
    """`data.question.Domain`, by which rewards are chosen."""
    sent: str = ""
    """What an endpoint is sent, whose tokenizer is not known here: a text, or messages as JSON. `token_ids` is then
    empty."""
    target_language: str = ""
    """ISO 639-1 code of the language that its answers should be in; "" where that is not said."""
    source: str = ""
    """Label of the table of [[questions]] that it is of."""


class FinishReason(StrEnum):
    STOP = "stop"
    """The model ended its answer."""
    STOP_STRING = "stop_string"
    """A stop string of the settings ended it: whole, though the model wrote no end token."""
    LENGTH = "length"
    """The answer was cut at the token limit: truncated."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer of T tokens.

    An answer that ended with a stop string has every token through the one that completes it, which may go past the
    string; its text ends with the string.

    >>> ids, logp = Int32s([64, 7, 1]), Float32s([-0.5, -0.03125, -0.25])
    >>> answer = Completion("chain_sum/17", 0, ids, logp, "2", FinishReason.STOP, weight_version=40, seed=12)
    """

    prompt_id: str
    index: int
    """Which of the G answers to its prompt."""
    token_ids: Int32s
    """[T] int32, the end token included."""
    logp: Float32s
    """[T] float32: behaviour log-probabilities from the engine, at the sampling temperature."""
    text: str
    """Of `token_ids` without the end token."""
    finish_reason: FinishReason
    weight_version: int
    """The version of the weights that sampled it."""
    seed: int
    counted: int | None = None
    """T as an endpoint counts it, which sends neither tokens nor log-probabilities; None where they are here."""

    @property
    def truncated(self) -> bool:
        return self.finish_reason is FinishReason.LENGTH

    @property
    def num_tokens(self) -> int:
        """T, the end token included."""
        return len(self.token_ids) if self.counted is None else self.counted


class VerdictStatus(StrEnum):
    SCORED = "scored"
    UNSCORABLE = "unscorable"
    """The rule cannot judge this answer (no ground truth, unsupported form): it does not enter the baseline."""
    FAILED = "failed"
    """The judge broke (time-out, sandbox, endpoint): never a zero."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of judging one completion. `reward` is meaningful only when `status` is scored.

    >>> verdict = Verdict(VerdictStatus.SCORED, reward=1.0, parts={"accuracy": 1.0, "format": 0.0})
    """

    status: VerdictStatus
    reward: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Each reward part before weighting, e.g. {"accuracy": 1.0, "format": 0.0}."""
    reason: str = ""
    unmeasured: tuple[str, ...] = ()
    """Rewards of weight 0 that were asked and have no part, because they failed or cannot judge it."""

    @property
    def scored(self) -> bool:
        return self.status is VerdictStatus.SCORED


@dataclass(frozen=True)
class Group:
    """The G completions of one prompt and their verdicts, index by index (report Eq. 3).

    >>> asked = Prompt("chain_sum/17", "chain_sum", "1 + 1", "2", Int32s([0, 81, 93, 14, 2]))
    >>> ids, logp = Int32s([7, 1]), Float32s([-0.03125, -0.25])
    >>> right, wrong = (
    ...     Completion(asked.id, i, ids, logp, "23"[i], FinishReason.STOP, 40, seed=12 + i) for i in (0, 1)
    ... )
    >>> verdicts = Verdict(VerdictStatus.SCORED, 1.0), Verdict(VerdictStatus.SCORED, 0.0)
    >>> group = Group(asked, completions=(right, wrong), verdicts=verdicts)
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]


NO_LOGP = Float32s()
"""What a sample has before log-probabilities are attached."""


@dataclass(frozen=True)
class Sample:
    """One prompt of P tokens and completion of T tokens as the trainer learns from it.

    >>> sampled = Float32s([-0.5, -0.03125, -0.25])
    >>> sample = Sample(Int32s([0, 81, 93, 14, 2]), Int32s([64, 7, 1]), adv=1.5, behaviour_logp=sampled)
    >>> len(sample.completion_ids) == len(sample.behaviour_logp), len(sample.old_logp), sample.weight
    (True, 0, 0.0)
    """

    prompt_ids: Int32s
    """[P] int32."""
    completion_ids: Int32s
    """[T] int32."""
    adv: float
    """Group-relative advantage A_i (Eq. 3), the same for every token of the completion."""
    behaviour_logp: Float32s
    """[T] float32, from the engine."""
    old_logp: Float32s = NO_LOGP
    """[T] float32, under the policy that the rollout was scored with (Megatron); empty until attached."""
    ref_logp: Float32s = NO_LOGP
    """[T] float32, under the reference policy; empty where no KL is asked for."""
    weight: float = 0.0
    """Of each of its tokens in the loss: one over the denominator of its whole mini-batch; 0 until attached."""


@dataclass(frozen=True)
class Document:
    """A token sequence as the trainer sees it, whatever stage made it; documents never attend to each other.

    Tokens from `learn_from` on are targets (each predicted from all tokens before it), or those of `spans` where
    there are any; `fields` holds one value per target, in the targets' order, such as {"weight": ..., "adv": ...,
    "old_logp": ...}, handed to the loss next to the logprobs.

    >>> answer = Document(Int32s([0, 81, 2, 64, 1]), learn_from=3, fields={"weight": Float32s([0.5, 0.5])})
    >>> answer.target_spans, answer.num_targets
    (((3, 5),), 2)

    For a model of scores (`families.score_head`) it is `scored`: one text or several, whose ends are the targets. The
    two answers of a pair are one document, so that no packing and no layout parts them.

    >>> pair = Document.of_texts([Int32s([0, 81, 1]), Int32s([0, 64, 7, 1])], {"margin": [2.0, 2.0]})
    >>> pair.texts, pair.num_targets
    (((0, 3), (3, 7)), 2)
    """

    token_ids: Int32s
    """[S] int32."""
    learn_from: int = 1
    fields: Mapping[str, Float32s] = field(default_factory=dict[str, Float32s])
    """[num_targets] float32 each."""
    spans: tuple[tuple[int, int], ...] = ()
    """Ranges (start, stop) of targets, ascending and disjoint: the assistant's turns of a conversation."""
    starts: tuple[int, ...] = ()
    """Of a scored document: where in `token_ids` its second and further texts begin, ascending. A text attends to
    nothing before it, and its positions count from 0."""
    scored: bool = False
    """Whether its targets are the last tokens of its texts, at each of which one score is read, and not tokens that
    are to be predicted; `learn_from` and `spans` then say nothing."""

    @classmethod
    def of_texts(
        cls, texts: Sequence[Int32s], fields: Mapping[str, Sequence[float]] = MappingProxyType({})
    ) -> "Document":
        """A scored document of the texts, in their order.

        Args:
            texts: [S_i] int32 each, none of them empty.
            fields: of each name one number a text.
        """
        token_ids, starts = Int32s(), list[int]()
        for text in texts:
            starts.append(len(token_ids))
            token_ids = token_ids + text
        given = {name: Float32s(values) for name, values in fields.items()}
        return cls(token_ids, fields=given, starts=tuple(starts[1:]), scored=True)

    @property
    def texts(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each text in `token_ids`; one unless there are `starts`."""
        return tuple(pairwise((0, *self.starts, len(self.token_ids))))

    @property
    def target_spans(self) -> tuple[tuple[int, int], ...]:
        """The ranges of targets, whichever way they were given."""
        if self.scored:
            return tuple((stop - 1, stop) for _, stop in self.texts)
        return self.spans or ((self.learn_from, len(self.token_ids)),)

    @property
    def num_targets(self) -> int:
        return sum(stop - start for start, stop in self.target_spans)


@dataclass(frozen=True)
class LayerLoad:
    """What one router did with the tokens of an optimiser step, padding left out."""

    load: tuple[int, ...]
    """Choices of each expert; without dropped tokens they sum to tokens x top_k."""
    tokens: int
    entropy: float
    """Of a token's affinities to the experts, normalised to sum to 1; mean over tokens, nats, ln E at most."""
    aux_loss: float
    """V3 report Eq. 17 over the step's tokens instead of a sequence's, without alpha; 1 at an even load. It is
    measured, never trained."""
    bias: float
    """Largest |expert bias| after the step."""
    bias_change: float
    """Largest |change of the expert bias| in the step."""


@dataclass(frozen=True)
class ExpertLoad:
    """What all routers that ran did in one optimiser step."""

    top_k: int
    layers: Mapping[str, LayerLoad]
    """By layer, as Hugging Face counts them ("3"), and "mtp 0" for the first MTP layer."""
