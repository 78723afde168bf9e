r"""The model card of an export: README.md, which people and the Hugging Face Hub read.

    ---                    front matter: library, tags, and the metrics as the Hub's model-index
    # resnet50             what it is, then tables: facts, metrics, saved on, weights, files
    ## Load it             with ckreg, with plain torch or safetensors
    <!-- ckreg-card … -->  the digest of all above: a card that somebody edited is told from ours

Law: equal exports have equal cards, so no clock and no path is in it; nothing is said that isn't
recorded, and nothing recorded can be read as YAML, HTML or Markdown. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .formatting import flat, listed, number, size, visible
from .records import Checkpoint, RunRecord
from .values import EMPTY, digest_of, time_text

_MOST: Final = 40  # rows of one kind before the rest becomes a count
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
_SEAL: Final = re.compile(r"<!-- ckreg-card (blake3:[0-9a-f]{64}) -->\n\Z")

Row = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the state dict that was written."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        found = 1
        for side in self.shape:
            found *= side
        return found


@dataclass(frozen=True, slots=True)
class Written:
    """What an export wrote.

    Attributes:
        format: safetensors or pt.
        files: the files of weights, in order.
        keys: how its keys are wrapped; "" is plain, None as they are in a file that nobody knows.
        weights: live or ema, where the checkpoint held both; else None.
    """

    format: str
    files: tuple[str, ...]
    tensors: tuple[Weight, ...]
    keys: str | None
    weights: str | None = None


def card(ckpt: Checkpoint, run: RunRecord | None, written: Written) -> str:
    """Return the text of README.md.

    Args:
        run: the whole of the checkpoint's run.
    """
    head = (
        f"{escaped(ckpt.ref)}: {_summary(ckpt)}. Written by ckreg; `ckreg.json` beside this file "
        "is the whole record."
    )
    sizes = ("tensors", "elements", "bytes")
    lines = (
        *_front_matter(ckpt, written),
        *("", f"# {escaped(ckpt.model)}", "", head),
        *_table("Facts", ("fact", "value"), _facts(ckpt, run)),
        *_table("Metrics", ("metric", "value"), _metrics(ckpt)),
        *_table("Settings", ("setting", "value"), _settings(ckpt, run)),
        *_table("Saved on", ("what", "value"), _topology(ckpt)),
        *_table("Weights", ("dtype", *sizes), _dtypes(written.tensors)),
        *_table("", ("part", *sizes), _parts(written.tensors)),
        *("", _keys(ckpt, written)),
        _loading(ckpt, written),
    )
    text = "\n".join(lines)
    return f"{text}\n<!-- ckreg-card {digest_of(text)} -->\n"


def is_untouched(text: str) -> bool:
    """Say whether a card is as `card` wrote it: nobody's edits are lost with it.

    Example:
        >>> is_untouched("# my own words")
        False
    """
    seal = _SEAL.search(text)
    return seal is not None and digest_of(text[: seal.start() - 1]) == seal[1]


# --- front matter ---------------------------------------------------------------------------------


def _front_matter(ckpt: Checkpoint, written: Written) -> Iterable[str]:
    yield "---"
    yield "library_name: pytorch"
    yield "tags:"
    ours = ("ckreg", "pytorch", *(("safetensors",) if written.format == "safetensors" else ()))
    for tag in dict.fromkeys((*ours, *ckpt.tags)):
        yield f"- {scalar(tag)}"
    if ckpt.dataset is not None and ckpt.metrics:  # the Hub knows no result without a dataset
        yield "model-index:"
        yield f"- name: {scalar(ckpt.model)}"
        yield "  results:"
        yield "  - task:"
        yield '      type: "other"'
        yield "    dataset:"
        yield f"      type: {scalar(_dataset_id(ckpt.dataset))}"
        yield f"      name: {scalar(ckpt.dataset)}"
        yield "    metrics:"
        for name, value in ckpt.metrics.items():
            yield f"    - type: {scalar(name)}"
            yield f"      name: {scalar(name)}"
            yield f"      value: {_float(value)}"
    yield "---"


def scalar(text: str) -> str:
    r"""Return text as a YAML double-quoted scalar on one line, which reads back as it was.

    Example:
        >>> print(scalar('a: "b" \n# é'))
        "a: \"b\" \n# é"
    """
    return '"' + "".join(_character(c) for c in text) + '"'


def _character(c: str) -> str:
    if c in '"\\':
        return f"\\{c}"
    if c.isprintable():
        return c
    code = ord(c)
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    if 0xD800 <= code < 0xE000:
        return "\\uFFFD"  # half of a pair: no YAML can hold it
    return short.get(c) or (f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}")


def _float(value: float) -> str:
    """Return a number that YAML 1.1 reads as one: `1e-05` is text there, and `1.0e-05` isn't."""
    text = repr(value)
    return text if "." in text or "e" not in text else text.replace("e", ".0e")


