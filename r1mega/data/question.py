"""A question with what judges its answers, wherever it comes from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Domain = Literal["math", "code", "stem", "logic", "general", "helpful", "harmless"]
"""Kinds of RL prompts, as the report lists them; rewards are chosen by it. The last two are its 66K and 12K general
prompts, each with the reward model that judges them; "general" are prompts of neither."""
NO_VERIFIER = "none"
"""The verifier of questions that no rule can judge, with a truth for whoever reads it, or without one."""


@dataclass(frozen=True)
class Question:
    """`Question("9f...", "chain_sum", "State the final answer ...: 4 - 1 =", truth="3")`."""

    id: str
    """Hash of verifier and text unless a file states another; the same in every run."""
    verifier: str
    """Name of what judges its answers (`rewards.verifiers.VERIFIERS`); of a made question, the task it is of."""
    text: str
    truth: str
    """The reference answer; of the verifier "none" it may be empty."""
    entry: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The source's own record of it, for the verifier."""
    domain: Domain = "math"
    target_language: str = ""
    """ISO 639-1 code of the language that its answers should be in; "" where that is not said."""
    source: str = ""
    """Label of the table of [[questions]] that it is of, for shares and counts."""


def question_id(verifier: str, text: str) -> str:
    """16 hexadecimal digits that name a question in every run."""
    return hashlib.sha256(f"{verifier}\0{text}".encode()).hexdigest()[:16]
