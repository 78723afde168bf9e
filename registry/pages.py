"""What a terminal shows of one thing: sections of names and values, each worth reading.

Law: a page says where a fact comes from (recorded, inferred, unknown) and never shows a blank as
a value. Pure: records in, text out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .formatting import clock, count, listed, number, pad, size, visible, width, wrapped
from .records import Checkpoint
from .signature import Signature
from .terminal import Span
from .topology import Device, Mesh, Topology

if TYPE_CHECKING:
    from .blobs import Blob, StoredFile
    from .collecting import GcPlan
    from .copying import Copied
    from .repairing import Rebuilt, Repaired
    from .verifying import Finding, Verification

Row = tuple[str, str]

_LEAST: Final = 30  # columns of a page's values on a terminal that is narrower than that
_NAMES: Final = 14  # columns of a page's names; longer ones push their value on
_MOST: Final = 12  # rows of one kind before the rest becomes a count

_STRATEGIES: Final = {
    "single": "one process, one device",
    "dp": "DataParallel",
    "ddp": "DistributedDataParallel",
    "fsdp1": "FSDP1",
    "fsdp2": "FSDP2",
    "tp": "tensor parallel",
    "hsdp": "hybrid sharded FSDP",
    "deepspeed": "DeepSpeed",
}

_CONTAINERS: Final = {
    "torch-zip": "torch file (zip)",
    "torch-legacy": "torch file (legacy, before 1.6)",
    "safetensors": "safetensors",
}


@dataclass(frozen=True, slots=True)
class Page:
    """A title and sections of rows; sections without rows are left out."""

    title: str
    summary: str = ""
    sections: tuple[tuple[str, tuple[Row, ...]], ...] = ()

    def lines(self, columns: int | None = None) -> Iterator[list[Span]]:
        """Give the page's lines, as spans of text and what it is; everything foreign is escaped.

        Args:
            columns: break long values between words, so that they stay in their column.
        """
        title = [(visible(self.title), "title")]
        yield [*title, ("  ", ""), (visible(self.summary), "summary")] if self.summary else title
        for heading, rows in self.sections:
            if not rows:
                continue
            yield []
            yield [(heading, "heading")]
            names = max(_NAMES, *(width(visible(n)) for n, _ in rows if width(n) <= 24))
            room = None if columns is None else max(_LEAST, columns - names - 4)
            for name, value in rows:
                text = visible(value)
                first, *rest = [text] if room is None else wrapped(text, room)
                yield [(f"  {pad(visible(name), names)}  ", "name"), (first, "")]
                yield from ([(" " * (names + 4), ""), (line, "")] for line in rest)

    def render(self) -> str:
        """Return the page as plain text, a row a line."""
        return "".join("".join(t for t, _ in line).rstrip() + "\n" for line in self.lines())


def _known(*rows: tuple[str, object]) -> tuple[Row, ...]:
    return tuple((name, str(value)) for name, value in rows if value not in (None, "", ()))


def checkpoint(
    ckpt: Checkpoint,
    signature: Signature | None = None,
    *,
    parent: str | None = None,
    children: Sequence[str] = (),
    best: bool = False,
) -> Page:
    """Return everything that is recorded of a checkpoint.

    Args:
        signature: of its canonical keys, to show examples of.
        parent: the ref of the checkpoint that it continues.
        children: the refs of those that continue it.
        best: whether it is its model's best, of those that compare.
    """
    return Page(
        ckpt.ref,
        _summary(ckpt),
        (
            ("facts", _facts(ckpt, best=best)),
            ("metrics", _measured(ckpt)),
            ("saved on", _topology(ckpt.topology, ckpt.provenance.topology)),
            ("keys", _keys(ckpt, _examples(ckpt, signature))),
            ("file" if len(ckpt.files) == 1 else "files", _files(ckpt)),
            ("lineage", _lineage(ckpt, parent, children)),
        ),
    )


def best(ckpt: Checkpoint, metric: str, mode: str) -> Page:
    """Return what matters of the best checkpoint, and the commands that use it."""
    return Page(
        ckpt.ref,
        f"best by {metric} ({mode}): {_whole(ckpt.metrics.get(metric))}",
        (
            (
                "facts",
                _known(
                    ("dataset", ckpt.dataset),
                    ("epoch", ckpt.epoch),
                    ("metrics", _metrics(ckpt.metrics)),
                    ("run", _run(ckpt)),
                    ("saved on", _short(ckpt)),
                    ("wrapped", style(ckpt)),
                    ("size", size(ckpt.size_bytes)),
                    ("created", clock(ckpt.created_at)),
                    ("tags", ", ".join(ckpt.tags)),
                    ("aliases", ", ".join(ckpt.aliases)),
                ),
            ),
            (
                "use it",
                (
                    ("in Python", f'reg.load("{ckpt.ref}", into=net)'),
                    ("on this CPU", f"ckreg plan {ckpt.ref} --device cpu"),
                    ("as a file", f"ckreg pull {ckpt.ref}"),
                ),
            ),
        ),
    )


def info(found: Mapping[str, Any]) -> Page:
    """Return a registry at a glance, as `Registry.info` gives it."""
    gone = f", {found['removed']:,} removed" if found["removed"] else ""
    bytes_ = f"{size(found['size_bytes'])} in {count(found['blobs'], 'blob')}"
    return Page(
        found["location"],
        "",
        (
            (
                "holds",
                (
                    ("models", f"{found['models']:,}"),
                    ("checkpoints", f"{found['checkpoints']:,}{gone}"),
                    ("bytes", bytes_),
                ),
            ),
            (
                "place",
                (
                    ("blobs", found["blobs_at"]),
                    ("free", "" if found["free_bytes"] is None else size(found["free_bytes"])),
                    ("schema", found["schema"]),
                    ("store", found["store"]),
                ),
            ),
        ),
    )


def verification(found: Verification, title: str) -> Page:
    """Return what verify saw: the counts, and each finding with the way to mend it."""
    read = f"{count(found.files, 'file')}, {size(found.bytes_read)} read"
    bad = sum(f.damage for f in found.findings)
    state = "whole" if found.ok else f"DAMAGED: {count(bad, 'finding')}"
    return Page(
        title,
        f"{state} · {count(found.checked, 'checkpoint')} · {read}",
        tuple(
            (
                heading,
                tuple(row for f in found.findings if f.damage == damage for row in _finding(f)),
            )
            for heading, damage in (("damage", True), ("remarks", False))
        ),
    )


def _finding(found: Finding) -> tuple[Row, ...]:
    return ((found.kind, found.what), ("", found.where), ("", f"mend: {found.mend}"))


def repaired(done: Repaired, title: str) -> Page:
    """Return what repair did, and what is left to do."""
    return Page(
        title,
        f"{count(len(done.done), 'finding')} mended, {len(done.left):,} left",
        (
            (
                "mended",
                tuple(row for f, text in done.done for row in (*_finding(f)[:2], ("", text))),
            ),
            ("left", tuple(row for f in done.left for row in _finding(f))),
        ),
    )


def rebuilt(done: Rebuilt) -> Page:
    """Return what a database made anew holds, and what is not in it."""
    return Page(
        str(done.path),
        f"{count(done.checkpoints, 'checkpoint')}" + (" · in use" if done.replaced else ""),
        (
            ("the one before", _known(("kept at", done.kept))),
            (
                "not in it",
                (
                    *((id, "its record doesn't prove itself") for id in done.unusable),
                    *(("lost", text) for text in done.remarks),
                ),
            ),
        ),
    )


def copied(done: Copied) -> Page:
    """Return what a copy brought, and what it left out."""
    rows = [row for one in done.left_out for row in ((one.what, one.reason), ("", one.hint or ""))]
    return Page(
        done.destination,
        f"{count(done.checkpoints, 'checkpoint')} copied, {done.present:,} there already, "
        f"{len(done.updated):,} updated, {len(done.left_out):,} left out",
        (
            (
                "copied",
                _known(
                    ("from", done.source),
                    ("models", f"{done.models:,}"),
                    ("new runs", f"{done.runs:,}"),
                    ("bytes", f"{size(done.size_bytes)} in {count(done.blobs, 'file')}"),
                    ("updated", listed(done.updated, _MOST)),
                ),
            ),
            ("left out", tuple(row for row in rows if row[1])),
        ),
    )


def collection(plan: GcPlan) -> Page:
    """Return what gc takes, or took."""
    verb = "freed" if plan.done else "to free"
    return Page(
        f"{size(plan.size_bytes)} {verb}" if plan else "nothing to free",
        "",
        (
            (
                "goes" if not plan.done else "went",
                _known(
                    ("checkpoints", listed([one.ref for one in plan.checkpoints], _MOST)),
                    ("blobs", _amount(plan.blobs)),
                    ("without a row", _amount(plan.orphans)),
                    ("temporary", _amount(plan.leftovers)),
                ),
            ),
            ("stays", _known(("for now", _spared(plan)))),
        ),
    )


def _amount(found: Sequence[Blob | StoredFile]) -> str | None:
    bytes_ = size(sum(file.size_bytes for file in found))
    return f"{count(len(found), 'file')}, {bytes_}" if found else None


def _spared(plan: GcPlan) -> str | None:
    if not plan.spared:
        return None
    days = str(plan.grace).removesuffix(", 0:00:00")
    return f"{plan.spared:,} removed or without a row for less than the grace of {days}"


def _summary(ckpt: Checkpoint) -> str:
    facts = [
        ckpt.dataset,
        None if ckpt.epoch is None else f"epoch {ckpt.epoch}",
        None if ckpt.acc is None else f"acc {number(ckpt.acc)}",
        "REMOVED" if ckpt.removed_at else None,
    ]
    return " · ".join(f for f in facts if f)


def _whole(value: float | None) -> str:
    return "-" if value is None else repr(value)


def _metrics(metrics: Mapping[str, float]) -> str:
    return listed((f"{name} {number(value)}" for name, value in metrics.items()), _MOST)


def _run(ckpt: Checkpoint) -> str | None:
    if ckpt.run is None:
        return None
    return f"{ckpt.run.name} ({ckpt.run.id[:8]})" if ckpt.run.name else ckpt.run.id[:8]


def _short(ckpt: Checkpoint) -> str:
    short = ckpt.topology.short()
    return "unknown" if short == "-" else short


def style(ckpt: Checkpoint) -> str:
    """Return how the live model was wrapped, and where that is known from."""
    source = ckpt.provenance.key_style
    if source == "unknown":
        return "unknown"
    text = f"'{ckpt.key_style}'" if ckpt.key_style else "no"
    return text if source == "recorded" else f"{text} ({source} from the file's keys)"


def _measured(ckpt: Checkpoint) -> tuple[Row, ...]:
    return (
        *((name, repr(value)) for name, value in itertools.islice(ckpt.metrics.items(), _MOST)),
        *_more(len(ckpt.metrics), "metric"),
    )


def _facts(ckpt: Checkpoint, *, best: bool) -> tuple[Row, ...]:
    git = ckpt.git and f"{ckpt.git.commit[:12]}{' with local changes' if ckpt.git.dirty else ''}"
    by = f" by {ckpt.author}" if ckpt.author else ""
    host = f" on {ckpt.topology.hostname}" if ckpt.topology.hostname else ""
    verb = "saved" if ckpt.origin == "save" else "pushed"
    return (
        *_known(
            ("id", ckpt.id),
            ("model", ckpt.model),
            ("dataset", ckpt.dataset),
            ("epoch", ckpt.epoch),
            ("step", ckpt.step),
        ),
        *_known(
            (
                "best",
                " on ".join(filter(None, (f"of {ckpt.model}", ckpt.dataset))) if best else None,
            ),
            ("from its name", ", ".join(ckpt.provenance.from_name)),
            ("run", _run(ckpt)),
            ("config", listed((f"{k}={v}" for k, v in ckpt.config.to_dict().items()), _MOST)),
            ("batch size", ckpt.batch_size),
            (verb, f"{clock(ckpt.created_at)}{by}{host}"),
            ("removed", ckpt.removed_at and clock(ckpt.removed_at)),
            ("command", ckpt.command),
            ("git", git),
            ("tags", ", ".join(ckpt.tags)),
            ("aliases", ", ".join(ckpt.aliases)),
            ("note", ckpt.note),
        ),
    )


def _more(amount: int, noun: str) -> tuple[Row, ...]:
    return (("…", f"and {count(amount - _MOST, f'{noun} more', f'{noun}s more')}"),) * (
        amount > _MOST
    )


def _topology(topology: Topology, source: str) -> tuple[Row, ...]:
    hosts = list(topology.hosts().items())
    return (
        ("source", "recorded" if source == "recorded" else f"{source}: the file doesn't say"),
        *_known(
            ("strategy", strategy(topology)),
            ("processes", processes(topology)),
            ("trained on", trained_on(topology)),
        ),
        *(("mesh", mesh(one)) for one in topology.meshes[:_MOST]),
        *_known(("placed", placed(topology))),
        *((host, _ranks(ranks)) for host, ranks in hosts[:_MOST]),
        *_more(len(hosts), "host"),
        *((f"{d.type}:{d.index}", _device(d)) for d in topology.devices[:_MOST]),
        *_more(len(topology.devices), "device"),
        *(
            ()
            if topology.visible_devices is None
            else (("visible", f"CUDA_VISIBLE_DEVICES={topology.visible_devices!r}"),)
        ),
        *_known(("versions", versions(topology)), ("in the file", tags(topology))),
    )


def strategy(topology: Topology) -> str | None:
    """Return how a model was spread, in PyTorch's word for it."""
    return _STRATEGIES.get(topology.strategy or "", topology.strategy)


