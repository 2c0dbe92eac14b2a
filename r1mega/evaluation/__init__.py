"""Held-out answers in, figures with intervals out. Imports rewards and below; samples nothing itself."""
