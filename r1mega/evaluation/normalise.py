r"""Text as its words and numbers alone, so that neither case nor spacing, punctuation, Unicode forms or LaTeX's
spellings of one formula hide that two texts are the same.

    Let $x^{2}+\dfrac{1}{2}\left( y \right)=1{,}000$.   let \(x²+½y=1000\)      both: let x 2 1 2 y 1000

What is left: runs of letters and runs of digits, each a word; Chinese and Japanese characters, each a word by itself,
since nothing separates their words. What counts for nothing: case (casefold), Unicode compatibility forms (NFKC:
full-width letters, ligatures, superscripts), invisible characters, spaces, punctuation and operators, a thousands
separator within a number, LaTeX's delimiters, braces, spacing, fonts and sizes, and which command or character writes
a symbol (\le, \leq and ≤ are operators and go; \pi and π are "pi", \sqrt and √ "sqrt").
"""

import itertools
import re
import unicodedata

_SETTING = """
    frac dfrac tfrac cfrac left right middle big bigg bigl bigr biggl biggr
    text textbf textit textrm textsf texttt emph mathrm mathbf mathit mathsf mathbb mathcal mathfrak mathscr
    boldsymbol bm rm bf it operatorname mbox hbox fbox boxed displaystyle textstyle scriptstyle limits nolimits
    quad qquad hspace vspace hfill phantom hphantom vphantom smash strut thinspace enspace newline par noindent
    begin end label tag nonumber cdot times div ast star pm mp le leq leqslant lt ge geq geqslant gt ne neq
    equiv approx sim simeq cong colon to rightarrow longrightarrow leftarrow mapsto implies iff
    leftrightarrow ldots cdots dots dotsc dotsb vdots ddots mid vert lvert rvert lbrace rbrace
    lbrack rbrack langle rangle lfloor rfloor lceil rceil overline underline bar hat widehat vec tilde widetilde
    overrightarrow prime circ degree backslash slash setminus wedge vee land lor neg lnot
"""
NOTHING = frozenset(_SETTING.split())
"""LaTeX commands, in lower case, that say how something is set, or write an operator or a punctuation mark."""

NAMED = {
    "varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi", "varrho": "rho", "varsigma": "sigma",
    "bmod": "mod", "pmod": "mod", "varnothing": "emptyset",
}  # fmt: skip
"""LaTeX commands that are another spelling of one; all others are the word that they are."""

GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "sigma tau upsilon phi chi psi omega"
)
CHARACTERS = {
    **{chr(0x3B1 + i + (i > 16)): f" {name} " for i, name in enumerate(GREEK.split())},
    "ς": " sigma ", "√": " sqrt ", "∞": " infty ", "∑": " sum ", "∏": " prod ", "∫": " int ", "∈": " in ",
    "∪": " cup ", "∩": " cap ", "⊂": " subset ", "⊆": " subseteq ", "∅": " emptyset ", "∠": " angle ",
    "△": " triangle ", "∥": " parallel ", "⊥": " perp ", "∂": " partial ", "∇": " nabla ", "∀": " forall ",
    "∃": " exists ",
}  # fmt: skip
"""Characters that have a LaTeX command, after case folding, and the word that the command is here."""

_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[^{}\n]{0,40}\}")
_COMMAND = re.compile(r"\\([a-z]+)\*?")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9a-z])")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:,(?:\\!)?|\{,\}|\\,|\{\\,\})(?=[0-9]{3}(?![0-9]))")
_THIN_SPACE = re.compile("(?<=[0-9])[\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_SET_APART = re.compile("[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u215f]+")
"""Superscripts, subscripts and fractions of one character: x² is x^2, and no x2."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_CHARACTER = re.compile("[" + "".join(CHARACTERS) + "]")
_IDEOGRAPH = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_NO_WORD = re.compile("[^\\w\u0300-\u036f\u0900-\u0e7f]|_")
"""Neither letter nor digit, nor one of the marks that belong to the letters before them."""

_WORD = re.compile("[a-z\u0080-\U0010ffff]+|[0-9]+")
"""A word of a normalised text, as ngrams.py finds them."""


def normalise(text: str) -> str:
    """Lower-case text in which everything but ASCII letters, ASCII digits and other characters stands for a space."""
    plain = text.isascii()
    text = text.lower() if plain else _folded(text)
    if "," in text or "\\" in text:
        text = _THOUSANDS.sub("", text)
    if "\\" in text:
        text = _ENVIRONMENT.sub(" ", text)
        text = _SHORT_FRACTION.sub(r" \1 \2 ", text)
        text = _COMMAND.sub(_word, text)
    return text if plain else _only_words(text)


def all_words(text: str, limit: int) -> str | None:
    """The words of a normalised text, a space between them; None where there are `limit` or more."""
    words = [found[0] for found in itertools.islice(_WORD.finditer(text), limit)]
    return " ".join(words) if len(words) < limit else None


def _word(command: re.Match[str]) -> str:
    name = command[1]
    return " " if name in NOTHING else f" {NAMED.get(name, name)} "


def _folded(text: str) -> str:
    text = _THIN_SPACE.sub("", _INVISIBLE.sub("", text))
    text = unicodedata.normalize("NFKC", _SET_APART.sub(r" \g<0> ", text))
    return unicodedata.normalize("NFKC", text.casefold())


def _only_words(text: str) -> str:
    text = _NO_WORD.sub(" ", _CHARACTER.sub(lambda found: CHARACTERS[found[0]], text))
    return _IDEOGRAPH.sub(r" \1 ", text)
