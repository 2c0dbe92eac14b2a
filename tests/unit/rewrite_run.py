"""Runs of the rejection stage whose kept answers are made readable by a server that follows rules worked out here."""

from typing import Any

from rejection_run import Server
from rejection_run import say as answer_or_judge

REWRITE = """
[rewrite.endpoint]
url = "URL"
model = "rewriter"
first_wait_s = 0.01
longest_wait_s = 0.02
"""
ALL = ("answers.max_kept=15",)
ONE_BY_ONE = tuple(f"{name}.concurrency=1" for name in ("endpoint", "verify.judge.endpoint", "rewrite.endpoint"))
KEPT = {  # the right answers of `rejection_run`, by what stands in them -> what becomes of each once it is rewritten
    "One plus nought": "rewritten",
    "Nought adds": "rewrite_wrong",
    "One is what": "rewrite_unreadable",
    "it was her": "rewritten",
    "Hello there": "without_thinking",
    "Hi you all": "without_thinking",
}
REPLIES = {
    "One plus nought": "Gladly.\n[[reasoning]]\nI start from one.\n\nNought adds nothing.\n"
    "[[summary]]\nIt is \\boxed{1}.",
    "Nought adds": "[[reasoning]]\nI add nought.\n[[summary]]\nSo it is \\boxed{2}.",
    "One is what": "I would rather not.",
    "it was her": "[[reasoning]]\nI remember that it was her.\n[[summary]]\nMary Shelley",
}
FIRST = "<think>\nI start from one.\n\nNought adds nothing.\n</think>\n\nIt is \\boxed{1}."
HERS = "<think>\nI remember that it was her.\n</think>\n\nMary Shelley"


def say(body: dict[str, Any]) -> str:
    if body["model"] != "rewriter":
        return answer_or_judge(body)
    shown = body["messages"][-1]["content"]
    return next((text for key, text in REPLIES.items() if key in shown), "I would rather not.")


def before_rewrite(server: Server, num: int) -> int:
    """Requests of a whole run before the rewriter's request `num`, counted from 0."""
    return [place for place, body in enumerate(server.bodies) if body["model"] == "rewriter"][num]
