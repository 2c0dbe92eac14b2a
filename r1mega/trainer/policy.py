"""The policy: a model in training and the verbs on it."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch import Tensor

from r1mega.config import training
from r1mega.errors import DivergenceError
from r1mega.families.spec import ModelSpec
from r1mega.layout.turns import Stage
from r1mega.samples import Document, ExpertLoad
from r1mega.trainer import forward
from r1mega.trainer.balance import Balance
from r1mega.trainer.batch import BESIDE, MicroBatch, by_document, check_kind, form_of, in_groups_of, micro_batches
from r1mega.trainer.forward import LossFn
from r1mega.trainer.mesh import Mesh
from r1mega.trainer.network.build import build_model_chunks
from r1mega.trainer.network.initial import First
from r1mega.trainer.network.layer_spec import choose_layers
from r1mega.trainer.network.model import MTP, PolicyModel
from r1mega.trainer.network.names import by_whole_model_names, own_tensors
from r1mega.trainer.offload import DeviceMemory, host_copies, lent
from r1mega.trainer.optimizer import build_optimizer, set_rates
from r1mega.trainer.routing import recorded_margins


class Policy:
    """Weights, their optimiser and a frozen reference. Make one with `Policy.build`."""

    def __init__(
        self,
        spec: ModelSpec,
        mesh: Mesh,
        chunks: Sequence[DistributedDataParallel],
        optimizer: MegatronOptimizer,
        settings: tuple[training.Optimizer, training.Batch],
        mtp_loss_weight: float,
    ) -> None:
        self.spec = spec
        self.mesh = mesh
        self.model_chunks = list(chunks)
        """This rank's parts of the model in the order of the pipeline's stages; one without a virtual pipeline."""
        self.optimizer = optimizer
        self.reference: dict[str, Tensor] | None = None
        """Host copy of the reference's parameters and buffers, by the same names as `state`."""
        self._optimizer_settings, self._batch = settings
        self._mtp_loss_weight = mtp_loss_weight
        self._memory = DeviceMemory(self.model_chunks, optimizer, optimizer_aside=mesh.layout.offload_optimizer)
        self._current: dict[str, Tensor] = {}
        """Host copy of the weights, while the reference is in their place."""
        self.form = BESIDE
        """How micro-batches are laid out."""
        self.expert_load: ExpertLoad | None = None
        """What the routers did in the last optimiser step; None before the first, and in a dense model."""
        modules = [module for network in self.networks for module in network.modules()]
        self._balance = Balance(spec, self.state(), modules) if spec.moe else None

    @classmethod
    def build(
        cls,
        spec: ModelSpec,
        mesh: Mesh,
        optimizer: training.Optimizer,
        batch: training.Batch,
        *,
        mtp: MTP,
        mtp_loss_weight: float,
        expert_bias_rate: float,
        seed: int,
        first: First = "drawn",
    ) -> "Policy":
        """A policy with its first weights; with a score head where `spec` has one.

        Args:
            mtp: whether the MTP layers run, and how far their gradient reaches (`trainer.network.model.MTP`).
            mtp_loss_weight: lambda of the V3 report's Eq. 25.
            expert_bias_rate: gamma of the load-balancing bias; 0 freezes it.
            seed: of the initial weights; the random state of the process is left as it was.
            first: which of them are drawn; the others are NaN until a folder or a checkpoint is loaded.
        """
        device = mesh.device.type
        layers = choose_layers(device, mesh.layout)
        chunks = build_model_chunks(
            spec, mesh, layers, mtp=mtp, expert_bias_rate=expert_bias_rate, seed=seed, first=first
        )
        megatron_optimizer = build_optimizer(chunks, optimizer, layout=mesh.layout, device=device)
        for chunk in chunks:
            chunk.config.grad_scale_func = megatron_optimizer.scale_loss
        policy = cls(spec, mesh, chunks, megatron_optimizer, (optimizer, batch), mtp_loss_weight)
        policy.form = form_of(mesh, packed=layers == "transformer_engine")
        policy._zero_grad()
        policy._memory.put_optimizer_aside()
        return policy

    @property
    def networks(self) -> list[PolicyModel]:
        """This rank's chunks without Megatron's wrapper."""
        return [chunk.module for chunk in self.model_chunks]  # type: ignore[misc]

    @property
    def network(self) -> PolicyModel:
        """The last of them, which has the head where this rank has it; the only one without a virtual pipeline."""
        return self.networks[-1]

    def state(self) -> dict[str, Tensor]:
        """This rank's parameters and persistent buffers, by the names of the family's table; live, not copies.

        Returns:
            name -> [this rank's part of the table's shape], of the weights' dtype; routers' biases fp32.
        """
        self._memory.check("weights")
        return {n: t for x in self.networks for n, t in by_whole_model_names(x, own_tensors(x)).items()}

    def gradients(self) -> dict[str, Tensor]:
        """The accumulated gradients of this rank's weights, each [as the weight] fp32, by the names of `state`."""
        found: dict[str, Tensor] = {}
        for network in self.networks:
            trained = {n: p.main_grad for n, p in network.named_parameters() if p.requires_grad}  # type: ignore[attr-defined]
            found |= by_whole_model_names(network, trained)
        return found

    def weights_changed(self) -> None:
        """Tell the optimiser that weights were written from outside."""
        with self._memory.optimizer_here():
            self.optimizer.reload_model_params()

    # ---- verbs ------------------------------------------------------------------------------------------

    def forward_backward(
        self, documents: Sequence[Document], loss: LossFn, *, temperature: float = 1.0
    ) -> dict[str, float]:
        """Add the gradient of a mini-batch's loss to what `optim_step` will apply.

        Args:
            documents: of this data-parallel rank, the same on all ranks of its model; every document with the same
                fields.
            loss: on log-probabilities at `temperature`, or on scores; see `forward.LossFn`.
            temperature: divides the logits (the report samples at 0.7 in its last stage); no scores.

        Returns:
            The loss function's metrics and `forward.TRAINING_METRICS`, summed over micro-batches and data-parallel
            ranks; the same on every rank.

        Raises:
            DataError: documents that cannot be packed, or that are not of the kind that the model's head reads.
        """
        depths = self.spec.num_mtp_layers if self.network.mtp_mode != "off" else 0
        batches = self._micro_batches(documents, mtp_depths=depths)
        with self.mesh.waiting("the other ranks in forward and backward"):
            return forward.train(
                self.model_chunks,
                self.mesh,
                batches,
                loss,
                temperature=temperature,
                mtp_loss_weight=self._mtp_loss_weight,
            )

    def reduce_gradients(self, *, everywhere: bool = False) -> None:
        """Sum the accumulated gradient over the ranks that share each weight, move the expert bias, and take stock of
        what the routers did (`expert_load`).

        Args:
            everywhere: leave the whole sum on every data-parallel rank, where otherwise each has only the part that
                its share of the optimiser needs.
        """
        self._memory.check()
        with self.mesh.waiting("the other ranks to sum gradients"):
            taken = self._balance.take() if self._balance else None
            finalize_model_grads(list(self.model_chunks), force_all_reduce=everywhere)
            if self._balance and taken is not None:
                self.expert_load = self._balance.over_ranks(taken)

    def optim_step(self, lr: float, *, reduced: bool = False, accept: Callable[[float], bool] | None = None) -> float:
        """Reduce, clip and apply the accumulated gradient, move the expert bias, clear the gradient.

        Args:
            reduced: `reduce_gradients` has been called.
            accept: asked with the norm, on every rank, whether the gradient is to be applied; it must say the same on
                all. Where it is not, nothing of the policy changes, neither moments nor the optimiser's count of
                steps nor expert biases, and the gradient is cleared all the same. None: where it is finite.

        Returns:
            The global gradient norm before clipping.

        Raises:
            DivergenceError: it is not finite, and there is no `accept`; nothing has changed.
        """
        if not reduced:
            self.reduce_gradients()
        set_rates(self.optimizer, self._optimizer_settings, lr)
        with self._memory.optimizer_here(), self.mesh.waiting("the other ranks in the optimiser's step"):
            self.optimizer.prepare_grads()
            norm = float(self.optimizer.get_grad_norm())  # type: ignore[arg-type]
            taken = accept(norm) if accept else math.isfinite(norm)
            if taken:
                self.optimizer.step()
            elif self._balance:
                self._balance.put_back()
        self._zero_grad()
        if not taken and accept is None:
            raise DivergenceError(
                f"the gradient norm is {norm}: training has diverged; lower optimizer.lr or lengthen "
                "optimizer.warmup_steps in a new run"
            )
        return norm

    def scores(self, documents: Sequence[Document]) -> list[Tensor]:
        """What a model of scores gives each text of scored documents; no gradient, no change of any state.

        Returns:
            For each document, in order, [number of its texts] fp32.

        Raises:
            DataError: as `forward_backward`.
        """
        if self.spec.head != "score":
            raise RuntimeError("a language model gives no scores: build it of with_score_head(spec)")
        return self._scored(documents, temperature=1.0)

    def logprobs(self, documents: Sequence[Document], *, temperature: float, reference: bool = False) -> list[Tensor]:
        """Log-probabilities of every document's targets; no gradient, no change of any state.

        Args:
            documents: as in `forward_backward`.
            temperature: divides the logits.
            reference: of the reference instead of the current weights.

        Returns:
            For each document, in order, [num_targets] fp32.
        """
        if self.spec.head != "lm":
            raise RuntimeError("a model of scores predicts no tokens: ask for `scores`")
        with self._reference_weights() if reference else torch.no_grad():
            return self._scored(documents, temperature=temperature)

    def routing_margins(self, documents: Sequence[Document]) -> list[Tensor]:
        """How close each position's choice of experts was to another one (`trainer.routing`).

        Returns:
            For each document, in order, [len(token_ids) - 1] fp32: the smallest margin over the layers, of every
            position but the last, which predicts nothing.
        """
        every_position = [Document(d.token_ids) for d in documents]
        batches = self._micro_batches(every_position, mtp_depths=0)
        with recorded_margins(self.networks) as margins:
            forward.score(self.model_chunks, self.mesh, batches, temperature=1.0)
        numbered = enumerate(batches)
        smallest = [forward.at_targets(margins.smallest(batch.input_ids.numel(), i), batch) for i, batch in numbered]
        return by_document(every_position, batches, smallest)

    def refresh_reference(self) -> None:
        """Make the current weights the reference (the report does so every 400 steps)."""
        # New memory each time: an unfinished save may still be reading the old.
        self.reference = host_copies(self.state())

    def offload(self, *stages: Stage) -> None:
        """Put weights, gradients and the optimiser's state, or some of them, aside in host memory.

        So another user of the device has room; gradients that are zero take none on the host.

        Until `onload` nothing of it may be used: without weights nothing of the policy, without the others `state`
        alone. Its reference is on the host anyhow. Idempotent.
        """
        self._memory.offload(*stages)

    def onload(self, *stages: Stage) -> None:
        """Take everything, or some of it, back, bit for bit. Idempotent."""
        self._memory.onload(*stages)

    @property
    def aside(self) -> tuple[Stage, ...]:
        """What is offloaded."""
        return self._memory.aside

    def optimizer_here(self) -> AbstractContextManager[None]:
        """With the optimiser's state on the device, where `offload_optimizer` keeps it on the host otherwise."""
        return self._memory.optimizer_here()

    # ---- parts ------------------------------------------------------------------------------------------

    def _scored(self, documents: Sequence[Document], *, temperature: float) -> list[Tensor]:
        batches = self._micro_batches(documents, mtp_depths=0)
        with self.mesh.waiting("the other ranks to score"):
            scored = forward.score(self.model_chunks, self.mesh, batches, temperature=temperature)
        return by_document(documents, batches, scored)

    def _micro_batches(self, documents: Sequence[Document], *, mtp_depths: int) -> list[MicroBatch]:
        self._memory.check()
        check_kind(documents, self.spec)
        made = micro_batches(
            documents,
            self._batch,
            mtp_depths=mtp_depths,
            agreed=self.mesh.max_over_data,
            form=self.form,
            multiple=in_groups_of(self.mesh.layout),
        )
        return [batch.to(self.mesh.device) for batch in made]

    def _zero_grad(self) -> None:
        for chunk in self.model_chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def _reference_weights(self) -> AbstractContextManager[None]:
        if self.reference is None:
            raise RuntimeError("no reference yet: call refresh_reference() first")
        return lent(self.state(), self.reference, self._current)
