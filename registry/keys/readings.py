"""How a file's keys are read: wrappers taken out, then one leading attribute dropped or added.

Law: a wrapper and an attribute are two things. A style says where wrappers sat and takes nothing
else; an attribute that held the net (Lightning's `model.`, a base model's `bert.`) is dropped or
added as a whole, for all keys below it, and keys outside of it have no place in the target.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..signature import WRAPPER_TOKENS, KeyStyle, bracketed


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file's keys become a target's canonical keys.

    Attributes:
        style: the wrappers, at positions among the file's own names.
        drop: the attribute that held the net when it was saved: `model` of a LightningModule.
        add: the attribute that holds it in the target: `bert` of a model with a head.

    The text form is a key style's, with the attribute in front: `"model."` drops, `"+bert."` adds,
    `"model.,model._orig_mod."` drops and takes out the wrapper inside. One that is called like a
    wrapper stands in brackets.

    Example:
        >>> Reading.parse("model.,model._orig_mod.").place("model.fc.weight")
        'fc.weight'
        >>> Reading.parse("+bert.").place("encoder.weight")
        'bert.encoder.weight'
        >>> Reading.parse("features.module.").drop
        ''
    """

    style: KeyStyle = field(default_factory=KeyStyle)
    drop: str = ""
    add: str = ""

    def __post_init__(self) -> None:
        if self.drop and self.add:
            raise ValueError("one attribute is dropped or added, not both")
        if "." in self.drop + self.add:
            raise ValueError(f"{self.drop or self.add!r} is more than one attribute")

    def __bool__(self) -> bool:
        return bool(self.style or self.drop or self.add)

    def __str__(self) -> str:
        parts = [f"{bracketed(self.drop)}."] if self.drop else []
        parts += [f"+{bracketed(self.add)}."] if self.add else []
        parts += [str(self.style)] if self.style else []
        return ",".join(parts)

    @classmethod
    def parse(cls, text: str) -> Reading:
        """Return the reading that a text form means; wrappers around the attribute may stand before
        it: `"module.model."`.

        Raises:
            ValueError: it is no such form.
        """
        match = _ATTRIBUTE.match(text)
        if match is None:
            return cls(KeyStyle.parse(text))
        name = match["bare"] or re.sub(r"\\(.)", r"\1", match["quoted"])
        rest = text[match.end() :]
        style = KeyStyle.parse(",".join(filter(None, (match["tokens"], rest))))
        return cls(style, add=name) if match["plus"] else cls(style, drop=name)

    def place(self, canonical: str) -> str | None:
        """Return the name in the target of one of the file's canonical names; None for a name
        outside of the attribute that is dropped.
        """
        if self.add:
            return f"{self.add}.{canonical}"
        if not self.drop:
            return canonical
        head, _, rest = canonical.partition(".")
        return rest if rest and head == self.drop else None


def stated_style(text: str) -> KeyStyle:
    """Return the wrappers that a text states, for what is recorded or written.

    Raises:
        ValueError: it is no key style; of one that names an attribute the message says where that
            is stated.
    """
    try:
        return KeyStyle.parse(text)
    except ValueError:
        if _ATTRIBUTE.match(text) is None:
            raise
    reading = Reading.parse(text)
    raise ValueError(
        f"{text!r} names an attribute that holds the net, {reading.drop or reading.add!r}, and no "
        "wrapper: leave it out here. A load into a net finds it, or is told: "
        f"ckreg plan REF --keys {text}, reg.load(ref, into=net, keys={text!r})"
    )


_TOKEN = "|".join(WRAPPER_TOKENS)
_ATTRIBUTE = re.compile(
    rf"(?P<plus>\+)?(?P<tokens>(?:(?:{_TOKEN})\.)*)"
    rf"(?:(?!(?:{_TOKEN})\.)(?P<bare>[\w-]+)|\[(?P<quoted>(?:[^\\\].]|\\[\\\]])+)\])\.(?:,(?=.)|$)"
)
