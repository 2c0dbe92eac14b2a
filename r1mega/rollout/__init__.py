"""The sampling side: prompts in, completions with log-probabilities out. It never meets Megatron."""
