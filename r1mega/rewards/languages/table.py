"""The languages that a thought may be asked to be in, by ISO 639-1, and the scripts that each is written in.

What shares its scripts with no other language is told by them alone. Imports nothing: a config is checked by it.
"""

from collections.abc import Mapping

SPACED = (
    "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Tamil",
    "Telugu", "Kannada", "Malayalam", "Sinhala", "Armenian", "Georgian", "Ethiopic", "Hangul",
)  # fmt: skip
"""Scripts whose words stand between spaces, by Unicode's names."""
UNSPACED = ("Thai", "Lao", "Khmer", "Myanmar")
"""Scripts whose words have nothing between them: four letters begun are taken for a word."""

_BY_SCRIPT = {
    "Latin": "af ca cs cy da de en es et eu fi fr ga hr hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi",
    "Cyrillic": "be bg kk ky mk mn ru sr uk",
    "Arabic": "ar fa ur",
    "Devanagari": "hi mr ne",
    "Bengali": "bn",
    "Greek": "el", "Hebrew": "he", "Gurmukhi": "pa", "Gujarati": "gu", "Tamil": "ta", "Telugu": "te", "Kannada": "kn",
    "Malayalam": "ml", "Sinhala": "si", "Armenian": "hy", "Georgian": "ka", "Ethiopic": "am", "Hangul": "ko",
    "Thai": "th", "Lao": "lo", "Khmer": "km", "Myanmar": "my",
}  # fmt: skip

SCRIPTS: Mapping[str, frozenset[str]] = {
    **{code: frozenset([script]) for script, codes in _BY_SCRIPT.items() for code in codes.split()},
    "zh": frozenset(["Han"]),
    "ja": frozenset(["Han", "Kana"]),
}
"""Language -> its scripts; Kana is both syllabaries."""


def of_one_script(script: str) -> tuple[str, ...]:
    """The languages of a script that is written between spaces, sorted."""
    return tuple(sorted(_BY_SCRIPT.get(script, "").split()))
