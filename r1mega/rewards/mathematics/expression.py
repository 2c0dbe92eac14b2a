"""Tokens into one expression: a strict grammar by recursive descent, with no evaluation.

What does not belong to the expression (a unit, a word, a comma) ends it; whoever asked looks at what is left.
"""

from collections.abc import Sequence
from fractions import Fraction

from r1mega.rewards.mathematics.guards import TooBig, Unreadable
from r1mega.rewards.mathematics.names import letters
from r1mega.rewards.mathematics.notation import Token, number
from r1mega.rewards.mathematics.term import Term, num

MAX_DEPTH = 60
_CLOSING = {"(": ")", "[": "]", "{": "}", "floor(": ")floor", "ceil(": ")ceil"}
_INVERSES = {
    "sin": "arcsin", "cos": "arccos", "tan": "arctan", "sinh": "arcsinh", "cosh": "arccosh", "tanh": "arctanh",
    "cot": "arccot", "sec": "arcsec", "csc": "arccsc",
}  # fmt: skip


def parse(tokens: Sequence[Token]) -> Term:
    """The expression that `tokens` are, all of them. Raises Unreadable."""
    node, used = parse_front(tokens)
    if used != len(tokens):
        raise Unreadable(f"{tokens[used].text[:20]!r} is not expected there")
    return node


