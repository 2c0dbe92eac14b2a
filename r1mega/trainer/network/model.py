"""The policy's network: Megatron's GPTModel, ending in hidden states instead of logits or losses.

Shapes: B chunks of a micro-batch, S tokens of a chunk, H hidden size.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.extensions.transformer_engine import te_checkpoint
from megatron.core.fp8_utils import get_fp8_context
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch import Tensor

from r1mega.config.cluster import Recompute, TrainerLayout
from r1mega.families.spec import Grouped, Head, Latent, ModelSpec, Moe, Rope, Yarn
from r1mega.layout.placement import stage_contents
from r1mega.trainer.batch import Ahead
from r1mega.trainer.network.attention import Segments
from r1mega.trainer.network.layer_spec import Layers, decoder_spec, layer_fields, mtp_spec
from r1mega.trainer.network.score_head import ScoreHead
from r1mega.trainer.network.thd import Packed
from r1mega.trainer.precision import model_fields

MTP = Literal["off", "detached", "joint"]
"""off: MTP layers are neither run nor trained. detached: they learn, but nothing of their gradient reaches trunk,
embedding or output head. joint: their loss trains everything, as in pretraining (V3 report 2.2)."""


class MTPLayer(MultiTokenPredictionLayer):
    """A multi-token-prediction layer that passes the padding mask on to its router."""

    def forward(  # type: ignore[override]
        self, embedded: Tensor, hidden: Tensor, segments: Segments | Packed, padding_mask: Tensor
    ) -> Tensor:
        """embedded: [S, B, H], of each position's next token; hidden: [S, B, H], of the depth before."""
        config = self.config
        if config.recompute_granularity != "full" or config.recompute_method != "uniform":
            return self._depth(embedded, hidden, segments, padding_mask)
        if not hidden.requires_grad:
            # With no input that wants a gradient, nothing would be computed again, and the layer not trained.
            hidden = hidden.detach().requires_grad_(torch.is_grad_enabled())
        given = embedded, hidden, segments, padding_mask
        if config.fp8:  # scales are computed again too
            tracker, tp = (
                tensor_parallel.random.get_cuda_rng_tracker,
                parallel_state.get_tensor_model_parallel_group(),
            )
            return te_checkpoint(self._depth, False, tracker, tp, *given)
        return tensor_parallel.checkpoint(self._depth, False, *given)  # type: ignore[return-value]

    def _depth(self, embedded: Tensor, hidden: Tensor, segments: Segments | Packed, padding_mask: Tensor) -> Tensor:
        with get_fp8_context(self.config):  # of no effect without fp8
            hidden = self._concat_embeddings(hidden, embedded)
            hidden, _ = self.transformer_layer(
                hidden_states=hidden,
                attention_mask=segments,
                packed_seq_params=segments.params if isinstance(segments, Packed) else None,
                padding_mask=padding_mask,
            )
        return self._postprocess(hidden)


