"""A rollout's samples scored by the trainer: logprobs of the old policy and the reference, held against the engine's.

Every rank calls these with its share of the samples.
"""

from dataclasses import replace

from r1mega.buffers import Float32s
from r1mega.diagnostics.mismatch import answers_past, measure, mismatch
from r1mega.diagnostics.rounded_mismatch import measure_spread, spread
from r1mega.runtime import heartbeat
from r1mega.samples import NO_LOGP, Document, Sample
from r1mega.trainer.policy import Policy
from r1mega.trainer.scatter import MiniBatches


def attach_logprobs(policy: Policy, minibatches: MiniBatches, *, temperature: float, reference: bool) -> MiniBatches:
    """The samples with `old_logp` and, where there is a `reference`, `ref_logp`, of softmax(logits / temperature).

    Each is [len(completion_ids)] float32.
    """
    heartbeat.phase("logprobs")
    bare = [_document(s) for m in minibatches for s in m]
    old = [Float32s(o.numpy()) for o in policy.logprobs(bare, temperature=temperature)]
    ref = [NO_LOGP] * len(bare)
    if reference:
        ref = [Float32s(r.numpy()) for r in policy.logprobs(bare, temperature=temperature, reference=True)]
    both = iter(zip(old, ref, strict=True))
    return [[_with_logprobs(s, *next(both)) for s in m] for m in minibatches]


def engine_mismatch(
    policy: Policy, minibatches: MiniBatches, *, max_abs: float, tie_margin: float
) -> dict[str, float]:
    """Engine against trainer on every sampled token of all ranks (diagnostics/mismatch.py).

    Args:
        minibatches: with logprobs attached.
        max_abs, tie_margin: see `mismatch`.

    Raises:
        MismatchError: they are further apart than `max_abs`, and no tie of the router explains it.
    """
    samples, mesh = [s for m in minibatches for s in m], policy.mesh
    past = answers_past(samples, max_abs)
    margins: list[Float32s] = []
    if mesh.max_over_data(len(past)):  # on any rank: scoring is a collective
        margins = [Float32s(m.numpy()) for m in policy.routing_margins([_document(s) for s in past])]
    parts = mesh.gather_over_data(measure(samples, margins, max_abs=max_abs))
    return mismatch(parts, max_abs=max_abs, tie_margin=tie_margin)


def engine_spread(policy: Policy, minibatches: MiniBatches) -> dict[str, float]:
    """Engine against trainer where either rounds below fp32, on every sampled token of all ranks; arguments and
    collective as of `engine_mismatch`, figures and errors as of `spread` (diagnostics/rounded_mismatch.py)."""
    return spread(policy.mesh.gather_over_data(measure_spread([s for m in minibatches for s in m])))


def _document(sample: Sample) -> Document:
    """A sample whose completion is to be scored."""
    return Document(sample.prompt_ids + sample.completion_ids, len(sample.prompt_ids))


def _with_logprobs(sample: Sample, old: Float32s, ref: Float32s) -> Sample:
    return replace(sample, old_logp=old, ref_logp=ref)
