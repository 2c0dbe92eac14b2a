"""The report's story, one loop a file: `pretrain` (a tiny base), `grpo` (section 2.2 and on), `evaluate`.

A stage has one function, `run(config, cluster, run)`; it reads its config and writes its run directory, nothing
else. Stages never import each other.
"""