def _dataset_id(name: str) -> str:
    """Return a word of the form that the Hub wants beside a dataset's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "unknown"


# --- Markdown -------------------------------------------------------------------------------------


def escaped(text: object) -> str:
    r"""Return text that Markdown shows as it is: no markup, no HTML, no link, on one line.

    Example:
        >>> print(escaped("<b>val_acc</b> | x"))
        \<b\>val\_acc\</b\> \| x
    """
    return _MARKDOWN.sub(r"\\\1", visible(text))


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yield a section; without rows there is none. The cells are escaped already."""
    if not rows:
        return
    if title:
        yield from ("", f"## {title}")
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _known(*rows: tuple[str, object]) -> tuple[Row, ...]:
    return tuple((name, escaped(value)) for name, value in rows if value not in (None, "", ()))


def _summary(ckpt: Checkpoint) -> str:
    facts = (
        ckpt.dataset and f"trained on {escaped(ckpt.dataset)}",
        None if ckpt.epoch is None else f"epoch {ckpt.epoch}",
        None if ckpt.step is None else f"step {ckpt.step}",
        None if ckpt.acc is None else f"acc {escaped(number(ckpt.acc))}",
    )
    return ", ".join(f for f in facts if f) or "a PyTorch checkpoint"


def _facts(ckpt: Checkpoint, run: RunRecord | None) -> tuple[Row, ...]:
    git = ckpt.git or (run.git if run is not None else None)
    changed = " with local changes" if git is not None and git.dirty else ""
    return _known(
        ("model", ckpt.model),
        ("version", f"v{ckpt.version}"),
        ("dataset", ckpt.dataset),
        ("epoch", ckpt.epoch),
        ("step", ckpt.step),
        ("run", ckpt.run and (ckpt.run.name or ckpt.run.id)),
        ("batch size", ckpt.batch_size),
        ("tags", ", ".join(ckpt.tags)),
        ("aliases", ", ".join(ckpt.aliases)),
        ("note", ckpt.note),
        ("created", time_text(ckpt.created_at)),
        ("git commit", git and f"{git.commit}{changed}"),
        ("only its file's name says", ", ".join(ckpt.provenance.from_name)),
        ("checkpoint id", ckpt.id),
        ("digest of the recorded file" if len(ckpt.files) == 1 else "digest of the recorded files",
         ckpt.digest),
        ("signature of its tensors", ckpt.signature),
    )  # fmt: skip


def _metrics(ckpt: Checkpoint) -> tuple[Row, ...]:
    return tuple((escaped(name), escaped(repr(value))) for name, value in ckpt.metrics.items())


def _settings(ckpt: Checkpoint, run: RunRecord | None) -> tuple[Row, ...]:
    config = ckpt.config or (run.config if run is not None else EMPTY)
    rows = flat(config.to_dict())
    more = len(rows) - _MOST
    cut = ((f"and {more:,} more", "see ckreg.json"),) if more > 0 else ()
    return (*((escaped(k), escaped(v)) for k, v in rows[:_MOST]), *cut)


