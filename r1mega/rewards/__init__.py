"""Rule rewards (report 2.2.2): untrusted text in, a verdict out.

Deterministic rules on text in linear time; no model is asked, since a learnt reward invites reward hacking at
scale. Imports data (the verifiers of the tasks) and below. `format` knows the tags, `accuracy` the answer,
`rubric` puts both into a verdict.
"""
