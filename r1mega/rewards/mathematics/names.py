"""Words among tokens: the names and letters that a run of letters is a product of, and words that are only words."""

from collections.abc import Sequence

from r1mega.rewards.mathematics.notation import Token
from r1mega.rewards.mathematics.symbols import ALIASES, FUNCTIONS, GREEK
from r1mega.rewards.mathematics.units import is_unit, is_unit_letter

_NAMES = sorted(
    (FUNCTIONS | set(ALIASES) | GREEK | {"pi", "infinity", "infty"}) - {"Re", "Im"}, key=len, reverse=True
)


def letters(tokens: Sequence[Token]) -> list[tuple[Token, int]]:
    """The tokens with words cut into names and single letters, each with the position it came from.

    A word that can only be a word (upright, a unit behind a number, four letters without a name in them) ends the
    expression: it is left as an upright token.
    """
    found: list[tuple[Token, int]] = []
    for position, token in enumerate(tokens):
        if token.kind != "word":
            found.append((token, position))
            continue
        text = token.text
        before = tokens[position - 1] if position else None
        known = text in FUNCTIONS or text in ALIASES or text in ("pi", "infinity", "infty", "oo", "inf")
        single = len(text) == 1 and text.isascii()
        measured = before is not None and (before.kind in ("num", "close") or before.text == "°")
        is_measure = measured and ((len(text) > 1 and is_unit(text)) or (token.upright and is_unit_letter(text)))
        if is_measure or not (known or single or not token.upright) or not text.isascii():
            found.append((Token("word", text, token.spaced, upright=True), position))
            continue
        parts = _cut(text)
        if parts is None:
            found.append((Token("word", text, token.spaced, upright=True), position))
            continue
        for part in parts:
            found.append((part, position))
    return found


def _cut(word: str) -> list[Token] | None:
    """The names and letters that a run of letters is a product of; None where it is a plain word."""
    parts: list[Token] = []
    position = named = 0
    while position < len(word):
        name = next((name for name in _NAMES if word.startswith(name, position)), None)
        if word in ("oo", "inf"):
            name = word
        if name is None:
            parts.append(Token("word", word[position]))
            position += 1
            continue
        named += len(name)
        position += len(name)
        name = ALIASES.get(name, name)
        if name in ("infinity", "infty", "oo", "inf"):
            parts.append(Token("sym", "inf"))
        else:
            parts.append(Token("fn" if name in FUNCTIONS else "sym", name))
    return parts if len(word) - named <= 3 and not (named and len(word) - named > 2) else None