class PolicyModel(GPTModel):
    """GPTModel that returns the hidden states the output layer would see."""

    mtp_mode: MTP = "off"
    num_ids: int
    """Size of the vocabulary; embedding and output layer may be padded beyond it."""
    head: Head = "lm"
    """What the hidden states are for; a model of scores has `score_head` on the last pipeline stage instead of an
    output layer."""
    score_head: ScoreHead

    def give_score_head(self) -> None:
        """Put a score head where the output layer is, if this stage has one."""
        self.head = "score"
        if self.post_process:
            del self.output_layer
            self.score_head = ScoreHead(self.config)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> Any:
        """Megatron's, without what it does to an output layer that is not there."""
        if self.head == "score":
            return super(LanguageModule, self).sharded_state_dict(prefix, sharded_offsets, metadata)
        return super().sharded_state_dict(prefix, sharded_offsets, metadata)

    @property
    def head_weight(self) -> Tensor:
        """[V, H] on the last pipeline stage: this rank's slice of what predicts, the embedding where it is tied."""
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight  # type: ignore[return-value]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        segments: Segments | Packed,
        padding_mask: Tensor,
        *,
        ahead: tuple[Ahead, ...] = (),
    ) -> Tensor | tuple[Tensor, ...]:
        """Hidden states of one micro-batch. Where documents are packed in one row, B is 1.

        Args:
            input_ids, position_ids: [B, S] int64.
            segments: which positions attend to each other.
            padding_mask: [B, S] bool, True = padding, left out of the routers' counts.
            ahead: for each MTP depth what its layer sees. Empty: MTP layers do not run; nor do they in mode "off".

        Returns:
            On the last pipeline stage (trunk, mtp depth 1, ...), each [S, B, H] after its final norm; elsewhere
            the [S, B, H] to send on, or [S x (1 + depths), B, H] where the MTP layers have an earlier stage.
        """
        prepared: Any = self._preprocess(input_ids, position_ids)
        embedded = prepared[0]
        padding_mask = self._part(padding_mask)
        hidden = self.decoder(
            hidden_states=embedded,
            attention_mask=segments,
            packed_seq_params=segments.params if isinstance(segments, Packed) else None,
            padding_mask=padding_mask,
        )
        if self.mtp_process and ahead and self.mtp_mode != "off":
            depths = self._depths(hidden, ahead, position_ids, segments)
            return (hidden, *depths) if self.post_process else torch.cat([hidden, *depths])
        if not self.post_process:
            return hidden
        length = padding_mask.size(1)
        return hidden.split(length) if len(hidden) > length else (hidden,)  # an earlier stage had the MTP layers

    def _part(self, padding: Tensor) -> Tensor:
        """[B, S] to this rank's part of the sequence, as hidden states are divided.

        Here and not in Megatron's _preprocess, which divides the mask on the first pipeline stage alone.
        """
        if not self.config.sequence_parallel:
            return padding
        return scatter_to_sequence_parallel_region(padding.T.contiguous()).T.contiguous()

    def _depths(
        self, hidden: Tensor, ahead: tuple[Ahead, ...], position_ids: Tensor, segments: Segments | Packed
    ) -> list[Tensor]:
        """Hidden states of each MTP depth."""
        states: list[Tensor] = []
        joint = self.mtp_mode == "joint"
        hidden = hidden if joint else hidden.detach()
        for layer, seen in zip(self.mtp.layers, ahead, strict=True):
            with torch.set_grad_enabled(joint and torch.is_grad_enabled()):
                embedded = self.embedding(input_ids=seen.ids, position_ids=position_ids)
            hidden = layer(embedded, hidden, segments, self._part(seen.padding))
            states.append(hidden)
        return states


def megatron_config(
    spec: ModelSpec, layout: TrainerLayout, *, expert_bias_rate: float, layers: Layers = "local", device: str = "cpu"
) -> TransformerConfig:
    """Megatron's configuration of a model whose layers are made of `layers` on a type of device."""
    latent = isinstance(spec.attention, Latent)
    attention = _latent(spec.attention, spec.rope) if isinstance(spec.attention, Latent) else _grouped(spec.attention)
    experts = _experts(spec.moe, spec.num_layers, layout, expert_bias_rate) if spec.moe else {}
    return (MLATransformerConfig if latent else TransformerConfig)(
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        num_attention_heads=spec.num_heads,
        ffn_hidden_size=spec.ffn_size,
        **attention,
        normalization="RMSNorm",
        layernorm_epsilon=spec.norm_eps,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        mtp_num_layers=spec.num_mtp_layers or None,
        tensor_model_parallel_size=layout.tp,
        sequence_parallel=layout.tp > 1,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        # Between two ranks an interleaved schedule has several messages under way, which a batch would mix up.
        overlap_p2p_comm=layout.vpp > 1,
        batch_p2p_comm=layout.vpp == 1,
        pipeline_model_parallel_layout=_stages(spec, layout),  # type: ignore[arg-type]
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.expert_tp,
        context_parallel_size=layout.cp,
        # The loss comes normalised over the mini-batch: micro-batches and data-parallel ranks are summed.
        calculate_per_token_loss=True,
        **experts,
        **layer_fields(layers, device, mixture=spec.moe is not None),
        **model_fields(layout),
        **_recompute(layout.recompute),
    )


