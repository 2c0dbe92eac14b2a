"""What is on disk: model folders and checkpoints, byte by byte and name by name. No megatron, no engine."""
