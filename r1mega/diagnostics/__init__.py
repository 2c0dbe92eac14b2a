"""Figures of training: engine against trainer, load balance of the experts, what a rollout looked like.

Pure functions of what crosses rooms (`samples`), without torch; who runs and logs them is a stage's business.
"""
