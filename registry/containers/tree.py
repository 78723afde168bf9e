"""The values that a checkpoint file holds, once read: plain Python ones, and the few classes below.

Law: nothing here runs code of the file. Known things are values, unknown ones are records; shared
nodes stay shared, and identity says so. Every walk is iterative and visits a node once.

    Tensor      a strided view into a Storage      Array     a numpy array
    Assembled   a tensor in pieces, its Chunks   Sparse, Quantised   made of Tensors
    TaggedDict  an OrderedDict and its kin         Constant  torch.float16, torch.device, …
    Opaque      an object of any other class       Global    any other name
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ..signature import Kind

DTYPES: Final[dict[str, int]] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
    "complex128": 16, "complex64": 8, "complex32": 4,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "qint32": 4, "qint8": 1, "quint8": 1, "quint4x2": 1, "quint2x4": 1,
    "bits16": 2, "bits8": 1, "bits4x2": 1, "bits2x4": 1, "bits1x8": 1,
}  # fmt: skip
"""The bytes that one element of each of torch's dtypes takes in a storage."""


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A run of the file's bytes that tensors are views into. Two tensors that share one are tied.

    Attributes:
        key: its name in the file.
        dtype: torch's name of its elements; an untyped storage is `uint8`.
        tag: the device that it was saved on: `cuda:3`.
        offset: where its first byte lies in the file.
        size_bytes: how many bytes it has.
        file: the checkpoint's file that holds it; "" where there is one file only.
        data: the bytes themselves, little-endian, where the file doesn't have them as they are (a
            pickle of protocol 2 spells them as text); then it has no place in the file.
    """

    key: str
    dtype: str
    tag: str
    offset: int
    size_bytes: int
    file: str = ""
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class StorageView:
    """A part of a storage that very old files name by itself; tensors on it are views of `root`."""

    root: Storage
    offset: int
    elements: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A dense strided tensor; its bounds were checked against its storage.

    Attributes:
        storage: where its elements are.
        dtype: torch's name: `bfloat16`.
        shape, stride: in elements.
        offset: of its first element, in elements of `dtype` from the storage's start.
        kind: `parameter` or `buffer` where the file says so, else `tensor`.
        requires_grad: as saved.
        conj, neg: torch's lazy conjugate and negative bits.
        attributes: Python attributes that were saved with it, or None.
    """

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    kind: Kind = "tensor"
    requires_grad: bool = False
    conj: bool = False
    neg: bool = False
    attributes: dict[Any, Any] | None = None

    @property
    def form(self) -> str:
        """What sort of tensor it is."""
        return "strided"

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The bytes that it takes when it stands alone, without what else its storage holds."""
        return self.elements * DTYPES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A piece of a tensor that lies in pieces.

    Attributes:
        offsets: of its first element in the whole, one for each dimension.
        tensor: its elements, of the piece's own shape.
    """

    offsets: tuple[int, ...]
    tensor: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Assembled:
    """A tensor whose pieces lie in several storages; they cover it exactly, none twice.

    Attributes:
        dtype: torch's name; the pieces' too.
        shape: the whole's.
        kind: as a `Tensor`'s.
        chunks: the pieces that have elements.
    """

    dtype: str
    shape: tuple[int, ...]
    kind: Kind
    chunks: tuple[Chunk, ...]

    @property
    def form(self) -> str:
        """What sort of tensor it is."""
        return "strided"

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The bytes that it takes when it stands alone."""
        return self.elements * DTYPES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A sparse tensor. Its sizes agree; whether its indices lie inside, only its bytes say.

    Attributes:
        layout: torch's name: `sparse_coo`, `sparse_csr`, `sparse_csc`, `sparse_bsr`, `sparse_bsc`.
        dtype: of its values.
        shape: the whole's.
        indices: of `sparse_coo` one tensor, of the others the compressed and the plain ones.
        values: those that are there.
        coalesced: what the file says of `sparse_coo`: sorted and none twice; None: nothing.
        kind, requires_grad, attributes: as a `Tensor`'s.
    """

    layout: str
    dtype: str
    shape: tuple[int, ...]
    indices: tuple[Tensor, ...]
    values: Tensor
    coalesced: bool | None = None
    kind: Kind = "tensor"
    requires_grad: bool = False
    attributes: dict[Any, Any] | None = None

    @property
    def form(self) -> str:
        """What sort of tensor it is."""
        return self.layout

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The dense tensors that it is made of."""
        return (*self.indices, self.values)

    @property
    def elements(self) -> int:
        """The number of elements, those that are nowhere written too."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The bytes of its parts."""
        return sum(part.size_bytes for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """An affinely quantised tensor; what it stands for is (integer - zero point) * scale.

    Attributes:
        integers: its elements, of dtype `qint8`, `quint8` or `qint32`.
        scheme: torch's name: `per_tensor_affine`, `per_channel_affine`.
        scale, zero_point: of the tensor; per channel, tensors of one for each index along `axis`.
        kind, requires_grad, attributes: as a `Tensor`'s.
    """

    integers: Tensor
    scheme: str
    scale: float | Tensor
    zero_point: int | Tensor
    axis: int | None = None
    kind: Kind = "tensor"
    requires_grad: bool = False
    attributes: dict[Any, Any] | None = None

    @property
    def form(self) -> str:
        """What sort of tensor it is."""
        return self.scheme

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The dense tensors that it is made of."""
        more = (part for part in (self.scale, self.zero_point) if isinstance(part, Tensor))
        return (self.integers, *more)

    @property
    def dtype(self) -> str:
        """torch's name."""
        return self.integers.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return self.integers.shape

    @property
    def elements(self) -> int:
        """The number of elements."""
        return self.integers.elements

    @property
    def size_bytes(self) -> int:
        """The bytes of its parts."""
        return sum(part.size_bytes for part in self.parts)


AnyTensor = Tensor | Assembled | Sparse | Quantised
"""A tensor of any sort that can be built."""


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """A numpy array.

    Attributes:
        dtype: numpy's typestr: `<f4`; `|O` is an array of objects.
        shape: its sizes.
        data: its elements' bytes; empty for objects, and where `tensor` stands for it.
        fortran_order: whether the first index runs fastest.
        items: the elements of an array of objects, else None.
        at: where `data` lies in the file, if it does, and that was asked for.
        tensor: the same elements as a tensor, where the file is a plain pickle.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)
    fortran_order: bool = False
    items: list[Any] | None = None
    at: int | None = None
    tensor: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Constant:
    """One of torch's own values, by its kind and its name without the prefix.

    `device` is `cuda:3`, `dtype` is `float16`, `layout` is `strided`; a storage class is `storage`
    and its elements' dtype, or `untyped`.
    """

    kind: Literal["dtype", "device", "layout", "memory_format", "qscheme", "storage"]
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class NumpyDtype:
    """A numpy dtype, as a typestr."""

    typestr: str


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A class or function that the file names. A name only: it is never imported."""

    module: str
    name: str

    @property
    def dotted(self) -> str:
        """The name as Python writes it: `torch.nn.modules.linear.Linear`."""
        return f"{self.module}.{self.name}"


class TaggedDict(dict[Any, Any]):
    """A dict of another class that is known to hold plain data.

    Attributes:
        cls: `collections.OrderedDict`, `collections.Counter`, `collections.defaultdict`,
            `argparse.Namespace` or `types.SimpleNamespace`.
        attributes: Python attributes that were saved with it, such as `_metadata`; or None.
    """

    __slots__ = ("attributes", "cls")

    def __init__(self, items: Any = (), *, cls: str = "collections.OrderedDict") -> None:
        super().__init__(items)
        self.cls = cls
        self.attributes: dict[Any, Any] | None = None


@dataclass(slots=True, eq=False, repr=False)
class Opaque:
    """An object that the reader doesn't know: what would have been called, recorded instead.

    Attributes:
        name: the class or function: `pkg.module.Class`.
        args, kwargs: what it would have been called with.
        new: whether its class's `__new__` would have been called, not the class: `__init__` isn't.
        state: what would have been set on it, or None.
        appended: what would have been appended or added to it.
        items: what would have been set in it by key.
        is_tensor: whether it stands for a tensor of a sort that isn't read (meta, DTensor, nested,
            …).
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] = field(default_factory=dict)
    state: Any = None
    appended: list[Any] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)
    is_tensor: bool = False
    new: bool = False

    def __repr__(self) -> str:
        return f"<Opaque {self.name}>"


def settle(value: Storage | Array | NumpyDtype | AnyTensor, **fields: object) -> None:
    """Fill in fields of a value that the file gives later than the value itself.

    A pickle makes an object first and then its state, and a legacy torch file names storages before
    it says where they lie; others may already refer to the value. Only the reader calls this,
    before it returns.
    """
    for name, content in fields.items():
        object.__setattr__(value, name, content)


# --- walks ----------------------------------------------------------------------------------------

LEAVES: Final = frozenset(
    {str, int, float, bool, bytes, bytearray, complex, type(None), Storage, StorageView, Constant,
     Global, NumpyDtype, Assembled}
)  # fmt: skip


def children(node: object) -> Iterable[Any]:
    """Return the values directly inside a node; nothing for a leaf."""
    if isinstance(node, TaggedDict):
        return [*node.values(), node.attributes] if node.attributes else node.values()
    if isinstance(node, dict):
        return node.values()
    if isinstance(node, list | tuple | set | frozenset):
        return node
    if isinstance(node, Opaque):
        return (node.args, node.kwargs, node.state, node.appended, node.items)
    if isinstance(node, Tensor):
        return () if node.attributes is None else (node.attributes,)
    if isinstance(node, Array):
        return [part for part in (node.items, node.tensor) if part is not None]
    if isinstance(node, Assembled):
        return [chunk.tensor for chunk in node.chunks]
    if isinstance(node, Sparse | Quantised):
        return node.parts if node.attributes is None else (*node.parts, node.attributes)
    return ()


def walk(root: object) -> Iterator[Any]:
    """Yield every value in a tree, parents first; each node once, leaves as they occur."""
    seen = {id(root)}
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        for child in children(node):
            if type(child) not in LEAVES:
                if id(child) not in seen:
                    seen.add(id(child))
                    pending.append(child)
            else:
                yield child
