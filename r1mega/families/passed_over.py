"""Keys of a config.json that change nothing of what these families compute: passed over by name, each for a reason.

Other trainers and other versions of transformers leave many there. A key that is in none of the tables below, nor in
its family's, is refused: it may change the model.
"""

from collections.abc import Collection, Mapping
from typing import Any

# fmt: off
GENERATION = (
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "bad_words_ids",
    "begin_suppress_tokens", "constraints", "diversity_penalty", "do_sample", "dola_layers", "early_stopping",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id",
    "guidance_scale", "length_penalty", "max_length", "max_new_tokens", "max_time", "min_length", "min_new_tokens",
    "min_p", "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups",
    "num_beams", "num_return_sequences", "output_logits", "output_scores", "penalty_alpha",
    "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits", "repetition_penalty",
    "return_dict_in_generate", "sequence_bias", "stop_strings", "suppress_tokens", "target_lookbehind", "temperature",
    "top_h", "top_k", "top_p", "typical_p", "watermarking_config",
)
"""Fields of transformers' `GenerationConfig`, which versions before 5 wrote into config.json as well."""

WHATEVER: Mapping[str, tuple[str, ...]] = {
    "where the file comes from and who wrote it": (
        "_commit_hash", "_name_or_path", "auto_map", "model_type", "name_or_path", "transformers.js_config",
        "transformers_version",
    ),
    "how something is computed, not what": (
        "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal",
        "_experts_implementation", "_experts_implementation_internal", "_flash_attn_2_enabled",
        "attn_implementation", "cache_config", "cache_implementation", "chunk_size_feed_forward", "compile_config",
        "disable_compile", "experts_implementation", "gradient_checkpointing", "low_memory",
        "prefill_chunk_size", "torchscript", "use_cache",
    ),
    "in which dtype weights are kept: each tensor's own counts": ("dtype", "torch_dtype", "use_bfloat16"),
    "what a call returns beside the logits": (
        "output_attentions", "output_hidden_states", "return_dict", "tie_last_hidden_states",
    ),
    "labels of a classifier, which `score_head` looks at where `architectures` states one": (
        "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
    ),
    "tokens and classes of a tokenizer, which says them itself": (
        "sep_token_id", "tokenizer_class", "unk_token_id",
    ),
    "encoder-decoder models alone; these families decode whatever it says": ("decoder_start_token_id", "is_decoder"),
    "how answers are drawn, which a stage's own settings say": GENERATION,
    "how weights are stored; `quantization` looks at it": ("quantization_config",),
}
"""Why -> keys that change nothing, whatever their value."""
# fmt: on

PREFIXES = ("unsloth_",)
"""Beginnings of marks that a trainer leaves."""

MEANT: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_chunk_size": (None,),
    "attn_logit_softcapping": (None,),
    "cross_attention_hidden_size": (None,),
    "embd_pdrop": (0, 0.0),
    "embedding_multiplier": (1, 1.0),
    "final_logit_softcapping": (None,),
    "hidden_dropout": (0, 0.0),
    "hidden_dropout_prob": (0, 0.0),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "logits_scaling": (1, 1.0),
    "partial_rotary_factor": (1, 1.0, None),
    "per_layer_config": ({}, None),
    "prefix": ("", None),
    "pretraining_tp": (1,),
    "pruned_heads": ({}, None),
    "resid_pdrop": (0, 0.0),
    "residual_multiplier": (1, 1.0),
    "sliding_window": (None,),
    "tie_encoder_decoder": (False,),
    "use_bidirectional_attention": (False, None),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
"""Keys that would change the model -> the values that mean they do not. Every other value is refused, falsy or not:
0 says something else than false, and an empty list something else than null. A family's own word goes before this."""

# fmt: off
LENGTHS = (
    "max_seq_len", "max_seq_length", "max_sequence_length", "max_target_positions", "model_max_length", "n_positions",
    "seq_len", "seq_length",
)
# fmt: on
"""Other names of max_position_embeddings, of which vLLM takes the smallest: none may be below it."""


def among(value: Any, values: Collection[Any]) -> bool:
    """Whether a value is one of them, of the same type: 0 is not false, nor 1 true."""
    return any(value == v and type(value) is type(v) for v in values)


def passed_over(name: str) -> bool:
    """Whether a key changes nothing, whatever its value."""
    return name.startswith(PREFIXES) or any(name in names for names in WHATEVER.values())


def length_faults(hf: Mapping[str, Any]) -> list[str]:
    """What other names of max_position_embeddings say against it."""
    positions = hf.get("max_position_embeddings")
    return [
        f"{name} = {hf[name]!r}: must not be below max_position_embeddings = {positions!r}, since engines take the "
        f"smallest; take {name} out, or make the two equal"
        for name in LENGTHS
        if hf.get(name) is not None
        and isinstance(positions, int)
        and not (type(hf[name]) is int and hf[name] >= positions)
    ]
