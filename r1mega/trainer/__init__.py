"""Training on Megatron: process groups, model, forward and backward, optimiser, checkpoints.

`Policy` is the surface: forward_backward, optim_step, logprobs, save, load. The algorithm arrives as a callable
on log-probabilities; this room knows no GRPO, no engine and no reward. Import `mesh` first and call `mesh.start`
before anything else here: the other modules import megatron, which needs the shims.
"""
