"""How people point at a checkpoint: `resnet50@best`, `resnet50@v3`, `1f2e3d4c`.

Law: a Ref says everything that its text can mean; which of its readings exists is the catalog's to
decide (a bare word is a model's name first, then an id). Pure; knows no database.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from .values import label, model_name

At = Literal["highest", "version", "best", "latest", "epoch", "alias", "id"]

FORMS: Final = "NAME, NAME@vN, NAME@best, NAME@latest, NAME@epoch=N, NAME@ALIAS, or an id"
"""What a ref can look like, as messages and help show it."""

_ID: Final = re.compile(r"[0-9a-fA-F]{6,32}")
_LIMIT: Final = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """What a ref's text means.

    Attributes:
        model: the model's name; None only with `id`.
        at: which of its checkpoints; `highest` is the bare name. `id` is never parsed, since each
            id is a possible name: it is for code that holds an id and means nothing else.
        number: the N of `@vN` (1 or more) or `@epoch=N` (0 or more).
        alias: the ALIAS of `@ALIAS`.
        id: an id or a prefix of 6 or more hex digits, in lower case. With `highest` it is the
            second reading of a bare word, for when no model has that name.

    Example:
        >>> parse("resnet50@epoch=12")
        Ref(model='resnet50', at='epoch', number=12, alias=None, id=None)
        >>> parse("c0ffee1")
        Ref(model='c0ffee1', at='highest', number=None, alias=None, id='c0ffee1')
    """

    model: str | None
    at: At
    number: int | None = None
    alias: str | None = None
    id: str | None = None

    def __str__(self) -> str:
        match self.at:
            case "version":
                return f"{self.model}@v{self.number}"
            case "epoch":
                return f"{self.model}@epoch={self.number}"
            case "alias":
                return f"{self.model}@{self.alias}"
            case "best" | "latest":
                return f"{self.model}@{self.at}"
            case "id":
                return str(self.id)
            case "highest":
                return str(self.model)


def parse(text: str) -> Ref:
    """Return what a ref means.

    Raises:
        TypeError: it is no string.
        ValueError: it has none of the forms; the message shows them.
    """
    if not isinstance(text, str):
        raise TypeError(f"a ref is text, not {type(text).__name__}: {text!r}")
    name, at_sign, what = text.partition("@")
    try:
        model = model_name(name)
    except ValueError as error:
        if tagged := re.fullmatch(r"([^:@]+):(v[0-9]+|best|latest|[A-Za-z][\w.-]*)", text):
            raise _no_ref(text, f"it is written {tagged[1]}@{tagged[2]}") from None
        raise _no_ref(text, str(error) if name else "the model's name is missing") from None
    if not at_sign:
        return Ref(model=model, at="highest", id=text.lower() if _ID.fullmatch(text) else None)
    if what == "best":
        return Ref(model=model, at="best")
    if what == "latest":
        return Ref(model=model, at="latest")
    if version := re.fullmatch(r"v([0-9]+)", what):
        return Ref(model=model, at="version", number=_number(text, version[1], least=1))
    if epoch := re.fullmatch(r"epoch=([0-9]+)", what):
        return Ref(model=model, at="epoch", number=_number(text, epoch[1], least=0))
    try:
        return Ref(model=model, at="alias", alias=label(what, "the alias"))
    except ValueError as error:
        raise _no_ref(text, _why(name, what, str(error))) from None


def _why(name: str, what: str, reason: str) -> str:
    if not what:
        return "nothing follows '@'"
    if re.fullmatch(r"[0-9]+", what):
        return f"a version is written {name}@v{what}"
    if what.startswith("epoch="):
        return f"an epoch is written {name}@epoch=12"
    if "=" in what:
        return "only an epoch can be asked for by '='; `find` and `ckreg list` take any condition"
    return reason


def _number(text: str, digits: str, *, least: int) -> int:
    # Longer than any 64-bit number: not handed to int(), whose time grows with the square.
    number = int(digits) if len(digits.lstrip("0")) <= 19 else _LIMIT
    if not least <= number < _LIMIT:
        raise _no_ref(text, f"the number must be between {least} and 2**63 - 1")
    return number


def _no_ref(text: str, reason: str) -> ValueError:
    shown = repr(text) if len(text) <= 80 else repr(text[:77] + "…")
    return ValueError(
        f"{shown} is no ref: {reason}\nhint: a ref is {FORMS} (or its first 6 digits)"
    )
