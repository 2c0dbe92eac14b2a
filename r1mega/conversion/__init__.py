"""Model folders from one form into another: Hugging Face's safetensors and Megatron's distributed checkpoint.

`convert.py` is the surface: to_megatron, to_hf. Both read and write tensor by tensor, in several processes, need no
running model, and never import megatron. `verify.py` compares two folders, `describe.py` says what one holds.
"""
