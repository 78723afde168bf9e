"""From the text of a `where` expression to its syntax tree.

The grammar, loosest first; `value` is a literal, and one side of each comparison is a field:

    or         = and ("or" and)*
    and        = not ("and" not)*
    not        = "not" not | "(" or ")" | comparison
    comparison = operand (op operand)+ | field ["not"] "like" text
               | field ["not"] "in" "(" value ("," value)* ")" | text ["not"] "in" labels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn, cast

from .expressions import (
    And,
    Column,
    Compare,
    Config,
    Expression,
    Field,
    In,
    Labels,
    Like,
    Literal,
    Metric,
    Not,
    Operator,
    Or,
    literal_text,
)
from .fields import checked, field_of, is_field
from .lexing import Source, Token

MAX_DEPTH: Final = 64
MAX_TERMS: Final = 256

_FLIPPED: Final[dict[str, Operator]] = {
    "==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<=",
}  # fmt: skip

_WORDS: Final = {
    "is": "write == null, or != null",
    "between": "write a range: 0.5 <= acc <= 0.9",
    "contains": 'write note like "%text%", or tags == "good"',
    "ilike": "like is case-sensitive, and there is no other",
    "nan": "metrics are never nan; an absent one is null",
    "inf": "numbers are finite here",
    "infinity": "numbers are finite here",
    **{
        word: f"write {word}"
        for word in ("and", "or", "not", "in", "like", "true", "false", "null")
    },
    "none": "write null",
    "nil": "write null",
}
"""Words of other languages (in lower case), and what to write here."""


def parse(text: str) -> Expression:
    """Return the expression that a text means.

    Raises:
        TypeError: it is no string.
        ValueError: it is none; the message shows it with the place marked, and what to write.

    Example:
        >>> str(parse("0.5 < acc <= 0.9 and not dataset in ['a', 'b']"))
        'acc > 0.5 and acc <= 0.9 and not dataset in ("a", "b")'
    """
    if not isinstance(text, str):
        raise TypeError(f"where is the text of an expression, not {type(text).__name__}: {text!r}")
    source = Source(text)
    return parsed(source, source.tokens())


def parsed(source: Source, tokens: list[Token]) -> Expression:
    """Return the expression that some tokens make; an `end` is the last of them."""
    return _Parser(source, tokens).whole()


@dataclass(slots=True)
class _Parser:
    source: Source
    tokens: list[Token]
    at: int = 0
    terms: int = 0

    def whole(self) -> Expression:
        if len(self.tokens) == 1:
            self.fail("the expression is empty", hint="write one: acc > 0.9")
        found = self.either(0)
        if self.token.kind != "end":
            self.unexpected("and, or, or the end")
        return found

    # --- the grammar ---

    def either(self, depth: int) -> Expression:
        found = [self.both(depth)]
        while self.take("or"):
            found.append(self.both(depth))
        return found[0] if len(found) == 1 else Or(tuple(found))

    def both(self, depth: int) -> Expression:
        found = [self.inverted(depth)]
        while self.take("and"):
            found.append(self.inverted(depth))
        return found[0] if len(found) == 1 else And(tuple(found))

    def inverted(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} deep")
        if self.take("not"):
            return Not(self.inverted(depth + 1))
        opening = self.token
        if self.take("("):
            found = self.either(depth + 1)
            if not self.take(")"):
                self.hint_word()
                if self.token.kind == "end":
                    self.fail("this parenthesis is never closed", opening)
                self.unexpected("and, or, or ')'")
            return found
        return self.comparison()

    def comparison(self) -> Expression:
        left = self.operand()
        negated = self.take("not")
        if self.take("in"):
            return self.membership(left, negated)
        if self.take("like"):
            return self.pattern(left, negated)
        if negated:
            self.unexpected("in or like after not")
        found: list[Expression] = []
        while self.token.kind == "symbol" and self.token.value in _FLIPPED:
            sign = self.next()
            right = self.operand()
            found.append(self.compare(left, sign, right))
            left = right
        if not found:
            self.missing_comparison(left)
        return found[0] if len(found) == 1 else And(tuple(found))

    def compare(self, left: Token, sign: Token, right: Token) -> Expression:
        op = cast("Operator", sign.value)
        if left.kind == "name" and right.kind == "name":
            field = self.field(left)
            if not is_field(right):
                self.bare_text(right)
            self.fail(f"{field} can be compared with a value only, not with a field", right)
        if left.kind != "name" and right.kind != "name":
            self.fail("neither side is a field", left, hint="write one: acc > 0.9")
        if left.kind != "name":
            left, right, op = right, left, _FLIPPED[op]
        field = self.field(left)
        self.count(left)
        return Compare(field, op, checked(self.source, field, op, _literal(right), right))

    def membership(self, left: Token, negated: bool) -> Expression:
        if self.token.kind == "name":
            return self.label(left, negated)
        field = self.field(left)
        opening = self.token
        closing = "]" if opening.value == "[" else ")"
        if not self.take("(") and not self.take("["):
            self.unexpected('a list: ("a", "b")')
        values: list[Literal] = []
        while True:
            token = self.token
            if values and token.value == closing and token.kind == "symbol":
                break  # a comma may come last
            self.operand()
            if token.kind == "name":
                self.bare_text(token)
            if _literal(token) is None:
                self.fail(
                    "null is no value to find in a list", token, hint=f"write {field} == null"
                )
            value = checked(self.source, field, "in", _literal(token), token)
            if values and _type(value) != _type(values[0]):
                self.fail("a list holds values of one type", token)
            values.append(value)
            if not self.take(","):
                break
        if not self.take(closing):
            if self.token.kind == "end":
                self.fail("this list is never closed", opening)
            self.unexpected(f"',' or '{closing}'")
        self.count(left)
        return In(field, tuple(v for v in values if v is not None), negated)

    def label(self, left: Token, negated: bool) -> Expression:
        """Read `"good" in tags`, which is `tags == "good"`."""
        field = self.field(self.next())
        if not isinstance(field, Labels) or left.kind == "name":
            text = f'"%{left.value}%"' if left.kind == "text" else '"%text%"'
            self.fail(
                f"{field} is no list", self.tokens[self.at - 1],
                hint=f'write {field} in (…), or {field} like {text}',
            )  # fmt: skip
        op: Operator = "!=" if negated else "=="
        self.count(left)
        return Compare(field, op, checked(self.source, field, op, _literal(left), left))

    def pattern(self, left: Token, negated: bool) -> Expression:
        field = self.field(left)
        token = self.operand()
        if token.kind == "name":
            self.bare_text(token)
        value = checked(self.source, field, "like", _literal(token), token)
        if not isinstance(value, str):
            self.fail("a pattern is text", token, hint=f'write {field} like "res%"')
        self.count(left)
        return Like(field, value, negated)

    def operand(self) -> Token:
        token = self.token
        literal = token.kind == "keyword" and token.value in ("true", "false", "null")
        if token.kind not in ("name", "text", "number") and not literal:
            if token.kind == "end":
                self.fail(
                    "the expression ends too early", token, hint="a field or value is missing"
                )
            self.unexpected("a field or a value")
        return self.next()

    def field(self, token: Token) -> Field:
        if token.kind != "name":
            self.fail("a field's name must stand here", token)
        if len(token.path) == 1 and not is_field(token):
            self.hint_word(token)
        return field_of(self.source, token)

    # --- tokens ---

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def next(self) -> Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def take(self, word: str) -> bool:
        if self.token.kind in ("symbol", "keyword") and self.token.value == word:
            self.at += 1
            return True
        return False

    def count(self, token: Token) -> None:
        self.terms += 1
        if self.terms > MAX_TERMS:
            self.fail(f"more than {MAX_TERMS} comparisons", token)

    # --- errors ---

    def fail(self, message: str, token: Token | None = None, *, hint: str = "") -> NoReturn:
        token = token or self.token
        self.source.fail(message, token.at, token.length, hint=hint)

    def unexpected(self, wanted: str) -> NoReturn:
        self.hint_word()
        token = self.token
        word = self.source.text[token.at : token.at + token.length]
        found = "the end" if token.kind == "end" else repr(word)
        before = self.tokens[self.at - 1] if self.at else None
        hint = ""
        if token.kind == "number" and word[0] in "+-" and before and before.kind != "symbol":
            hint = "there is no arithmetic here"
        self.fail(f"expected {wanted}, found {found}", hint=hint)

    def hint_word(self, token: Token | None = None) -> None:
        """Raise if the word is one of another language."""
        token = token or self.token
        if token.kind == "name" and len(token.path) == 1 and token.path[0].lower() in _WORDS:
            word = token.path[0]
            self.fail(f"{word!r} is not known here", token, hint=_WORDS[word.lower()])

    def bare_text(self, token: Token) -> NoReturn:
        self.hint_word(token)
        word = ".".join(token.path)
        self.fail(
            f"{word!r} is no value", token,
            hint=f"text stands in quotes: {literal_text(word)} (a shell takes them away unless "
            "the whole expression is quoted too)",
        )  # fmt: skip

    def missing_comparison(self, left: Token) -> NoReturn:
        if self.token.kind not in ("end", "keyword") and self.token.value != ")":
            if left.kind == "name":
                self.field(left)
            self.unexpected("a comparison: == != < <= > >= in like")
        if left.kind != "name":
            self.fail("a value alone is no condition", left, hint="write one: acc > 0.9")
        match self.field(left):
            case Labels() as field:
                hint = f'write {field} == "good"'
            case Column() | Metric() | Config() as field:
                hint = f"write {field} != null to ask whether it is there"
        self.fail(f"{field} alone is no condition", left, hint=hint)


def _literal(token: Token) -> Literal:
    if token.kind == "keyword":
        return {"true": True, "false": False}.get(str(token.value))
    return token.value


def _type(value: Literal) -> str:
    return "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
