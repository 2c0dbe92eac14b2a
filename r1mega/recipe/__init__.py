"""A torch-free twin of every stage: its settings, its laws, what it reads and what it writes.

`load.RECIPES` is the one table of them. What differs from stage to stage is asked of the recipe; nothing outside this
room asks which stage it is.
"""