def parse_front(tokens: Sequence[Token]) -> tuple[Term, int]:
    """The longest expression that `tokens` begin with, and how many of them it is. Raises Unreadable if none."""
    parser = _Parser(tokens)
    node = parser.sum()
    return node, parser.used


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = letters(tokens)
        self._at = 0
        self._depth = 0
        self._bars = 0
        self._inner = 0
        """Brackets and arguments that are open: a degree sign in them is no unit of the whole."""

    @property
    def used(self) -> int:
        """How many of the tokens that were handed in have been read."""
        if self._at == len(self._tokens):
            return self._tokens[-1][1] + 1 if self._tokens else 0
        origin = self._tokens[self._at][1]
        if self._at and self._tokens[self._at - 1][1] == origin:
            raise Unreadable("a word that is half a product")
        return origin

    def _peek(self, ahead: int = 0) -> Token:
        position = self._at + ahead
        return self._tokens[position][0] if position < len(self._tokens) else _END

    def _is(self, *texts: str) -> bool:
        token = self._peek()
        return token.kind in ("op", "open", "close") and token.text in texts

    def _take(self, *texts: str) -> bool:
        if not self._is(*texts):
            return False
        self._at += 1
        return True

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise Unreadable(f"{text!r} is missing")

    def sum(self) -> Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooBig(f"terms nested more than {MAX_DEPTH} deep")
        terms: list[Term] = []
        if self._is("pm", "mp"):
            sign = 1 if self._peek().text == "pm" else -1
            self._at += 1
            terms.append(Term("pm", sign, (self._product(),)))
        else:
            terms.append(self._product())
        while self._is("+", "-", "pm", "mp"):
            operator = self._peek().text
            self._at += 1
            term = self._product()
            if operator == "-":
                term = Term("neg", None, (term,))
            elif operator != "+":
                term = Term("pm", 1 if operator == "pm" else -1, (term,))
            terms.append(term)
        self._depth -= 1
        result = terms[0] if len(terms) == 1 else Term("add", None, tuple(terms))
        if self._is("over", "choose"):
            kind = self._peek().text
            self._at += 1
            lower = self.sum()
            result = Term("div", None, (result, lower)) if kind == "over" else Term("fn", "binom", (result, lower))
        return result

    def _product(self) -> Term:
        result = self._signed()
        while True:
            if self._take("*"):
                result = Term("mul", None, (result, self._signed()))
            elif self._take("/"):
                result = Term("div", None, (result, self._signed()))
            elif self._begins_factor():
                result = Term("mul", None, (result, self._power()))
            else:
                return result

    def _signed(self) -> Term:
        negative = False
        while self._is("-", "+"):
            negative ^= self._peek().text == "-"
            self._at += 1
        node = self._power()
        return Term("neg", None, (node,)) if negative else node

    def _begins_factor(self) -> bool:
        token = self._peek()
        if token.kind in ("sym", "fn", "frac") or (token.kind == "word" and not token.upright):
            return True
        if token.kind == "num":
            before = self._tokens[self._at - 1][0] if self._at else _END
            if before.kind == "num":
                raise Unreadable("two numbers side by side")
            return before.kind in ("word", "sym", "close") or before.text == "!"
        if token.kind == "open":
            return token.text in _CLOSING
        return token.kind == "op" and token.text == "|" and self._bars == 0 and self._closes_bar()

    def _closes_bar(self) -> bool:
        return sum(1 for token, _ in self._tokens[self._at :] if token.text == "|") % 2 == 0

    def _power(self) -> Term:
        node = self._atom()
        while True:
            if self._take("^"):
                node = Term("pow", None, (node, self._exponent()))
            elif self._is("!"):
                self._at += 1
                kind = "factorial2" if self._take("!") else "factorial"
                node = Term("fn", kind, (node,))
            elif self._is("%"):
                self._at += 1
                node = Term("percent", None, (node,))
            elif self._peek().kind == "unit" and self._peek().text == "°" and self._inner:
                self._at += 1
                node = Term("div", None, (Term("mul", None, (node, Term("const", "pi"))), num(180)))
            elif self._is("'") and node.kind == "sym":
                self._at += 1
                node = Term("sym", f"{node.value}'")
            else:
                return node

    def _exponent(self) -> Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TooBig(f"powers nested more than {MAX_DEPTH} deep")
        negative = self._take("-")
        if not negative:
            self._take("+")
        node = self._atom()
        if self._take("^"):
            node = Term("pow", None, (node, self._exponent()))
        self._depth -= 1
        return Term("neg", None, (node,)) if negative else node

    def _group(self, closing: str) -> Term:
        self._inner += 1
        bars, self._bars = self._bars, 0
        node = self.sum()
        self._expect(closing)
        self._bars = bars
        self._inner -= 1
        return node

    def _atom(self) -> Term:
        token = self._peek()
        if token.kind == "num":
            return self._number()
        self._at += 1
        if token.kind == "open" and token.text in _CLOSING:
            node = self._group(_CLOSING[token.text])
            if token.text in ("floor(", "ceil("):
                return Term("fn", token.text[:-1], (node,))
            return node
        if token.kind == "op" and token.text == "|":
            self._bars += 1
            self._inner += 1
            node = self.sum()
            self._expect("|")
            self._bars -= 1
            self._inner -= 1
            return Term("fn", "abs", (node,))
        if token.kind == "frac":
            return self._command(token.text)
        if token.kind == "fn":
            return self._function(token.text)
        if token.kind == "sym" or (token.kind == "word" and len(token.text) == 1):
            return self._symbol(token)
        raise Unreadable(f"{token.text[:20]!r} is not expected there" if token is not _END else "it breaks off")

    def _number(self) -> Term:
        """A number token, with the fraction behind an integer that makes it a mixed number."""
        value = number(self._peek().text)
        whole = self._peek().text.isdigit()
        self._at += 1
        following = self._peek()
        if not whole:
            return Term("num", value)
        if following.kind == "frac" and following.text == "frac" and not (self._at > 1 and self._before_is("^", "_")):
            start = self._at
            self._at += 1
            part = self._command("frac")
            upper, lower = part.args
            if upper.kind == lower.kind == "num" and isinstance(lower.value, Fraction) and lower.value > 0:
                return Term("num", value + upper.value / lower.value)  # pyright: ignore[reportOperatorIssue]
            self._at = start
        elif following.kind == "num" and following.spaced and following.text.isdigit():
            slash, lower = self._peek(1), self._peek(2)
            if slash.text == "/" and lower.kind == "num" and lower.text.isdigit() and int(lower.text):
                self._at += 3
                return Term("num", value + Fraction(int(following.text), int(lower.text)))
        if self._is("_"):
            raise Unreadable("a number with a subscript")
        return Term("num", value)

    def _before_is(self, *texts: str) -> bool:
        return self._tokens[self._at - 2][0].text in texts

    def _command(self, name: str) -> Term:
        self._depth += 1
        self._inner += 1
        if self._depth > MAX_DEPTH:
            raise TooBig(f"commands nested more than {MAX_DEPTH} deep")
        if name in ("sqrt", "cbrt"):
            index = num(3 if name == "cbrt" else 2)
            if name == "sqrt" and self._take("["):
                index = self._group("]")
            node = Term("fn", "root", (self._operand(), index))
        else:
            node = Term("div" if name == "frac" else "fn", None if name == "frac" else "binom",
                        (self._operand(), self._operand()))  # fmt: skip
            if node.args[0] == Term("sym", "d"):
                raise Unreadable("a derivative")
        self._depth -= 1
        self._inner -= 1
        return node

    def _operand(self) -> Term:
        """An argument of a command: a group, or a single digit or letter as in `\\frac12`."""
        token = self._peek()
        if token.kind == "num" and token.text.isdigit() and len(token.text) > 1:
            first, rest = token.text[0], token.text[1:]
            self._tokens[self._at] = (Token("num", rest), self._tokens[self._at][1])
            return num(int(first))
        if token.kind == "num":
            self._at += 1
            return Term("num", number(token.text))
        return self._atom()

    def _function(self, name: str) -> Term:
        self._inner += 1
        power: Term | None = None
        base: Term | None = None
        while self._is("^", "_"):
            if self._take("^"):
                power = self._exponent()
            else:
                self._at += 1
                base = self._atom()
        if name in ("max", "min", "gcd", "lcm"):
            raise Unreadable(f"the function {name}")
        argument = self._argument()
        self._inner -= 1
        if name == "log" and base is not None:
            node = Term("fn", "log", (argument, base))
        elif base is not None:
            raise Unreadable(f"{name} with a subscript")
        elif name in ("sqrt", "cbrt"):
            node = Term("fn", "root", (argument, num(3 if name == "cbrt" else 2)))
        elif name == "exp":
            node = Term("pow", None, (Term("const", "e"), argument))
        else:
            name = {"lg": "log"}.get(name, name)
            if name in _INVERSES and power == Term("neg", None, (num(1),)):
                return Term("fn", _INVERSES[name], (argument,))
            node = Term("fn", name, (argument, num(10)) if name == "log" else (argument,))
        return node if power is None else Term("pow", None, (node, power))

    def _argument(self) -> Term:
        """What a function stands before: one group, or a product of simple factors as in `\\sin 2x`."""
        token = self._peek()
        if token.kind == "open" and token.text in _CLOSING:
            node = self._atom()
            while self._take("^"):
                node = Term("pow", None, (node, self._exponent()))
            return node
        if self._take("-"):
            return Term("neg", None, (self._argument(),))
        if token.kind == "fn":
            return self._power()
        node = self._power()
        while self._peek().kind in ("sym", "frac", "num") or (
            self._peek().kind == "word" and not self._peek().upright
        ):
            if not self._begins_factor():
                break
            node = Term("mul", None, (node, self._power()))
        return node

    def _symbol(self, token: Token) -> Term:
        name = token.text
        if name in ("angle", "triangle") and self._peek().kind in ("word", "sym"):
            while self._peek().kind in ("word", "sym"):
                name += self._peek().text
                self._at += 1
            return Term("sym", name)
        if self._take("_"):
            name += "_" + self._subscript()
        elif name in ("pi", "e", "i", "inf"):
            return Term("const", name)
        if name in ("f", "g") and self._is("("):
            self._at += 1
            return Term("fn", f"?{name}", (self._group(")"),))
        return Term("sym", name)

    def _subscript(self) -> str:
        """The name in a subscript, as its tokens are written."""
        if self._take("{"):
            texts = []
            while not self._take("}"):
                if self._peek() is _END:
                    raise Unreadable("a subscript that is not closed")
                texts.append(self._peek().text)
                self._at += 1
            return "".join(texts)
        self._at += 1
        return self._tokens[self._at - 1][0].text if self._at <= len(self._tokens) else ""


_END = Token("op", "end of text")
