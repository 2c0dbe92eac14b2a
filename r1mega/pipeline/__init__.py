"""Stages as one resumable run: each in a process of its own, each with its own run directory inside."""