def _topology(ckpt: Checkpoint) -> tuple[Row, ...]:
    at = ckpt.topology
    kinds = Counter(d.name or d.type for d in at.devices if d.type == (at.device_type or d.type))
    versions = (
        ("torch", at.torch_version), ("CUDA", at.cuda_version), ("Python", at.python_version),
    )  # fmt: skip
    return (
        *_known(("source", ckpt.provenance.topology)),
        *_known(
            ("strategy", at.strategy),
            ("processes", at.world_size),
            ("devices", at.device_count and f"{at.device_count} x {at.device_type or 'device'}"),
            ("visible to the writer", listed(f"{n} x {name}" for name, n in kinds.items())),
            ("meshes", listed(" x ".join(map(str, m.shape)) for m in at.meshes)),
            ("versions", ", ".join(f"{name} {version}" for name, version in versions if version)),
        ),
    )


def _dtypes(tensors: Sequence[Weight]) -> list[tuple[str, ...]]:
    return _grouped(tensors, lambda weight: weight.dtype)


def _parts(tensors: Sequence[Weight]) -> list[tuple[str, ...]]:
    """Return the weights by the first part of their keys below what all of them begin with."""
    names = [w.name.split(".") for w in tensors]
    shared = 0
    while names and all(len(n) > shared + 1 and n[shared] == names[0][shared] for n in names):
        shared += 1
    return _grouped(tensors, lambda weight: ".".join(weight.name.split(".")[: shared + 1]))


def _grouped(tensors: Sequence[Weight], of: Callable[[Weight], str]) -> list[tuple[str, ...]]:
    groups: dict[str, list[Weight]] = {}
    for weight in tensors:
        groups.setdefault(of(weight), []).append(weight)
    rows = [
        (
            escaped(name),
            f"{len(of_it):,}",
            f"{sum(w.elements for w in of_it):,}",
            escaped(size(sum(w.size_bytes for w in of_it))),
        )
        for name, of_it in groups.items()
    ]
    more = len(rows) - _MOST
    return [*rows[:_MOST], *([(f"and {more:,} more", "", "", "")] if more > 0 else [])]


def _keys(ckpt: Checkpoint, written: Written) -> str:
    which = f" The {written.weights} weights were taken." if written.weights else ""
    if written.keys is None:
        how = "Keys are those of the recorded file; how they are wrapped is not known."
    elif written.keys:
        how = f"Keys are wrapped: {escaped(repr(written.keys))}."
    else:
        how = "Keys are plain: those of the net without DataParallel, DDP or torch.compile."
    source = ckpt.provenance.key_style
    live = str(ckpt.key_style)
    trained = f" It trained as {escaped(repr(live))} ({source})." if live else ""
    return f"{how}{trained}{which}"


_WITH_CKREG: Final = """
## Load it

With ckreg, which takes this folder in with its record and refuses what doesn't fit:

```sh
ckreg push .
```

```python
from registry import Registry

Registry.open().load("{model}", into=net)
```

Without it:
"""

_WITHOUT: Final = {
    ("safetensors", 1): """
```python
from safetensors.torch import load_model

load_model(net, "{file}")
```
""",
    ("safetensors", 2): """
```python
from pathlib import Path

from safetensors.torch import load_file

parts = [load_file(path) for path in sorted(Path().glob("model-*.safetensors"))]
net.load_state_dict({{key: value for part in parts for key, value in part.items()}})
```
""",
    ("pt", 1): """
```python
import torch

net.load_state_dict(torch.load("{file}", weights_only=True))
```
""",
    ("pt", 2): """
```python
from pathlib import Path

import torch

files = sorted(Path().glob("pytorch_model-*.bin"))
parts = [torch.load(path, weights_only=True) for path in files]
net.load_state_dict({{key: value for part in parts for key, value in part.items()}})
```
""",
}
"""How others load it: by format, and whether it is one file or several."""


def _loading(ckpt: Checkpoint, written: Written) -> str:
    how = _WITHOUT[written.format, min(len(written.files), 2)]
    return _WITH_CKREG.format(model=ckpt.model) + how.format(file=written.files[0])