def _latent(attention: Latent, rope: Rope) -> dict[str, Any]:
    yarn = rope.scaling
    scaling: dict[str, Any] = {"rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale_all_dim": 0.0}
    if yarn is not None:
        assert isinstance(yarn, Yarn)
        scaling = {
            "rope_type": "yarn",
            "rotary_scaling_factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        }
    return {
        "multi_latent_attention": True,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_head_dim": attention.qk_nope_dim,
        "qk_pos_emb_head_dim": attention.qk_rope_dim,
        "v_head_dim": attention.v_dim,
        "qk_layernorm": True,
        "rotary_base": rope.theta,
        **scaling,
    }


def _grouped(attention: Grouped) -> dict[str, Any]:
    return {
        "num_query_groups": attention.num_kv_heads,
        "kv_channels": attention.head_dim,
        "add_qkv_bias": attention.qkv_bias,
        "qk_layernorm": attention.qk_norm,
        "softmax_scale": attention.head_dim**-0.5,
    }


def _experts(moe: Moe, num_layers: int, layout: TrainerLayout, expert_bias_rate: float) -> dict[str, Any]:
    return {
        "num_moe_experts": moe.num_experts,
        "moe_layer_freq": [0] * moe.num_dense_layers + [1] * (num_layers - moe.num_dense_layers),
        "moe_ffn_hidden_size": moe.ffn_size,
        "moe_shared_expert_intermediate_size": moe.shared_ffn_size,
        "moe_router_topk": moe.top_k,
        "moe_router_num_groups": moe.num_groups,
        "moe_router_group_topk": moe.group_top_k,
        "moe_router_topk_scaling_factor": moe.routed_scaling,
        "moe_router_score_function": "sigmoid",
        "moe_router_pre_softmax": False,
        "moe_router_dtype": "fp32",
        "moe_router_enable_expert_bias": True,
        "moe_router_bias_update_rate": expert_bias_rate,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_token_dispatcher_type": layout.token_dispatcher,
    }


def _recompute(recompute: Recompute) -> dict[str, Any]:
    if recompute.granularity == "none":
        return {}
    if recompute.granularity == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": list(recompute.modules)}
    return {
        "recompute_granularity": "full",
        "recompute_method": recompute.method,
        "recompute_num_layers": recompute.num_layers,
    }


def _stages(spec: ModelSpec, layout: TrainerLayout) -> list[list[str]] | None:
    """What each pipeline stage holds, in Megatron's words; None without a pipeline."""
    names = {"E": "embedding", "t": "decoder", "m": "mtp", "L": "loss"}
    return [[names[x] for x in held] for held in stage_contents(spec, layout)] if layout.pp > 1 else None


def build_model(
    spec: ModelSpec, config: TransformerConfig, *, mtp: MTP, layers: Layers = "local", chunk: int | None = None
) -> PolicyModel:
    """The model of this pipeline stage. `trainer.network.initial` gives it its first weights.

    Args:
        chunk: which of this rank's, where it has several.
    """
    block = decoder_spec(spec, config, layers, chunk)
    mtp_block = mtp_spec(spec, config, layers, MTPLayer, chunk)
    tp = config.tensor_model_parallel_size
    model = PolicyModel(
        config,
        block,
        -(-spec.vocab_size // tp) * tp,
        spec.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=chunk),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=chunk),
        # Our attention turns queries and keys itself.
        position_embedding_type="rope" if isinstance(spec.attention, Latent) else "none",
        share_embeddings_and_output_weights=spec.tied,
        mtp_block_spec=mtp_block,
        parallel_output=True,
        vp_stage=chunk,
    )
    model.num_ids = spec.vocab_size
    if spec.head == "score":
        model.give_score_head()
    model.mtp_mode = mtp if spec.num_mtp_layers else "off"
    if model.mtp_mode == "off" and mtp_block is not None:
        # Frozen, or weight decay would move what is not trained.
        model.mtp.requires_grad_(False)
    if spec.tied and mtp_block is not None and model.post_process:
        # On a last stage with MTP layers Megatron predicts with the embedding's copy there, yet makes a second one.
        model.output_layer.weight = None
    return model
