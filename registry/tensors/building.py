"""Torch tensors and plain Python values from what the code-free reader found in a file.

Law: no code of the file runs; what the reader didn't know is refused by its name, never skipped.
Tensors lie in a private mapping of the file's bytes and are copied only where those are misaligned
or of the other byte order. Shared storages and shared values stay shared. The bytes are verified
before they come here.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch

from ..containers import (
    AnyTensor,
    Array,
    Assembled,
    Contents,
    Opaque,
    Quantised,
    Sparse,
    Storage,
    TaggedDict,
    Tensor,
)
from ..containers.tree import (
    DTYPES,
    Constant,
    Global,
    NumpyDtype,
    StorageView,
    children,
    walk,
)
from ..errors import CkregError, ContainerError, DamagedError, UntrustedError
from ..planning import trusted
from .compound import INTEGERS_OF, quantised, sparse
from .spread import Box
from .wrappers import class_name

_LEAVES: Final = (str, int, float, bool, bytes, complex, type(None))
_UNTYPED_ALIGNMENT: Final = 16


class Builder:
    """Builds the tensors and values of one checkpoint.

    Args:
        contents: what the reader found.
        mapping: the file's bytes from offset 0, writable and private (`mmap.ACCESS_COPY`), or a
            bytearray; of several files, each one's by its name. The tensors keep it open: closing
            it while one lives raises BufferError.
        trust: exact classes whose objects may come back; never functions.
        copy: copy every storage, so that nothing stays mapped (files on a network mount).

    Raises:
        TypeError: something in trust is no class.
    """

    def __init__(
        self, contents: Contents, mapping: Any, *, trust: Iterable[type] = (), copy: bool = False
    ) -> None:
        self._contents = contents
        # Through a memoryview: torch.frombuffer lets go of an mmap's export, and close() would
        # unmap live tensors.
        files = mapping if isinstance(mapping, Mapping) else {"": mapping}
        self._bytes = {name: memoryview(data) for name, data in files.items()}
        self._copy = copy
        self._swap = contents.byteorder != sys.byteorder
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._tensors: dict[int, torch.Tensor] = {}
        self._trusted = trusted(trust)

    # --- tensors ---

    def tensor(self, found: AnyTensor) -> torch.Tensor:
        """Return the tensor, on the CPU; the same one every time that it is asked for.

        One that lies in pieces is put together in memory of its own.

        Raises:
            DamagedError: its bytes are not all in the mapping, or a sparse one's indices lie
                outside of it, or a quantised one's scales are no scales.
            ContainerError: this torch has no such dtype.
        """
        built = self._tensors.get(id(found))
        if built is None:
            if isinstance(found, Assembled):
                built = self._assemble(found)
            elif isinstance(found, Tensor):
                built = self._build(found)
            elif isinstance(found, Sparse):
                built = self._finished(sparse(found, self._build), found)
            else:
                built = self._finished(quantised(found, self._build, self._storage), found)
            self._tensors[id(found)] = built
        return built

    def part(self, found: AnyTensor, box: Box) -> torch.Tensor:
        """Return a part of a tensor, on the CPU; no bytes but the part's are read.

        Raises:
            DamagedError, ContainerError: as `tensor`.
        """
        whole = Box((0,) * len(found.shape), found.shape)
        if not isinstance(found, Assembled):
            return self.tensor(found).detach()[box.within(whole)]
        made = torch.empty(box.sizes, dtype=dtype_named(found.dtype))
        for chunk in found.chunks:
            own = Box(chunk.offsets, chunk.tensor.shape)
            common = own.common(box)
            if common is not None:
                piece = self._build(chunk.tensor).detach()[common.within(own)]
                made[common.within(box)].copy_(piece)
                self._storages.pop(id(chunk.tensor.storage), None)  # it may be a copy
        return made

    def _assemble(self, found: Assembled) -> torch.Tensor:
        whole = torch.empty(found.shape, dtype=dtype_named(found.dtype))
        for chunk in found.chunks:
            place = tuple(
                slice(start, start + size)
                for start, size in zip(chunk.offsets, chunk.tensor.shape, strict=True)
            )
            whole[place].copy_(self._build(chunk.tensor).detach())
            self._storages.pop(id(chunk.tensor.storage), None)  # it may be a copy
        return torch.nn.Parameter(whole) if found.kind == "parameter" else whole

    def _build(self, found: Tensor) -> torch.Tensor:
        dtype = dtype_named(found.dtype)
        storage = self._storage(found.storage, found.dtype)
        tensor = torch.empty(0, dtype=dtype).set_(storage, found.offset, found.shape, found.stride)
        if found.conj:
            tensor = tensor.conj()
        if found.neg:
            tensor = torch._neg_view(tensor)
        return self._finished(tensor, found)

    def _finished(self, tensor: torch.Tensor, found: Tensor | Sparse | Quantised) -> torch.Tensor:
        """Give a tensor what was saved with it: its kind, requires_grad, attributes."""
        if found.requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
            raise DamagedError(f"a {found.dtype} tensor in the file requires a gradient")
        if found.kind == "parameter":
            tensor = torch.nn.Parameter(tensor, requires_grad=found.requires_grad)
        elif found.requires_grad:
            tensor.requires_grad_()
        for name, value in (found.attributes or {}).items():
            if not isinstance(name, str) or hasattr(torch.nn.Parameter, name):
                raise UntrustedError(
                    f"a tensor in the file has an attribute {name!r}, which would hide torch's own"
                )
            setattr(tensor, name, self.tree(value))
        return tensor

    def _storage(self, found: Storage, dtype: str) -> torch.UntypedStorage:
        built = self._storages.get(id(found))
        if built is None:
            built = self._storages[id(found)] = self._build_storage(found, dtype)
        return built

    def _build_storage(self, found: Storage, dtype: str) -> torch.UntypedStorage:
        if found.size_bytes == 0:
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        if found.data is not None:
            mapped = torch.frombuffer(bytearray(found.data), dtype=torch.uint8)
        else:
            data = self._bytes[found.file]
            if found.offset < 0 or found.offset + found.size_bytes > len(data):
                raise DamagedError(
                    f"the storage {found.key!r} ends at byte {found.offset + found.size_bytes} of "
                    f"a file of {len(data)}"
                )
            mapped = torch.frombuffer(
                data, dtype=torch.uint8, count=found.size_bytes, offset=found.offset
            )
        untyped = found.dtype == "uint8" != dtype
        alignment = max(DTYPES[dtype], _UNTYPED_ALIGNMENT if untyped else DTYPES[found.dtype])
        if self._copy or self._swap or mapped.data_ptr() % alignment:
            mapped = mapped.clone()
        storage = mapped.untyped_storage()
        if self._swap:
            name = dtype if untyped else found.dtype
            swapped = dtype_named(INTEGERS_OF.get(name, name))
            storage.byteswap(swapped)  # type: ignore[no-untyped-call]
        return storage

    # --- values ---

    def tree(self, root: object, *, own: bool = False) -> Any:
        """Return a value of the file as plain Python values and tensors.

        Args:
            own: give the tensors memory of their own, for whoever keeps them.

        Raises:
            UntrustedError: it needs a class that isn't in trust, or any function; the message names
                it.
        """
        done: dict[int, Any] = {}
        opened: set[int] = set()
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            node, ready = stack.pop()
            if isinstance(node, _LEAVES) or (id(node) in done and not ready):
                continue
            if ready:
                self._finish(node, done, own)
                continue
            if id(node) in opened:
                continue
            opened.add(id(node))
            if isinstance(node, Opaque) and (node.is_tensor or node.name not in self._trusted):
                raise _untrusted(node)  # before its parts, which may be strange too
            shell = _shell(node)
            if shell is not None:
                done[id(node)] = shell  # before its children: it may hold itself
            stack.append((node, True))
            if not isinstance(node, AnyTensor):  # its attributes are built with it
                stack.extend((child, False) for child in children(node))
        return _of(done, root)

    def _finish(self, node: Any, done: dict[int, Any], own: bool) -> None:
        """Fill a container's shell, or make a value whose parts are all made."""
        if isinstance(node, dict):
            shell = done[id(node)]
            items = {self._key(key): _of(done, value) for key, value in node.items()}
            if isinstance(node, TaggedDict):
                _fill_tagged(shell, node, items, _of(done, node.attributes))
            else:
                shell.update(items)
        elif isinstance(node, list):
            done[id(node)].extend(_of(done, value) for value in node)
        elif isinstance(node, tuple):
            done[id(node)] = tuple(_of(done, value) for value in node)
        elif isinstance(node, set | frozenset):
            done[id(node)] = type(node)(self._key(value) for value in node)
        elif isinstance(node, Opaque):
            done[id(node)] = self._trusted_object(node, lambda value: _of(done, value))
        elif isinstance(node, Array):
            done[id(node)] = self._array(node, _of(done, node.items))
        elif isinstance(node, AnyTensor) and own:
            done[id(node)] = _owned(self.tensor(node))
        else:
            done[id(node)] = self._leaf(node)

    def _key(self, key: Any) -> Any:
        return key if isinstance(key, (*_LEAVES, tuple)) else self._leaf(key)

    def _leaf(self, node: Any) -> Any:
        if isinstance(node, AnyTensor):
            return self.tensor(node)
        if isinstance(node, Constant):
            return _constant(node)
        if isinstance(node, Storage | StorageView):
            raise ContainerError("a bare storage, which belongs to no tensor, can't be loaded")
        if isinstance(node, Global):
            cls = self._trusted.get(node.dotted)
            if cls is None:
                raise _untrusted(node)
            return cls
        if isinstance(node, NumpyDtype):
            return _numpy().dtype(node.typestr)
        return node  # datetimes, paths, bytearrays: plain data that the reader made itself

    def _array(self, node: Array, items: list[Any] | None) -> Any:
        numpy = _numpy()
        if node.tensor is not None:
            return self.tensor(node.tensor).numpy().copy(order="K")
        order = "F" if node.fortran_order else "C"
        if items is not None:
            array = numpy.empty(len(items), dtype=object)
            array[:] = items
        else:
            array = numpy.frombuffer(bytearray(node.data), dtype=numpy.dtype(node.dtype))
        return array.reshape(node.shape, order=order)

    def _trusted_object(self, node: Opaque, of: Callable[[Any], Any]) -> Any:
        """Make an object of a class that the caller named, from the parts that the file gives."""
        try:
            return _made(self._trusted[node.name], node, of)
        except CkregError:
            raise
        except Exception as error:  # the class's own code, on whatever the file holds
            raise ContainerError(
                f"{node.name} can't be made of what the file holds: {type(error).__name__}: {error}"
            ) from error


