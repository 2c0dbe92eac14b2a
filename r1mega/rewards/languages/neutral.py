"""What of a text is no word of any language: code, formulae, numbers, quoted names, addresses; taken out before words
are counted.

Untrusted text: every rule is one pass whose repetitions are bounded or give nothing back, so the time is linear in
the text's length.

    code        fences to their end, or to the text's; spans in backticks; lines that are a statement of Python or C;
                names with _, calls, camelCase, a.b, paths
    formulae    $..$, $$..$$, \\(..\\), \\[..\\], environments, commands with their braces; runs of signs with a
                digit, or an operator between names of three letters at most; a letter alone, unless it is a word
                before a word
    numbers     with their unit
    names       in quotation marks: seven words or twelve Chinese or Japanese characters at most, on one line, with no
                end of a sentence among them; in title marks
"""

import functools
import re
from collections.abc import Iterator

MAX_QUOTED_WORDS, MAX_QUOTED_CHARACTERS = 7, 12
MAX_CODE_SPAN = 2_000
"""Characters between the backticks of a span in a line."""
MAX_STATEMENT = 200
"""Characters of a line of code."""
_ONE_LETTER_WORDS = {
    "cs": "aiksouvz", "da": "iå", "en": "ai", "es": "aeouy", "fr": "aày", "hu": "aás", "it": "aeioè", "pl": "aiouwz",
    "pt": "aeoàéó", "ro": "aoe", "sk": "aikosuvz", "sl": "aikosvz", "sv": "iåö", "vi": "à", "hr": "aiksouz",
    "el": "ηοή",
}  # fmt: skip
"""Language -> its words of one letter."""
_VERBS = "is|are|be|and|or|to|was|by|with|must|can|has|equals|times|plus|minus|divides|gives|means"
"""What follows a variable, and never an English article."""
_UNITS = (
    "km|cm|mm|nm|m|kg|mg|g|t|ms|ns|s|min|h|kHz|MHz|GHz|Hz|kB|MB|GB|TB|ml|mL|dl|l|L|kW|W|kV|V|A|N|J|kJ|Pa|kPa|mol|K|eV"
)
_FUNCTIONS = "sin|cos|tan|cot|log|ln|lg|exp|lim|max|min|gcd|lcm|mod|det|arcsin|arccos|arctan|sqrt"

_LATIN = "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ"
_GREEK = "Ͱ-ͽͿ-Ͼἀ-῾"
_ABC = _LATIN + _GREEK + "Ѐ-ӿ"
"""Letters of which a letter alone is a part; Chinese and the like may stand right beside a name of mathematics."""
_MARKS = "\u0300-\u036f"
_DIGIT = r"\d²³¹⁰-₉¼-¾"

