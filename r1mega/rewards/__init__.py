"""What an answer is worth (report 2.2.2): untrusted text in, a verdict out.

`reward` says what a reward is: a rule, which judges answers as they arrive, or a model, which scores a rollout's
answers in one collective pass. A file a reward, its settings class included; `registry` is the table of them, and
`rubric` adds them up. Imports data and below; settings reach pydantic alone, a reward's library is imported where
it judges.
"""
