"""The tensors of an architecture, and how a live model's keys differ from their canonical names.

Law: the canonical form is the same however the model was wrapped. Values only; renaming is
keys.py's.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal

from .values import Digest, canonical_json, count, digest_of, list_of, one_of, printable

Kind = Literal["parameter", "buffer", "tensor"]

KINDS: Final[tuple[str, ...]] = ("parameter", "buffer", "tensor")

WRAPPER_TOKENS: Final = (
    "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
)  # fmt: skip
"""The attribute names under which wrappers hold the module they wrap: PyTorch's, and Lightning's
`_forward_module` (of Fabric, and of strategies that wrap the LightningModule)."""


@dataclass(frozen=True, slots=True)
class KeyStyle:
    """How raw keys differ from canonical keys: which wrappers sit where.

    Attributes:
        wraps: pairs of a canonical module path (`""` is the root) and the wrapper tokens there,
            outermost first; sorted by path.

    The text form is the public one: `""` is plain, `"module."` DataParallel or DDP,
    `"module._orig_mod."` nested, and positions are joined by commas: `"module.,features.module."`.
    A real submodule that is called like a wrapper stands in brackets: `"[module].module."` is a
    DataParallel around a child named `module`.

    Example:
        >>> KeyStyle.parse("features.module.").wraps
        (('features', ('module',)),)
        >>> str(KeyStyle((("", ("module", "_orig_mod")),)))
        'module._orig_mod.'
    """

    wraps: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        paths = [path for path, _ in self.wraps]
        if paths != sorted(set(paths)):
            raise ValueError(f"a key style's positions must be sorted and distinct: {paths}")
        for path, tokens in self.wraps:
            if not tokens or any(t not in WRAPPER_TOKENS for t in tokens):
                raise ValueError(f"{tokens} at {path!r} are not wrapper tokens {WRAPPER_TOKENS}")

    def __bool__(self) -> bool:
        return bool(self.wraps)

    def __str__(self) -> str:
        return ",".join(
            "".join(f"{s}." for s in [*map(bracketed, _segments(path)), *tokens])
            for path, tokens in self.wraps
        )

    @classmethod
    def parse(cls, text: str) -> KeyStyle:
        """Return the style that a text form means.

        Raises:
            ValueError: it names no wrapper, or is malformed; the message shows the known tokens.
        """
        wraps: dict[str, tuple[str, ...]] = {}
        for part in _split_style(text) if text else ():
            real = list(part)
            tokens: list[str] = []
            while real and real[-1][0] in WRAPPER_TOKENS and not real[-1][1]:
                tokens.insert(0, real.pop()[0])
            path = ".".join(name for name, _ in real)
            if not tokens or path in wraps:
                raise ValueError(
                    f"{text!r} is no key style: each part ends in one of "
                    f"{', '.join(t + '.' for t in WRAPPER_TOKENS)} and has a position of its own"
                )
            wraps[path] = tuple(tokens)
        return cls(tuple(sorted(wraps.items())))


def _segments(path: str) -> list[str]:
    return path.split(".") if path else []


def bracketed(segment: str) -> str:
    """Return a real submodule's name as a style's text writes it: in brackets where it must be."""
    if segment not in WRAPPER_TOKENS and re.fullmatch(r"[\w-]+", segment):
        return segment
    return "[" + re.sub(r"([\\\]])", r"\\\1", segment) + "]"


# A bracketed name, like every submodule's, is not empty and holds no dot.
_STYLE_TOKEN = re.compile(
    r"\[(?P<quoted>(?:[^\\\].]|\\[\\\]])+)\]\.|(?P<bare>[\w-]+)\.|(?P<comma>,)"
)


def _split_style(text: str) -> list[list[tuple[str, bool]]]:
    parts: list[list[tuple[str, bool]]] = [[]]
    at = 0
    while at < len(text):
        match = _STYLE_TOKEN.match(text, at)
        if match is None:
            raise ValueError(
                f"{text!r} is no key style: it should read like 'module.' or 'a.b.module.'"
            )
        if match["comma"]:
            parts.append([])
        elif match["quoted"] is not None:
            parts[-1].append((re.sub(r"\\(.)", r"\1", match["quoted"]), True))
        else:
            parts[-1].append((match["bare"], False))
        at = match.end()
    return parts


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a signature.

    Attributes:
        key: its canonical key.
        dtype: torch's name without the prefix: `float32`, `bfloat16`.
        shape: its sizes; `()` is a scalar.
        kind: `parameter` or `buffer` where a live model was seen, else `tensor`.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    kind: Kind = "tensor"

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int | None:
        """The bytes of its elements; None where the dtype's width isn't in its name.

        Example:
            >>> TensorSpec("fc.weight", "bfloat16", (10, 4)).size_bytes
            80
        """
        match = _WIDTH.match(self.dtype)
        bits = 8 if self.dtype == "bool" else int(match[1]) if match else 0
        return self.elements * bits // 8 if bits >= 8 else None  # below 8 they are packed


_WIDTH: Final = re.compile(r"(?:u?int|q?u?int|float|bfloat|complex|bits)(\d{1,3})")


@dataclass(frozen=True)
class Signature:
    """The tensors of an architecture, the same however the model was wrapped.

    The digest covers key, dtype and shape; `kind` is left out, because a foreign file doesn't know
    it and must still be found by `fits`.
    """

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        tensors = tuple(sorted(self.tensors, key=lambda t: t.key))
        for before, after in pairwise(tensors):
            if before.key == after.key:
                raise ValueError(f"a signature can't name {after.key!r} twice")
        object.__setattr__(self, "tensors", tensors)

    @cached_property
    def digest(self) -> Digest:
        """The BLAKE3 digest of the canonical JSON of (key, dtype, shape)."""
        return digest_of([[t.key, t.dtype, list(t.shape)] for t in self.tensors])

    @property
    def parameters(self) -> int | None:
        """The number of trainable elements; None where kinds are unknown."""
        if any(t.kind == "tensor" for t in self.tensors):
            return None
        return sum(t.elements for t in self.tensors if t.kind == "parameter")

    def to_json(self) -> str:
        """Return the text that the database keeps."""
        return canonical_json([[t.key, t.dtype, list(t.shape), t.kind] for t in self.tensors])

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Return the signature that `to_json` wrote.

        Raises:
            ValueError, TypeError: it is no such text.
        """
        return cls(
            tuple(
                TensorSpec(
                    _text(key),
                    printable(dtype, "dtype"),
                    tuple(count(size, "a size") for size in list_of(shape, "shape")),
                    one_of(kind, KINDS, "kind"),
                )
                for key, dtype, shape, kind in list_of(json.loads(text), "a signature")
            )
        )


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a tensor's key must be text, not {key!r}")
    return key