def processes(topology: Topology) -> str | None:
    """Return how many processes there were, which of them wrote, and what joined them."""
    if not topology.world_size:
        return None
    wrote = f", rank {topology.rank} wrote" if topology.rank is not None else ""
    backend = f", {topology.backend}" if topology.backend else ""
    return f"{count(topology.world_size, 'process', 'processes')}{wrote}{backend}"


def trained_on(topology: Topology) -> str | None:
    """Return how many devices of which type trained, over all processes."""
    if not topology.device_count:
        return None
    return f"{topology.device_count} x {topology.device_type or 'device'}"


def mesh(of: Mesh) -> str:
    """Return a grid of devices: its sizes, and its axes' names if given."""
    names = f" ({', '.join(of.names)})" if of.names else ""
    return f"{' x '.join(map(str, of.shape))}{names}"


def placed(topology: Topology) -> str | None:
    """Return how many tensors of a sharded net lay how."""
    by_amount = sorted(topology.placements.items(), key=lambda item: (-item[1], item[0]))
    return listed((f"{count(n, 'tensor')} {how}" for how, n in by_amount), 8) or None


def versions(topology: Topology) -> str:
    """Return the versions of what it ran on."""
    return ", ".join(
        f"{name} {version}"
        for name, version in (
            ("torch", topology.torch_version),
            ("CUDA", topology.cuda_version),
            ("Python", topology.python_version),
        )
        if version
    )


