"""Where the program of a response stands: in the last fenced block of its language, after the thinking.

Inside the answer tags where there are any. A patch stands in a block ```diff or ```patch. Linear in the response.
"""

import re

from r1mega.data.template import ANSWER_CLOSE, ANSWER_OPEN
from r1mega.rewards.mathematics.answer import after_thinking

LANGUAGES = {
    "python": ("python", "python3", "py", "py3"),
    "cpp": ("cpp", "c++", "cc", "cxx", "cpp17", "cpp20", "c++17", "c++20"),
    "diff": ("diff", "patch"),
}
"""Language -> what a fence may call it, in small letters."""
MAX_CHARACTERS = 200_000
"""A longer program is none."""
_FENCE = re.compile(r"[ \t]{0,3}(`{3,})[ \t]*([^`\s]*)[^`]*")
_NAMES = {name: language for language, names in LANGUAGES.items() for name in names}


def find_answer(response: str) -> str | None:
    """The part of a response in which its program stands; None where no fence of a known language does.

    >>> find_answer("<think>...</think> So:\\n```python\\nprint(1)\\n```\\n")
    ' So:\\n```python\\nprint(1)\\n```\\n'
    """
    text = after_thinking(response)
    opened, closed = text.count(ANSWER_OPEN), text.count(ANSWER_CLOSE)
    if opened > 1 and closed > 1:
        return None  # two answers are none
    if opened == 1 and closed == 1:
        inside, found, _ = text.partition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)
        text = inside if found else ""
    return text if any(language for language, _ in blocks(text)) else None


def program_in(answer: str, *languages: str) -> tuple[str, str] | None:
    """The last block of one of the languages, with which it is; None where there is none or it is not closed."""
    found = [(language, text) for language, text in blocks(answer) if language in languages]
    if not found:
        return None
    language, text = found[-1]
    return None if text is None or len(text) > MAX_CHARACTERS else (language, text)


def blocks(text: str) -> list[tuple[str, str | None]]:
    """All fenced blocks: language, "" for another or none, and content; None where a block is not closed."""
    found: list[tuple[str, str | None]] = []
    opening: str | None = None
    language, inside = "", list[str]()
    for line in text.splitlines(keepends=True):
        bare = line.rstrip("\r\n")
        if opening is None:
            match = _FENCE.fullmatch(bare)
            if match is not None:
                opening, language, inside = match[1], _NAMES.get(match[2].lower().strip("{.}"), ""), []
        elif (end := bare.strip()).startswith(opening) and not end.strip("`"):
            found.append((language, "".join(inside)))
            opening = None
        else:
            inside.append(line)
    if opening is not None:
        found.append((language, None))
    return found
