"""The words of a `where` expression, and how an error points at its place.

Law: every character is part of a token or refused with what to write instead. Knows no field.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

MAX_CHARACTERS: Final = 4096

TokenKind = Literal["name", "keyword", "text", "number", "symbol", "end"]

_KEYWORDS: Final = {
    "and": "and", "or": "or", "not": "not", "in": "in", "like": "like",
    "true": "true", "false": "false", "null": "null",
    "True": "true", "False": "false", "None": "null",
}  # fmt: skip

_NAME: Final = r"[^\W\d]\w*"
_TEXT: Final = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_DATE: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TOKEN: Final = re.compile(
    rf"""(?P<space>\s+)
    | (?P<date>{_DATE}[^\s)\],]*)
    | (?P<number>[+-]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)
    | (?P<text>{_TEXT})
    | (?P<name>{_NAME}(?:\.(?:{_NAME}|{_TEXT}))*)
    | (?P<wrong>===|!==|=<|=>|<>|&&?|\|\|?|!(?!=)|~)
    | (?P<symbol>==|!=|<=|>=|<|>|[()\[\],])
    | (?P<assign>=)
    | (?P<sum>[-+*])""",
    re.VERBOSE | re.DOTALL,
)
_PART: Final = re.compile(rf"(?P<name>{_NAME})|(?P<text>{_TEXT})", re.DOTALL)
_MEANT: Final = {
    "===": "==", "!==": "!=", "=<": "<=", "=>": ">=", "<>": "!=", "&&": "and", "&": "and",
    "||": "or", "|": "or", "!": "not", "~": "not",
}  # fmt: skip
_ESCAPE: Final = re.compile(
    r"\\(?:(?P<hex>u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})|(?P<other>.))", re.DOTALL
)
_ESCAPED: Final = {
    "\\": "\\", '"': '"', "'": "'", "n": "\n", "t": "\t", "r": "\r",
    "%": "\\%", "_": "\\_",  # what a pattern of `like` means by them
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Token:
    """One word.

    Attributes:
        at, length: its place in the source.
        value: a text's or number's value, a symbol, a keyword in lower case, or "".
        path: a name's parts.
    """

    kind: TokenKind
    at: int
    length: int
    value: int | float | str = ""
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The text of an expression, and errors that show it.

    Attributes:
        called: what errors call it.
        sums: `+`, `-` and `*` may stand in it, as symbols; see `gates`.
    """

    text: str
    called: str = "where"
    sums: bool = False

    def fail(self, message: str, at: int, length: int = 1, *, hint: str = "") -> NoReturn:
        """Raise ValueError with the expression, marks under the place, and the hint."""
        start = max(0, at - 40)
        end = min(len(self.text), start + 76)
        shown = "".join(c if c.isprintable() else " " for c in self.text[start:end])
        before = "… " if start else ""
        indent = len(before) + sum(map(_columns, shown[: at - start]))
        marks = sum(map(_columns, shown[at - start : at - start + length]))
        lines = [
            f"{self.called}: {message}",
            f"  {before}{shown}{' …' if end < len(self.text) else ''}",
            f"  {' ' * indent}{'^' * max(1, marks)}",
        ]
        raise ValueError("\n".join([*lines, f"hint: {hint}"] if hint else lines))

    def tokens(self) -> list[Token]:
        """Return the tokens, an `end` last."""
        if len(self.text) > MAX_CHARACTERS:
            self.fail(
                f"the expression has {len(self.text)} characters, more than {MAX_CHARACTERS}",
                MAX_CHARACTERS,
            )
        bad = re.search("[\x00\ud800-\udfff]", self.text)
        if bad:
            self.fail(f"{bad[0]!r} can't stand in an expression", bad.start())
        found: list[Token] = []
        at = 0
        while at < len(self.text):
            token, at = self._token(at)
            if token is not None:
                found.append(token)
        return [*found, Token("end", len(self.text), 1)]

    def _token(self, at: int) -> tuple[Token | None, int]:
        match = _TOKEN.match(self.text, at)
        if match is None or (match.lastgroup == "sum" and not self.sums):
            self._refuse_character(at)
        kind, word, end = match.lastgroup, match[0], match.end()
        glued = self.text[end : end + 1]
        if kind == "space":
            return None, end
        if kind == "date":
            self.fail("a date is text", at, len(word), hint=f'write it in quotes: "{word}"')
        if kind == "assign":
            self.fail("'=' is no comparison", at, hint="write == (or in, like)")
        if kind == "wrong":
            self.fail(f"{word!r} is not known here", at, len(word), hint=f"write {_MEANT[word]}")
        if kind == "text":
            return Token("text", at, len(word), self._text(word, at)), end
        if kind == "number":
            if glued.isalnum() or glued in ("_", "."):
                self._refuse_glued(at, end)
            return Token("number", at, len(word), self._number(word, at)), end
        if kind == "name":
            if glued == ".":
                self.fail(
                    "after '.' comes a name", end, hint=f'or one in quotes: {word}."weight decay"'
                )
            if word in _KEYWORDS:
                return Token("keyword", at, len(word), _KEYWORDS[word]), end
            path = tuple(
                part["name"] or self._text(part[0], at + part.start())
                for part in _PART.finditer(word)
            )
            return Token("name", at, len(word), path=path), end
        return Token("symbol", at, len(word), word), end

    def _number(self, word: str, at: int) -> int | float:
        try:
            number = int(word) if re.fullmatch(r"[+-]?[0-9_]+", word) else float(word)
        except ValueError:
            self.fail("this is no number", at, len(word))
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            self.fail("this integer doesn't fit 64 bits", at, len(word))
        if number in (float("inf"), float("-inf")):
            self.fail("this number is too large for a float", at, len(word))
        return number

    def _text(self, quoted: str, at: int) -> str:
        def escaped(match: re.Match[str]) -> str:
            place = at + 1 + match.start()
            if match["hex"]:
                code = int(match["hex"][1:], 16)
                if code == 0 or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
                    self.fail(f"{match[0]} is no character", place, len(match[0]))
                return chr(code)
            if match["other"] not in _ESCAPED:
                self.fail(
                    f"{match[0]} is no escape", place, len(match[0]),
                    hint="a backslash itself is written as two",
                )  # fmt: skip
            return _ESCAPED[match["other"]]

        return _ESCAPE.sub(escaped, quoted[1:-1])

    def _refuse_character(self, at: int) -> NoReturn:
        character = self.text[at]
        if character in "\"'":
            self.fail("the text that starts here has no end", at, hint=f"close it with {character}")
        if character in "-/:@%" and at and not self.text[at - 1].isspace():
            self.fail(
                f"{character!r} can't stand in a bare name", at,
                hint='quote it: metrics."val/loss", config."weight-decay", model == "vision/vit-b"',
            )  # fmt: skip
        self.fail(f"{character!r} can't stand here", at)

    def _refuse_glued(self, at: int, end: int) -> NoReturn:
        match = re.compile(r"[\w.]*").match(self.text, end)
        end = match.end() if match else end
        word = self.text[at:end]
        self.fail(
            f"{word!r} is no number", at, end - at,
            hint=f'text stands in quotes: "{word}"',
        )  # fmt: skip


def _columns(character: str) -> int:
    """Return how many columns of a terminal a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