_BACKTICKS = re.compile(r"`+")
_TILDES = re.compile(r"^[ ]{0,3}~{3,}+[^\n]*+\n(?s:.)*?(?:^[ ]{0,3}~{3,}+|\Z)", re.MULTILINE)
_STATEMENT = re.compile(
    r"(?:def|class) \w+[(:]|(?:import|from) [\w.]+(?:$| import | as )|#\s?include\b|using namespace\b|print\("
    r"|for \w+(?:, ?\w+)* in (?!the |all ).*:$|(?:else|try|finally):$"
    r"|(?:if|elif|while|with|except)\b(?=.*(?:[=<>]|\w\()).*:$"
    r"|[A-Za-z_][\w.]*(?:\[[^\]]*\])? ?[-+*/]?= ?(?!.*[A-Za-z] [A-Za-z]{2}).",
    re.ASCII,
)
_INVISIBLE = re.compile(
    "[\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0001-\U000e007f]+"
)
"""Format characters (Cf): soft hyphens, joiners of no width, marks of direction."""
_DOLLARS = (
    re.compile(r"(?<!\\)\$\$[^$]++\$\$"),
    re.compile(r"(?<!\\)\$(?=\S)(?:[^$\n\\]|\\[^\n])++(?<=\S)\$(?!\d)"),
)
_IN_BRACES = r"(?:[^{}\n]|\{(?:[^{}\n]|\{[^{}\n]{0,99}+\}){0,99}+\}){0,500}+"
_LATEX = (
    re.compile(r"\\\[(?:[^\\]|\\(?![\[\]]))*+\\\]"),
    re.compile(r"\\\((?:[^\\]|\\(?![()]))*+\\\)"),
    re.compile(r"\\begin\{([A-Za-z]{1,20}\*?)\}(?:[^\\]|\\(?!(?:begin|end)\{))*+\\end\{\1\}"),
    re.compile(rf"\\(?:[A-Za-z]{{1,40}}+\*?|.)(?:\[[^\[\]\n]{{0,100}}+\])?+(?:\{{{_IN_BRACES}\}})*+"),
)
_ADDRESSES = {
    "://": re.compile(r"(?<![A-Za-z0-9])[a-z][a-z0-9+.-]{1,9}+://[!-~]{0,2000}[A-Za-z0-9/=&#%_-]"),
    "www.": re.compile(r"(?<![A-Za-z0-9])www\.[!-~]{0,2000}[A-Za-z0-9/=&#%_-]"),
    "@": re.compile(r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9_.+-]{1,64}+@[A-Za-z0-9-]{1,63}+(?:\.[A-Za-z0-9-]{1,63}+){1,8}+"),
    "/": re.compile(r"(?<![A-Za-z0-9_/.<])(?:~|\.{1,2}+)?/(?:[A-Za-z0-9_.-]{1,100}+/){1,50}+[A-Za-z0-9_.-]{0,100}+"),
    "<": re.compile(r"</?[A-Za-z][\w-]{0,30}+(?:\s[\w-]{1,30}+=\"[^\"\n]{0,200}+\")*+\s?/?>"),
}
"""What an address or a tag has in it -> its pattern."""
_QUOTED = re.compile(
    r"“[^“”\n]{1,80}+”|„[^„“”\n]{1,80}+[“”]|«[^«»\n]{1,80}+»|‹[^‹›\n]{1,80}+›|「[^「」\n]{1,80}+」|『[^『』\n]{1,80}+』"
    rf"|\"(?=\S)[^\"\n]{{1,80}}+(?<=\S)\"|(?<![{_ABC}{_DIGIT}])‘[^‘’\n]{{1,80}}+’(?![{_ABC}])"
    rf"|(?<![{_ABC}{_DIGIT}'])'(?=[^\s'])(?:[^'\n]|(?<=[{_ABC}])'(?=[{_ABC}])){{1,80}}+(?<=\S)'(?![{_ABC}])"
)
_TITLES = re.compile(r"《[^《》\n]{1,80}+》|〈[^〈〉\n]{1,80}+〉")
_SENTENCE_END = re.compile(r"[.!?]\s|[。！？]")
_CHINESE_OR_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_NUMBERS = re.compile(
    rf"(?<![{_ABC}{_DIGIT}_])[{_DIGIT}](?:[.,]?[{_DIGIT}])*+"
    rf"(?:[ \u00a0]?(?:{_UNITS})(?:/(?:{_UNITS}))?[²³]?(?![{_ABC}{_DIGIT}(\u2019'-]))?+(?![{_LATIN}])"
)
_NAMES_OF_CODE = re.compile(
    r"(?<![A-Za-z0-9_.])(?:"
    r"[A-Za-z_][A-Za-z0-9_]*+(?:\.[A-Za-z_][A-Za-z0-9_]*+)*+'{0,3}+(?=\()(?!\((?:e?s|n|in|en)\))"  # no plural(s)
    r"|[a-z]++[A-Z][A-Za-z0-9]*+"  # camelCase
    r"|[a-z_][a-z0-9_]*+(?:\.[a-z_][A-Za-z0-9_]*+)++(?![A-Za-z0-9_])"  # a.b
    r")"
)
_OPERATOR = "=+*/^<>≤≥≠≈≡·×÷"
_SYMBOLS = re.compile(
    rf"(?<![{_ABC}{_DIGIT}])(?:{_FUNCTIONS})(?=\s?[{_DIGIT}(\\|{_GREEK}]|\s[A-Za-z](?![{_ABC}']))"
    rf"|(?<![{_ABC}])(?:[A-Za-z]{{1,4}}+[{_GREEK}][A-Za-z]?|[{_GREEK}][A-Za-z]{{1,2}}|[A-Za-z]-[A-Za-z])(?![{_ABC}])"
    rf"|(?<![{_ABC}])[a-z]{{2}}(?=\s?[{_OPERATOR}])|(?<=[{_OPERATOR}]\s)[a-z]{{2}}(?![{_ABC}])"
)
"""Functions before what they are of; sinθ, Δx, a-b; two letters beside an operator, which are a product."""
_SIGN = r"0-9_^=<>+*/\\{}|~%&#@"
_SIGNS = re.compile(rf"(?<![A-Za-z'{_SIGN}-])(?:[A-Za-z'-]*+[{_SIGN}])++[A-Za-z'-]*+")
"""A run of ASCII letters and signs, with at least one sign."""
_MARKUP = "*_~#>'-/"
_STRONG = re.compile(r"[0-9_^=<>\\{}|@#]")
_LETTERS = re.compile(r"[A-Za-z]+")
_TO_SPACES = str.maketrans(dict.fromkeys("^=<>+*/\\{}|~%&#@", " "))


