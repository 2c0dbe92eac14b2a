"""Tables of the notation: characters, commands and names, and what each is read as."""
# ruff: noqa: SIM905

import math
from fractions import Fraction

CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ",
    "∗": "*", "÷": r"\div ", "∕": "/", "⁄": "/", "√": r"\sqrt ", "∛": r"\cbrt ", "π": r"\pi ", "∞": r"\infty ",
    "≤": r"\le ", "≥": r"\ge ", "≦": r"\le ", "≧": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≡": r"\equiv ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ",
    "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "∠": r"\angle ", "…": r"\ldots ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∣": r"\mid ", "→": r"\to ", "′": "'", "‘": "'", "’": "'", "″": "''",
    "“": '"', "”": '"', "、": ",", "。": ".", "∖": r"\setminus ", "∨": r"\lor ", "∧": r"\land ", "²": "^{2}",
    "³": "^{3}", "¹": "^{1}", "⁰": "^{0}", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}",
    "µ": "μ", "△": r"\triangle ",
}  # fmt: skip
# Full-width punctuation, as in Chinese text. Digits and letters have to be the plain ones.
CHARACTERS |= {chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if not chr(0x21 + i).isalnum()}
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
CHARACTERS |= {letter: f"\\{name} " for letter, name in zip(
    "αβγδεζηθικλνξρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
    ("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda nu xi rho sigma tau upsilon phi chi psi omega "
     "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega").split(), strict=True)}  # fmt: skip

GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho "
    "varrho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar angle triangle "
    "aleph Re Im prime nabla partial".split()
)  # fmt: skip
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth sech csch ln lg log exp sqrt cbrt "
    "abs floor ceil "
    "max min gcd lcm sgn arg".split()
)  # fmt: skip
ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "cosec": "csc",
    "arctg": "arctan", "sign": "sgn",
}  # fmt: skip
DROPPED = frozenset(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle "
    "textstyle scriptstyle "
    "limits nolimits quad qquad thinspace enspace medspace negthinspace mathstrut strut boldmath bf rm "
    "it tt sf mathop "
    "mathbin mathrel mathord nonumber notag noindent centering large Large small normalsize therefore".split()
)  # fmt: skip
UNWRAPPED = frozenset(
    "mathbf boldsymbol bm mathit mathcal mathsf mathnormal underline boxed fbox pmb mathbin ensuremath "
    "overrightarrow "
    "mathfrak mathscr vec hat widehat bar tilde overline dot".split()
)  # fmt: skip
"""Commands that dress their argument. What they say (a vector, a mean) is no part of a value."""
TEXT = frozenset("text textrm textbf textit textsf texttt textnormal mbox hbox mathrm operatorname emph".split())
WITH_ARGUMENT_DROPPED = frozenset("color hspace vspace tag label phantom hphantom vphantom kern".split())
OPERATORS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "pm", "mp": "mp", "le": "<=", "leq": "<=",
    "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=",
    "approx": "~", "sim": "~", "simeq": "~", "approxeq": "~", "equiv": "equiv", "in": "in", "notin": "notin",
    "cup": "cup", "cap": "cap", "setminus": "setminus", "backslash": "setminus", "lor": "or", "vee": "or",
    "land": "and", "wedge": "and", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|", "colon": ":",
    "ldots": "...", "dots": "...", "cdots": "...", "dotsc": "...", "dotsb": "...", "to": "to",
    "rightarrow": "to", "implies": "implies", "Rightarrow": "implies", "iff": "implies", "Leftrightarrow": "implies",
    "pmod": "pmod", "bmod": "mod", "mod": "mod", "over": "over", "choose": "choose", "parallel": "parallel",
    "perp": "perp", "cong": "cong", "forall": "forall", "exists": "exists", "subset": "subset",
    "subseteq": "subseteq", "ratio": ":",
}  # fmt: skip
BRACKETS = {
    "langle": "<(", "rangle": ")>", "lfloor": "floor(", "rfloor": ")floor", "lceil": "ceil(", "rceil": ")ceil",
    "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
}  # fmt: skip
ENVIRONMENTS = frozenset(
    "matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix array cases aligned align align* gathered".split()
)  # fmt: skip

_TEENS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = {word: value for value, word in enumerate(_TEENS)} | {
    f"{ten} {one}".strip(): 20 + 10 * i + j
    for i, ten in enumerate(_TENS)
    for j, one in enumerate(["", *_TEENS[1:10]])
}
NUMBER_WORDS |= {"hundred": 100, "one hundred": 100, "one thousand": 1000, "a dozen": 12}
BASE_WORDS = NUMBER_WORDS | {"binary": 2, "octal": 8, "decimal": 10, "hex": 16, "hexadecimal": 16}

_PARTS = (
    (2, "half", "halves"), (3, "third", "thirds"), (4, "fourth", "fourths"), (4, "quarter", "quarters"),
    (5, "fifth", "fifths"), (6, "sixth", "sixths"), (7, "seventh", "sevenths"), (8, "eighth", "eighths"),
    (9, "ninth", "ninths"), (10, "tenth", "tenths"),
)  # fmt: skip
VALUE_WORDS = {word: Fraction(value) for word, value in NUMBER_WORDS.items()}
"""Words alone -> their value: `twenty one`, `three quarters`."""
VALUE_WORDS |= {f"{how_many}{part}": Fraction(1, n) for n, part, _ in _PARTS for how_many in ("one ", "a ", "an ")}
VALUE_WORDS |= {f"{_TEENS[i]} {parts}": Fraction(i, n) for n, _, parts in _PARTS for i in range(2, 20)}

CONSTANTS = {"pi": math.pi, "e": math.e}
