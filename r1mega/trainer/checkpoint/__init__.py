"""Checkpoints of a training run: which slices of the model a rank has, written and read at any layout."""