def tags(topology: Topology) -> str:
    """Return how many storages of the file carry which device's tag."""
    found = sorted(topology.storage_tags.items())
    return listed((f"{count(n, 'storage')} tagged {tag}" for tag, n in found), 8)


def _ranks(ranks: Sequence[tuple[int, str]]) -> str:
    """Return a host's ranks, each with its devices."""
    return listed((f"rank {rank} {devices}".rstrip() for rank, devices in ranks), 8)


def _device(device: Device) -> str:
    memory = "" if device.memory_bytes is None else f", {size(device.memory_bytes)}"
    return f"{device.name or device.type}{memory}"


def _keys(ckpt: Checkpoint, examples: Iterable[tuple[str, str]]) -> tuple[Row, ...]:
    elements = "" if ckpt.parameters is None else f", {ckpt.parameters:,} parameters"
    return (
        ("wrapped", style(ckpt)),
        *(
            ("for example", f"{live}, {'as' if live == stored else stored} in the file")
            for live, stored in examples
        ),
        ("weights", f"{ckpt.weights}: {count(ckpt.tensors, 'tensor')}{elements}"),
        ("signature", ckpt.signature),
    )


def _examples(ckpt: Checkpoint, signature: Signature | None) -> list[tuple[str, str]]:
    """Return two keys of the live model, each with the same tensor's key in the file."""
    if signature is None:
        return []
    from . import keys

    canonical = [t.key for t in signature.tensors]
    live = keys.to_raw(canonical, ckpt.key_style)
    stored = keys.to_raw(canonical, ckpt.file_keys)
    pairs = [(live[key], stored[key]) for key in canonical]
    return sorted(pairs, key=lambda pair: pair[0] == pair[1])[:2]  # where they differ first


