"""How a Megatron shard becomes a Hugging Face tensor, on the wire or on disk: the one bridge of the two sides."""
