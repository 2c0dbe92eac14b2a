"""Model families as pure data: what a Hugging Face config.json means, and one table of names and shapes each.

A new family is one file here and one row in `registry.FAMILIES`. Torch-free; imports errors alone.
"""