def _files(ckpt: Checkpoint) -> tuple[Row, ...]:
    several = len(ckpt.files) > 1
    return (
        *_known(("kind", kind(ckpt))),
        *(("name", f"{f.name}, {size(f.size_bytes)}, {f.digest}") for f in ckpt.files[:_MOST]),
        *_more(len(ckpt.files), "file"),
        *_known(("together", f"{size(ckpt.size_bytes)}, {ckpt.digest}" if several else None)),
        *_known(
            ("also in it", listed([f"{n} ({c})" for n, c in ckpt.optimizers.items()])),
            ("scheduler", ckpt.scheduler),
        ),
        ("trust", trust(ckpt)),
    )


def kind(ckpt: Checkpoint) -> str:
    """Return what sort of file or folder it is."""
    return _CONTAINERS.get(ckpt.container, ckpt.container)


def trust(ckpt: Checkpoint) -> str:
    """Return whether anything in it asks for code."""
    names = ckpt.unsafe_globals
    if not names:
        return "plain data: nothing in it asks for code"
    return (
        f"asks for {count(len(names), 'thing')} that weights_only would refuse and ckreg never "
        f"runs: {listed(names)}"
    )


def _lineage(ckpt: Checkpoint, parent: str | None, children: Sequence[str]) -> tuple[Row, ...]:
    return _known(
        ("continues", parent or ckpt.parent),
        ("continued by", listed(children, _MOST) if children else None),
    )