def chunks_in(found: AnyTensor, box: Box) -> list[Tensor]:
    """Return the tensors of a file that a part of one of its tensors is read from."""
    if not isinstance(found, Assembled):
        return [node for node in walk(found) if isinstance(node, Tensor)] if box.elements else []
    return [
        chunk.tensor
        for chunk in found.chunks
        if Box(chunk.offsets, chunk.tensor.shape).common(box) is not None
    ]


def _untrusted(node: Opaque | Global) -> UntrustedError:
    name = node.name if isinstance(node, Opaque) else node.dotted
    cure = "save plain values and dense tensors in its place"
    if isinstance(node, Global) or not (node.is_tensor or name.endswith("()")):
        cure = f"trust=[{name}] if that is a class of yours (a function is never called); or {cure}"
    return UntrustedError(
        f"the file holds an object of {name}, which only its code could make", hint=cure
    )


def _made(cls: Any, node: Opaque, of: Callable[[Any], Any]) -> Any:
    """Do what unpickling does, in its order: make, append, set items, set the state."""
    args, kwargs = of(node.args), of(node.kwargs)
    made = cls.__new__(cls, *args, **kwargs) if node.new else cls(*args, **kwargs)
    for value in of(node.appended):
        (made.append if hasattr(made, "append") else made.add)(value)
    for key, value in of(node.items).items():
        made[key] = value
    state = of(node.state)
    if state is None:
        return made
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return made
    fields, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if fields:
        made.__dict__.update(fields)
    for name, value in (slots or {}).items():
        if name.startswith("__"):
            raise UntrustedError(f"an object of {node.name} would get another {name}")
        object.__setattr__(made, name, value)
    return made


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    clone = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(clone, requires_grad=tensor.requires_grad)
    return clone.requires_grad_(tensor.requires_grad)


