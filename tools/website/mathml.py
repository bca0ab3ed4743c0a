"""Equations as MathML: those of members, a line of plain text each, and those of documents, in LaTeX.

    l_ij = q_i.k_j / sqrt(d) - m_h |i - j|,  m_h = 2^(-8h/H)

Two spaces after a comma or a semicolon begin a new line. `a / b` is a fraction of the whole product before it; without
spaces, as in `8h/H`, it stays in the line. `_` and `^` take the next symbol or group; a subscript of up to two letters
is letters, as in `l_ij`. Words stay words.
"""

import re
from dataclasses import dataclass
from html import escape

GREEK = {"alpha": "α", "beta": "β", "lambda": "λ", "delta": "δ", "sigma": "σ", "psi": "ψ", "pi": "π"}
BIG = {"sum": "∑", "prod": "∏", "int": "∫"}
"""Operators that take limits."""
AROUND = {"floor": "⌊⌋", "ceil": "⌈⌉"}
NAMED = ("base", "low", "high")
"""Words that are quantities, and so parts of a product."""
SIGNS = {
    **{"->": "→", "<=": "≤", ">=": "≥", "...": "⋯", "..": "…", "-": "−", "*": "∗", "~": "∼", "'": "′", ".": "·"},
    **{sign: sign for sign in "+=<>,;:/"},
}
LONG = 80
"""A statement with more characters begins a new line after each comma that follows a word."""
PAIRS = {"(": ")", "[": "]", "{": "}", "|": "|"}
_DOLLARS = re.compile(
    r"^(?P<fence>`{3,}).*?^(?P=fence)`*$|(?P<tick>`+).+?(?<!`)(?P=tick)(?!`)"
    r"|\$\$(?P<block>.+?)\$\$|(?<![\w$])\$(?P<line>(?! )[^$`\n]+?(?<! ))\$(?![\w$])",
    re.DOTALL | re.MULTILINE,
)
_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)|(?P<word>[a-z]+'s\b|p-RoPE|and/or|[A-Za-z]+\d*)|(?P<sign>->|<=|>=|\.\.\.|\.\.|\S)"
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    spaced: bool
    """Whether a space stands before it."""


@dataclass(frozen=True)
class _Piece:
    """A piece of a row."""

    markup: str
    kind: str
    """factor, sign or text."""
    spaced: bool
    inner: str = ""
    """Of a group in round brackets what stands inside: a fraction needs no brackets."""


def equation(text: str) -> str:
    """Return an equation as HTML, a line for each of its statements.

    Args:
        text: as members state it.

    Raises:
        ValueError: if a bracket has no partner.
    """
    statements = re.split(r"[,;]\s{2,}", text)
    cases = [re.split(r"(?<=[a-z]{2},)\s", one) if len(one) > LONG else [one] for one in statements]
    lines = [_Parser(line).whole() for case in cases for line in case]
    return (
        '<div class="equation">'
        + "".join(f'<p><math displaystyle="true">{line}</math></p>' for line in lines)
        + "</div>"
    )


def with_equations(text: str) -> str:
    """Return a document with its equations in LaTeX, `$w_i$` and `$$w_i$$` as GitHub shows them, as MathML.

    Args:
        text: in Markdown.
    """
    from latex2mathml.converter import convert

    def made(match: re.Match[str]) -> str:
        if match["line"]:
            return f"<span>{convert(match['line'])}</span>"  # Markdown takes <math> at the start of a line for a block
        if match["block"]:
            shown = convert(match["block"].strip(), display="block").replace('display="block"', 'displaystyle="true"')
            return f'<div class="equation"><p>{shown}</p></div>'
        return match[0]

    return _DOLLARS.sub(made, text)


class _Parser:
    def __init__(self, text: str):
        self.text, self.at = text, 0
        self.tokens = [
            _Token(m.lastgroup, m[0], m.start() > 0 and text[m.start() - 1] == " ") for m in _TOKEN.finditer(text)
        ]

    def whole(self) -> str:
        made = self.row("")
        if self.at < len(self.tokens):
            raise ValueError(f"{self.text!r} closes a bracket that it did not open: {self.peek()}")
        return made

    def peek(self, ahead: int = 0) -> str:
        """Return the text of a token that comes, or nothing at the end."""
        at = self.at + ahead
        return self.tokens[at].text if at < len(self.tokens) else ""

    def spaced(self, ahead: int = 0) -> bool:
        at = self.at + ahead
        return at >= len(self.tokens) or self.tokens[at].spaced

    def take(self) -> _Token:
        self.at += 1
        return self.tokens[self.at - 1]

    def row(self, end: str) -> str:
        """Read up to a closing bracket, which is left, or to the end of the line."""
        pieces: list[_Piece] = []
        while self.at < len(self.tokens) and self.peek() != end and (self.peek() not in ")]}"):
            if self.peek() == "/" and self.spaced():
                self.fraction(pieces)
            elif (word := self.words(pieces)) is not None:
                pieces.append(word)
            elif self.peek() in SIGNS:
                pieces.append(self.sign(pieces))
            else:
                pieces.append(self.factor())
        return "".join(_joined(pieces))

    def sign(self, pieces: list[_Piece]) -> _Piece:
        token = self.take()
        first = not pieces or pieces[-1].kind == "sign"
        form = ' form="prefix"' if token.text == "-" and first else ""
        return _Piece(
            f"<mo{form}>{escape(SIGNS[token.text])}</mo>", "dot" if token.text == "." else "sign", token.spaced
        )

    def words(self, pieces: list[_Piece]) -> _Piece | None:
        """Read words as text; None if a symbol comes."""
        found, spaced = [], self.spaced()
        while found[:1] != ["x"] and self.is_word(bool(found)):
            found.append(self.take().text)
        if not found:
            return None
        if found == ["in"] and self.peek() == "{":
            return _Piece("<mo>∈</mo>", "sign", spaced)
        if found == ["x"]:
            return _Piece("<mo>×</mo>", "sign", spaced)
        before = "\u00a0" if pieces and spaced and pieces[-1].kind != "sign" else ""
        after = "\u00a0" if self.peek() and self.spaced() else ""
        return _Piece(f"<mtext>{before}{escape(' '.join(found))}{after}</mtext>", "text", spaced)

    def is_word(self, among: bool) -> bool:
        """Say whether the next token is a word of a sentence."""
        if self.at >= len(self.tokens) or self.tokens[self.at].kind != "word":
            return False
        text, after = self.peek(), self.peek(1)
        if text == "a":  # an article, or a letter
            return after.isalpha() and len(after) > 1 and self.spaced(1) and after not in ("in",)
        if text == "x":  # a sign of multiplication, or a letter
            return (
                not among
                and self.at > 0
                and self.tokens[self.at - 1].kind == "number"
                and (after == "(" or len(after) > 1)
            )
        called = after in ("(", "_", "^", "'") and not self.spaced(1)
        return not called and ((among and text in NAMED) or not _is_symbol(text))

    def fraction(self, pieces: list[_Piece]) -> None:
        """Replace the product that ends here by a fraction."""
        self.take()
        above: list[_Piece] = []
        while pieces and pieces[-1].kind in ("factor", "dot"):
            above.insert(0, pieces.pop())
        below = self.factor()
        top = above[0].inner if len(above) == 1 and above[0].inner else "".join(_joined(above))
        spaced = bool(above) and above[0].spaced
        pieces.append(_Piece(f"<mfrac>{_row(top)}{_row(below.inner or below.markup)}</mfrac>", "factor", spaced))

    def factor(self) -> _Piece:
        """Read a symbol or a group, with all that hangs on it."""
        spaced, inner = self.spaced(), ""
        if self.peek() in BIG:
            return _Piece(self.limits(), "factor", spaced)
        if self.peek() == "(":
            inner, right = self.inside()
            made = _around("(", inner, right)
        else:
            made = self.atom()
        scripts: dict[str, str] = {}
        while self.peek() in ("_", "^", "'", "(", "[") and not self.spaced():
            if self.peek() in ("_", "^"):
                kind = self.take().text
                scripts[kind] = scripts.get(kind, "") + self.script(kind)
            elif self.peek() == "'":
                self.take()
                scripts["^"] = "<mo>′</mo>" + scripts.get("^", "")
            else:
                made, scripts = _scripted(made, scripts), {}
                left = self.peek()
                made += "<mo>&#x2061;</mo>" * (left == "(") + _around(left, *self.inside())
            inner = ""
        return _Piece(_scripted(made, scripts), "factor", spaced, inner)

    def inside(self) -> tuple[str, str]:
        """Read a group, and return what is in its brackets, and the closing one: an interval may end in another."""
        left = self.take().text
        made = self.row(PAIRS[left])
        if self.peek() not in (PAIRS[left], *(")]" if left in "([" else "")):
            raise ValueError(f"{self.text!r} lacks a {PAIRS[left]}")
        return made, self.take().text

    def atom(self) -> str:
        """Read a symbol, a number, a function with what it acts on, or a group."""
        token = self.tokens[self.at]
        if token.text in PAIRS:
            return _around(token.text, *self.inside())
        self.take()
        if token.kind == "number":
            return f"<mn>{token.text}</mn>"
        if token.kind != "word":
            raise ValueError(f"{self.text!r} has a {token.text} where a symbol should stand")
        if token.text == "sqrt" and self.peek() == "(":
            return f"<msqrt>{self.inside()[0]}</msqrt>"
        if token.text in AROUND and self.peek() == "(":
            left, right = AROUND[token.text]
            return _around(left, self.inside()[0], right)
        if token.text == "inf":
            return "<mi>∞</mi>"
        name = _symbol(token.text)
        if token.text.rstrip("0123456789") in ("ln", "log") and self.peek() != "(" and self.spaced():
            return f'{name}<mspace width="0.17em"/>{self.factor().markup}'
        return name

    def script(self, kind: str) -> str:
        """Read what stands below or above."""
        if self.peek() in ("(", "{"):
            return self.inside()[0]
        text, called = self.peek(), self.peek(1) == "(" and not self.spaced(1)
        if (kind, text) == ("^", "T"):
            self.take()
            return "<mo>⊤</mo>"
        if self.tokens[self.at].kind == "word" and len(text) <= 2 and not called and text not in GREEK:
            self.take()
            return "".join(f"<mi>{letter}</mi>" for letter in text)
        return self.atom()

    def limits(self) -> str:
        """Read a sum, a product or an integral with its limits."""
        name = self.take().text
        found = {}
        while self.peek() in ("_", "^"):
            kind = self.take().text
            found[kind] = _row(self.script(kind))
        tag = "sub", "sup"
        if name != "int":
            tag = "under", "over"
        sign = f"<mo>{BIG[name]}</mo>"
        if len(found) == 2:
            return f"<m{tag[0]}{tag[1]}>{sign}{found['_']}{found['^']}</m{tag[0]}{tag[1]}>"
        return f"<m{tag[0]}>{sign}{found['_']}</m{tag[0]}>"


def _is_symbol(word: str) -> bool:
    """Say whether a word is a symbol by itself, whatever stands behind it."""
    letters = word.rstrip("0123456789")
    known = {*GREEK, *BIG, *AROUND, *NAMED, "sqrt", "inf", "ln", "log", "cos", "sin", "dt"}
    return len(letters) == 1 or letters in known or re.fullmatch("[a-z][A-Z]", letters) is not None


def _symbol(word: str) -> str:
    letters = word.rstrip("0123456789")
    number = word[len(letters) :]
    if re.fullmatch("[a-z][A-Z]", letters):  # a letter marked by another
        return f"<msup><mi>{letters[0]}</mi><mi>{letters[1]}</mi></msup>"
    if letters == "dt":
        return "<mi>d</mi><mi>t</mi>"
    made = f"<mi>{GREEK.get(letters, letters)}</mi>"
    return f"<msub>{made}<mn>{number}</mn></msub>" if number else made


def _row(markup: str) -> str:
    return f"<mrow>{markup}</mrow>"


def _around(left: str, inside: str, right: str) -> str:
    return (
        f'<mrow><mo fence="true" form="prefix">{left}</mo>{inside}<mo fence="true" form="postfix">{right}</mo></mrow>'
    )


def _scripted(base: str, scripts: dict[str, str]) -> str:
    below, above = scripts.get("_"), scripts.get("^")
    if below and above:
        return f"<msubsup>{_row(base)}{_row(below)}{_row(above)}</msubsup>"
    if below or above:
        tag = "msub" if below else "msup"
        return f"<{tag}>{_row(base)}{_row(below or above or '')}</{tag}>"
    return base


def _joined(pieces: list[_Piece]) -> list[str]:
    """Return the markup of pieces, with a little room between factors that a space parts."""
    made = []
    for before, piece in zip([None, *pieces], pieces, strict=False):
        apart = before is not None and before.kind == piece.kind == "factor" and piece.spaced
        made.append('<mspace width="0.17em"/>' * apart + piece.markup)
    return made
