"""Words and clauses of a text from which everything else is gone.

Segmentation: the default word boundaries of Unicode (UAX #29), which need no dictionary, with a boundary between
scripts too. So Chinese is counted by characters, and Japanese by characters but for a run of katakana, which is one
word. A word of an alphabet is as written, with apostrophes and, unlike there, hyphens. Of a Korean unit, which has
its particles written onto it, two syllables begun are a word: more than units, fewer than syllables. A word that
mixes alphabets (a look-alike) is of the script "Other", as is what `table` has no language for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import regex

from r1mega.rewards.languages.table import SPACED, UNSPACED

MAX_CLAUSES = 5_000
"""Of a text; from then on a clause has `LONG_CLAUSE` words at least."""
LONG_CLAUSE = 50
LETTERS_A_WORD = {"Han": 1, "Hiragana": 1, "Hangul": 2, **dict.fromkeys(UNSPACED, 4)}
"""Script -> letters of a run that are a word, begun ones too; of other scripts a run is one."""
MAX_CAPITALS = 4
"""Letters of a symbol in capitals."""

_ALPHABETS = [script for script in SPACED if script != "Hangul"]
_APART = "[\\p{Han}\\p{Hiragana}\\p{Katakana}\\p{Hangul}\\p{Thai}\\p{Lao}\\p{Khmer}\\p{Myanmar}\\p{Common}ー]"
_LETTER = f"[\\p{{L}}--{_APART}]"


def _of(script: str) -> str:
    letters = f"[\\p{{{script}}}&&\\p{{L}}]"
    one = f"{letters}[\\p{{M}}{letters}]*+"
    return f"(?P<{script}>{one}(?:['’\\-‑·]{one})*+)(?!{_LETTER})"


_TOKEN = regex.compile(
    "|".join(
        [
            *(_of(script) for script in _ALPHABETS[:2]),
            r"(?P<Han>\p{Han}++)",
            r"(?P<Hiragana>[\p{Hiragana}]++)",
            r"(?P<Katakana>[\p{Katakana}ー]++)",
            r"(?P<Hangul>\p{Hangul}++)",
            r"(?P<End>[.!?…;:,。．！？；：，、､；؟؛،।॥\n\r()（）\[\]【】\{\}<>\"“”„«»「」『』—–|•]++)",
            *(_of(script) for script in _ALPHABETS[2:]),
            *(f"(?P<{script}>\\p{{{script}}}++)" for script in UNSPACED),
            f"(?P<Other>(?:{_LETTER}\\p{{M}}*+)++)",
        ]
    ),
    regex.VERSION1,
)


@dataclass
class Clause:
    """What stands between two signs of punctuation."""

    words: dict[str, int] = field(default_factory=dict[str, int])
    """Script -> how many."""
    texts: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Script -> the words, where they tell languages apart."""


def clauses(text: str) -> Sequence[Clause]:
    """The clauses that have words, in order.

    Short words in capitals (AB, GCD) are symbols and no words, unless most words of the text are in capitals.
    """
    found: list[Clause] = []
    clause, size = Clause(), 0
    capitals: list[tuple[Clause, str]] = []
    num_words = num_capitals = 0
    for token in _TOKEN.finditer(text):
        script = token.lastgroup
        if script == "End":
            if size and (len(found) < MAX_CLAUSES or size >= LONG_CLAUSE):
                found.append(clause)
                clause, size = Clause(), 0
            continue
        assert script is not None
        word = token.group()
        if script == "Latin" and word.isupper() and len(word) > 1:
            num_capitals += 1
            if len(word) <= MAX_CAPITALS:
                capitals.append((clause, word))
                size += 1
                continue
        count = -(-len(word) // size_of) if (size_of := LETTERS_A_WORD.get(script)) else 1
        name = "Kana" if script in ("Hiragana", "Katakana") else script
        clause.words[name] = clause.words.get(name, 0) + count
        clause.texts.setdefault(name, []).append(word)
        size += count
        num_words += count
    found.append(clause)
    if 2 * num_capitals > num_words + len(capitals):
        for clause, word in capitals:
            clause.words["Latin"] = clause.words.get("Latin", 0) + 1
            clause.texts.setdefault("Latin", []).append(word)
    return [clause for clause in found if clause.words]