def without_neutral(text: str, target: str) -> str:
    """The text with everything that is no word taken out; a fence leaves a line's end, all else a space.

    Args:
        target: language (ISO 639-1) whose words of one letter are words; English's are in any case.
    """
    if not text.isascii():
        text = _TITLES.sub(" ", _INVISIBLE.sub("", text))
    text = "".join(_outside_backticks(text))
    if "~~~" in text:
        text = _TILDES.sub("\n", text)
    text = "\n".join("" if _is_code(line) else line for line in text.split("\n"))
    for formula in (_DOLLARS if "$" in text else ()) + (_LATEX if "\\" in text else ()):
        text = formula.sub(" ", text)
    for sign, address in _ADDRESSES.items():
        if sign in text:
            text = address.sub(" ", text)
    text = _QUOTED.sub(_unless_long, text)
    for rule in (_NAMES_OF_CODE, _SYMBOLS, _NUMBERS):
        text = rule.sub(" ", text)
    return _one_letter(target).sub(" ", _SIGNS.sub(_unless_words, text))


def _outside_backticks(text: str) -> Iterator[str]:
    """Parts of the text that stand in no code, each behind what closes the code before it."""
    runs = [(run.start(), run.end()) for run in _BACKTICKS.finditer(text)]
    position, i = 0, 0
    while i < len(runs):
        start, end = runs[i]
        is_fence = end - start >= 3 and _begins_line(text, start)
        j = _closing(text, runs, i, is_fence)
        if j is None and not is_fence:
            i += 1
            continue
        yield text[position:start] + ("\n" if is_fence else " ")
        if j is None:
            return
        position, i = runs[j][1], j + 1
    yield text[position:]


def _is_code(line: str) -> bool:
    """Whether a line outside fences is a statement of a programming language."""
    bare = line.strip()
    if not bare.isascii() or len(bare) > MAX_STATEMENT:
        bare = bare.partition("#")[0].rstrip()  # a comment may be in any language
    if not bare or not bare.isascii() or len(bare) > MAX_STATEMENT:
        return False
    if bare.endswith((";", "{", "}")):
        return bare in "{};" or any(sign in bare for sign in "=({")
    return bool(_STATEMENT.match(bare)) or (line[0].isspace() and bare.startswith(("return ", "yield ")))


def _begins_line(text: str, start: int) -> bool:
    """Whether nothing but three spaces at most stands before it on its line."""
    before = text[max(0, start - 4) : start]
    line = before.rpartition("\n")[2]
    return not line.strip(" ") and len(line) < 4


def _closing(text: str, runs: list[tuple[int, int]], i: int, is_fence: bool) -> int | None:
    """Which run of backticks closes the one at i."""
    start, end = runs[i]
    for j in range(i + 1, len(runs)):
        found, stop = runs[j]
        if is_fence:
            if stop - found >= end - start:
                return j
        elif found - end > MAX_CODE_SPAN:
            return None
        elif stop - found == end - start:
            return None if "\n\n" in text[end:found] else j
    return None


def _unless_long(quoted: re.Match[str]) -> str:
    """A quoted name taken out; a sentence stays."""
    inside = quoted.group()[1:-1]
    is_name = (
        len(inside.split()) <= MAX_QUOTED_WORDS
        and _SENTENCE_END.search(inside + " ") is None
        and len(_CHINESE_OR_JAPANESE.findall(inside)) <= MAX_QUOTED_CHARACTERS
    )
    return " " if is_name else quoted.group()


def _unless_words(run: re.Match[str]) -> str:
    """A run of signs and letters taken out where it is a formula or a name of code; words with marks around stay."""
    inner = run.group().strip(_MARKUP)
    longest = max(map(len, _LETTERS.findall(inner)), default=0)
    is_formula = longest <= 3 and (_STRONG.search(inner) or (longest == 1 and len(inner) > 1))
    if is_formula or any(sign.isdigit() or sign == "_" for sign in inner):
        return " "
    return f" {inner.translate(_TO_SPACES)} "


@functools.cache
def _one_letter(target: str) -> re.Pattern[str]:
    """A Latin or Greek letter alone, but for the words of one letter with a word behind them."""
    words = "".join(sorted(set("ai" + _ONE_LETTER_WORDS.get(target, ""))))
    return re.compile(
        rf"(?<![{_ABC}{_MARKS}{_DIGIT}'\u2019-])"
        rf"(?!(?i:[{words}])[ \n](?!(?:{_VERBS})\b)[{_LATIN}{_GREEK}][{_MARKS}]{{0,4}}[{_ABC}])"
        rf"[{_LATIN}{_GREEK}][{_MARKS}]{{0,4}}+(?![{_ABC}{_MARKS}{_DIGIT}'\u2019-])"
    )
