"""The report's equations as pure functions on tensors: no distribution, no configs, no models.

`advantage` is Eq. 3, `kl` the penalty of Eq. 2, `grpo` the objective of Eq. 1. The next-token loss of pretraining
and SFT is `likelihood`.
"""