def dtype_named(name: str) -> torch.dtype:
    """Return torch's dtype of a name. Raises ContainerError where this torch has none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or name.startswith(("q", "bits")):
        raise ContainerError(f"torch {torch.__version__} can't hold a dense tensor of dtype {name}")
    return dtype


def _shell(node: Any) -> Any:
    """Return the empty container that a node becomes, or None if its parts must be made first."""
    if isinstance(node, TaggedDict):
        kinds: dict[str, Callable[[], Any]] = {
            "collections.OrderedDict": OrderedDict,
            "collections.Counter": Counter,
            "argparse.Namespace": argparse.Namespace,
            "types.SimpleNamespace": types.SimpleNamespace,
        }
        return kinds.get(node.cls, dict)()
    return {} if isinstance(node, dict) else [] if isinstance(node, list) else None


def _fill_tagged(shell: Any, node: TaggedDict, items: dict[Any, Any], attributes: Any) -> None:
    if isinstance(shell, argparse.Namespace | types.SimpleNamespace):
        vars(shell).update(items)
        return
    shell.update(items)
    if attributes and isinstance(shell, OrderedDict) and "_metadata" in attributes:
        shell._metadata = attributes["_metadata"]  # type: ignore[attr-defined]


def _of(done: dict[int, Any], node: Any) -> Any:
    if isinstance(node, _LEAVES):
        return node
    if id(node) not in done:
        raise UntrustedError("a value in the file contains itself through a tuple")
    return done[id(node)]


def _constant(node: Constant) -> Any:
    if node.kind == "device":
        return torch.device(node.name)
    value = getattr(torch, node.name, None)
    if node.kind == "storage" or value is None or class_name(value) != f"torch.{node.kind}":
        raise ContainerError(f"torch {torch.__version__} has no {node.kind} {node.name!r}")
    return value


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise ContainerError(
            "the file holds numpy arrays, and numpy is not installed", hint="pip install numpy"
        ) from None
    return numpy
