"""Micro-batches through Megatron's pipeline schedule: losses and gradients, or log-probabilities or scores alone.

Shapes: T targets of a micro-batch.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor

from r1mega.runtime import heartbeat
from r1mega.trainer.batch import MicroBatch, Targets
from r1mega.trainer.context import gathered
from r1mega.trainer.logprob import target_logprobs
from r1mega.trainer.mesh import Mesh

LossFn = Callable[[Tensor, Mapping[str, Tensor], Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(logp [T] fp32, fields each [T], doc [T]) -> (scalar loss, metrics). Weights inside `fields` are already
normalised over the whole mini-batch: losses and metrics of micro-batches are summed, never averaged. A model of
scores gives the score of each text in the place of `logp`; the texts of a document stand behind each other."""

TRAINING_METRICS = {
    "loss": "the loss function's value, without the MTP layers' part",
    "entropy": "of softmax(logits / temperature) at the targets, in nats: their mean with the loss's field `weight`, "
    "where it has one; of language models",
    "mtp_loss": "mean cross-entropy of the MTP layers in nats, where they ran",
}
"""What `train` measures, whatever the loss."""


def train(
    chunks: Sequence[Any],
    mesh: Mesh,
    batches: Sequence[MicroBatch],
    loss: LossFn,
    *,
    temperature: float,
    mtp_loss_weight: float,
) -> dict[str, float]:
    """Accumulate the gradient of a mini-batch's loss into the model's buffers.

    Args:
        chunks: this rank's parts of the model, in the order of the pipeline's stages.
        batches: where there are several chunks, a multiple of the number of pipeline ranks.

    Returns:
        The loss function's metrics and `TRAINING_METRICS`, each summed over micro-batches and data-parallel ranks.
    """
    network = chunks[-1].module
    # The denominators of the mini-batch, one a depth.
    depths = range(len(batches[0].mtp_targets))
    counts = torch.tensor([sum(b.mtp_targets[k].total for b in batches) for k in depths])
    totals: list[int] = mesh.sum_over_data(counts).clamp(min=1).tolist() if len(counts) else []

    def objective(batch: MicroBatch, states: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        if network.head == "score":
            scores = _scores(network, states[0], batch.targets)
            value, metrics = loss(scores, batch.fields, batch.doc) if batch.documents else (scores.sum(), {})
            return value, {"loss": value.detach(), **metrics}
        logp, entropy = _logprobs_and_entropy(network, states[0], batch.targets, network.head_weight, temperature)
        # A micro-batch that only keeps this rank in step with the others has no targets, and nothing to say.
        value, metrics = loss(logp, batch.fields, batch.doc) if batch.documents else (logp.sum(), {})
        metrics = {"loss": value.detach(), **metrics}
        if "weight" in batch.fields:
            metrics["entropy"] = (batch.fields["weight"] * entropy).sum()
        if states[1:]:
            weight = network.head_weight
            weight = weight if network.mtp_mode == "joint" else weight.detach()
            # The MTP head learns the distribution itself, hence no temperature.
            parts = [
                -_logprobs(network, state, targets, weight, 1.0).sum() / total
                for state, targets, total in zip(states[1:], batch.mtp_targets, totals, strict=True)
            ]
            mtp = torch.stack(parts).mean()
            value = value + mtp_loss_weight * mtp
            metrics["mtp_loss"] = mtp.detach()
        return value, metrics

    def step(batches: Iterator[MicroBatch], model: Any) -> tuple[Any, Any]:
        batch = next(batches)
        states = _forward(model, batch, run_mtp=True)
        return states, lambda states: _scaled(objective(batch, states))

    return _sum(_schedule(chunks, batches, step, forward_only=False), mesh)


@torch.no_grad()
def score(chunks: Sequence[Any], mesh: Mesh, batches: Sequence[MicroBatch], *, temperature: float) -> list[Tensor]:
    """Log-probabilities [T] fp32 of each micro-batch's targets, on every rank. Changes no state of the model.

    Args:
        chunks: as in `train`, or without Megatron's wrapper.
        temperature: as in `Policy.logprobs`; a model of scores gives its scores whatever it is.
    """
    network = getattr(chunks[-1], "module", chunks[-1])

    def step(batches: Iterator[MicroBatch], model: Any) -> tuple[Any, Any]:
        batch = next(batches)
        states = _forward(model, batch, run_mtp=False)
        hidden = states[0] if isinstance(states, tuple) else states  # what an earlier stage sends on

        def collect(hidden: Tensor, non_loss_data: bool = True) -> Tensor:
            if network.head == "score":
                return _scores(network, hidden, batch.targets)
            return _logprobs(network, hidden, batch.targets, network.head_weight, temperature)

        return hidden, collect

    scored = _schedule(chunks, batches, step, forward_only=True, collect_non_loss_data=True)
    return mesh.from_last_stage([logp.cpu() for logp in scored])


def _forward(model: Any, batch: MicroBatch, *, run_mtp: bool) -> Any:
    heartbeat.tick()
    ahead = batch.ahead if run_mtp else ()
    return model(batch.input_ids, batch.position_ids, batch.segments, batch.padding_mask, ahead=ahead)


def _logprobs(network: Any, hidden: Tensor, targets: Targets, weight: Tensor, temperature: float) -> Tensor:
    """[T] fp32, with a gradient."""
    rows, options = _target_rows(network, hidden, targets, temperature)
    return _of_all_rows(target_logprobs(rows, weight, targets.ids, **options), targets)


def _logprobs_and_entropy(
    network: Any, hidden: Tensor, targets: Targets, weight: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """[T] fp32 each: log-probabilities with a gradient, and entropies in nats without one."""
    rows, options = _target_rows(network, hidden, targets, temperature)
    logp, entropy = target_logprobs(rows, weight, targets.ids, entropy=True, **options)
    return _of_all_rows(logp, targets), _of_all_rows(entropy, targets)


def _scores(network: Any, hidden: Tensor, targets: Targets) -> Tensor:
    """[T] fp32, with a gradient."""
    if network.config.sequence_parallel:
        # The head is whole on every rank, and so is the gradient that it sends back: summed it would be tp-fold.
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    return _of_all_rows(network.score_head(hidden.flatten(0, 1)[targets.rows]), targets)


def _target_rows(network: Any, hidden: Tensor, targets: Targets, temperature: float) -> tuple[Tensor, dict[str, Any]]:
    """[t, H] this rank's hidden states that predict targets, and what else `target_logprobs` is told."""
    if network.config.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden)
    group: Any = parallel_state.get_tensor_model_parallel_group()
    options = {"temperature": temperature, "group": group, "vocab_size": network.num_ids}
    return hidden.flatten(0, 1)[targets.rows], options


def _of_all_rows(mine: Tensor, targets: Targets) -> Tensor:
    """[T] from this rank's [t], which context parallelism has made a part of them."""
    if targets.places is None:
        return mine
    return gathered(mine, targets.places, targets.total, parallel_state.get_context_parallel_group())


def _scaled(result: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """With a token count Megatron divides by nothing itself (calculate_per_token_loss); the count is not used."""
    value, metrics = result
    return value, torch.ones((), dtype=torch.int, device=value.device), metrics


def _schedule(chunks: Sequence[Any], batches: Sequence[MicroBatch], step: Any, **options: Any) -> list[Any]:
    iterators = [iter(batches) for _ in chunks]
    began = time.perf_counter()
    found = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks) if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        # Of the whole sequence, of which Megatron has a pipeline send a context-parallel rank's part.
        seq_length=batches[0].input_ids.size(1) * parallel_state.get_context_parallel_world_size(),
        micro_batch_size=batches[0].input_ids.size(0),
        **options,
    )
    if batches[0].input_ids.is_cuda:
        torch.cuda.synchronize()  # what comes next waits for it anyway
    heartbeat.work(time.perf_counter() - began)
    return found


def _sum(metrics: list[dict[str, Tensor]], mesh: Mesh) -> dict[str, float]:
    """Each metric summed over the micro-batches and the data-parallel ranks; the last stage alone has some."""
    if mesh.last_stage:
        values = [{name: float(value) for name, value in m.items()} for m in metrics]
        total: Counter[str] = Counter()
        for of_rank in mesh.gather_over_data(values):
            for m in of_rank:
                total.update(m)
        return mesh.from_last_stage(dict(total))
    return mesh.from_last_stage({})


def at_targets(of_rows: Tensor, batch: MicroBatch) -> Tensor:
    """[T] of [S * B] values of any dtype of this rank's rows, on the host: those of the rows that predict targets."""
    targets = batch.targets
    found = of_rows[targets.rows.cpu()]
    if targets.places is None:
        return found
    return gathered(found, targets.places.cpu(), targets.total, parallel_state.get_context_parallel_group())
