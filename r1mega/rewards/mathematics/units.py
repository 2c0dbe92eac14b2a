"""Units: `5 cm`, `\\$3`, `30^\\circ`, `9.8 m/s^2`, `12 apples`. One spelling for each; no conversion."""
# ruff: noqa: SIM905

import re
from collections.abc import Sequence

from r1mega.rewards.mathematics.guards import Unreadable
from r1mega.rewards.mathematics.notation import Token

_SPELLINGS = """
m: meter metre; cm: centimeter centimetre; mm: millimeter millimetre; km: kilometer kilometre; dm: decimeter
decimetre; nm: nanometer nanometre; in: inch inches; ft: foot feet; yd: yard; mi: mile; g: gram gramme gm; kg:
kilogram; mg: milligram; lb: lbs; pound; oz: ounce; t: ton tonne; s: sec second; ms: millisecond; min: minute mins;
h: hour hr hrs; day; week wk; month mo; year yr yrs; L: liter litre l; mL: milliliter millilitre ml; $: dollar usd
USD; ¢: cent; €: euro EUR; £: GBP; ¥: yuan yen; ₹: rupee; °: degree deg; °C: celsius; °F: fahrenheit; K: kelvin;
N: newton; J: joule; kJ: kilojoule; W: watt; kW: kilowatt; V: volt; A: ampere amp; Hz: hertz; Pa: pascal; kPa:
kilopascal; ha: hectare; acre; rad: radian; mph; kph; mol: mole; gal: gallon; qt: quart; pt: pint; cup; unit; kHz:
kilohertz; MHz: megahertz; eV; kcal; cal: calorie; bit; byte; rpm; dozen
"""  # fmt: skip
_CANONICAL: dict[str, str] = {}
for _entry in re.split(r";\s*", _SPELLINGS.strip()):
    _name, _, _others = _entry.partition(":")
    for _word in (_name.strip(), *_others.split()):
        _CANONICAL[_word] = _name.strip()
        if len(_word) > 2 and _word.islower():
            _CANONICAL[_word + "s"] = _name.strip()
_CJK = {
    "元": "¥", "米": "m", "厘米": "cm", "千米": "km", "公里": "km", "毫米": "mm", "克": "g", "千克": "kg",
    "公斤": "kg", "度": "°",
    "小时": "h", "分钟": "min", "秒": "s", "天": "day", "年": "year", "岁": "year", "个": "", "只": "",
    "人": "", "种": "", "次": "", "平方米": "m^2", "平方厘米": "cm^2", "立方米": "m^3", "立方厘米": "cm^3", "升": "L",
    "毫升": "mL", "辆": "", "本": "", "件": "", "张": "", "棵": "", "支": "", "名": "", "台": "",
}  # fmt: skip
_MADE_OF_OTHERS = {
    "mph": {"mi": 1, "h": -1}, "kph": {"km": 1, "h": -1}, "m^2": {"m": 2}, "cm^2": {"cm": 2}, "m^3": {"m": 3},
    "cm^3": {"cm": 3},
}  # fmt: skip
_LETTERS = frozenset("m s g h L l N J W V A K".split())
_NOT_UNITS = frozenset(
    "or and not is are no than if when where for with from to at most least about approximately more less between "
    "either neither but plus minus times over any all none except only also maybe perhaps through until inclusive "
    "both mod modulo base x y z n k pi choose solution solutions real complex number numbers integer".split()
)
_MAX_WORDS = 5


def agree(first: str | None, second: str | None) -> bool:
    """Whether two units are the same, or one is not said. A pound is one of weight or of sterling."""
    return None in (first, second) or first == second or {first, second} in ({"pound^1", "lb^1"}, {"pound^1", "£^1"})


def is_unit(word: str) -> bool:
    """Whether a word of several letters is a unit by name, so that behind a number it is no product of letters."""
    named = word in _CANONICAL and word not in ("cup", "gal", "pt", "qt", "mo", "cal", "t")
    return named or word in ("sq", "square", "cubic")


def is_unit_letter(word: str) -> bool:
    """Whether a single letter is an abbreviated unit, where it stands upright or behind a space."""
    return word in _LETTERS


def unit_of(tokens: Sequence[Token]) -> str | None:
    """The unit that `tokens` are, in one spelling; None where they say nothing (`units`, brackets around a unit).

    Raises Unreadable where they are no unit.
    """
    while len(tokens) > 1 and tokens[0].text in ("(", "[", "{") and tokens[-1].text in (")", "]", "}"):
        tokens = tokens[1:-1]
    powers: dict[str, int] = {}
    pending, sign, words, last = 1, 1, 0, ""
    for position, token in enumerate(tokens):
        text = token.text
        if token.kind in ("word", "unit") or (token.kind == "sym" and text in ("mu", "Omega")):
            words += 1
            lower = text.lower()
            if lower in _NOT_UNITS or words > _MAX_WORDS:
                raise Unreadable(f"{text[:20]!r} is no unit")
            if lower in ("square", "sq", "cubic", "cubed", "squared", "per"):
                if lower == "per":
                    sign = -1
                elif lower in ("cubed", "squared"):
                    powers[last] = powers.get(last, 1) * (2 if lower == "squared" else 3)
                else:
                    pending = 2 if lower in ("square", "sq") else 3
                continue
            measured = position and tokens[position - 1].text == "°" and text in ("C", "F")
            last = f"°{text}" if measured else _spelling(text)
            if last in _MADE_OF_OTHERS:
                for name, power in _MADE_OF_OTHERS[last].items():
                    powers[name] = powers.get(name, 0) + power * sign
                continue
            if last in ("°C", "°F"):
                powers.pop("°", None)
            powers[last] = powers.get(last, 0) + pending * sign
            pending = 1
        elif token.text == "^" and last:
            exponent = [t.text for t in tokens[position + 1 : position + 5]]
            match = re.match(r"\{?(-?)(\d)", "".join(exponent))
            if match is None:
                raise Unreadable("a unit with an unknown power")
            powers[last] = powers[last] * int(match[2]) * (-1 if match[1] else 1)
        elif text == "/":
            sign = -1
        elif text not in ("*", ".", "{", "}", "(", ")", "-") and not (
            token.kind == "num" and tokens[position - 1].text in ("^", "{", "-")
        ):
            raise Unreadable(f"{text[:20]!r} is no unit")
    powers = {name: power for name, power in powers.items() if power and name not in ("", "unit")}
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items())) or None


def _spelling(word: str) -> str:
    if word in _CJK:
        return _CJK[word]
    if not word.isascii() and word not in "€£¥₹¢°":
        raise Unreadable(f"{word[:20]!r} is no unit")
    for spelling in (word, word.lower()):
        if spelling in _CANONICAL:
            return _CANONICAL[spelling]
    word = word.lower()
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(ses|xes|ches|shes)$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
