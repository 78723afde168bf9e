"""A plan in words, and the same load by hand with plain torch.

Law: keys come from files, so they are printed by repr, never raw. The Python does what the plan
does; what only ckreg does (checking digests, refusing without a trace) it can't show.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping

from ..keys import Reading, to_raw
from ..records import FOLDERS
from ..signature import KeyStyle
from .devices import PER_PARAMETER, RECORDED
from .inputs import Saved
from .plan import NOT_ASKED, LoadPlan, OptimizerMove

_WIDTH = 14
_MOST_CODE_LINES = 8


def plan_text(plan: LoadPlan) -> str:
    """Return the plan as lines that a person reads, each choice with its reason."""
    lines = [f"load {plan.ref} into " + ("the net" if plan.into_target else "a new state dict")]
    for label, text in plan_rows(plan):
        parts = textwrap.wrap(text, 86, break_long_words=False, break_on_hyphens=False)
        lines += [f"  {label if not i else '':<{_WIDTH}}{part}" for i, part in enumerate(parts)]
    code = plan.python.splitlines()
    lines.append("  by hand:")
    lines += [f"    {_cut(line)}" for line in code[:_MOST_CODE_LINES]]
    if len(code) > _MOST_CODE_LINES:
        lines.append(f"    # … {len(code) - _MOST_CODE_LINES} more lines in plan.python")
    return "\n".join(lines)


def plan_rows(plan: LoadPlan) -> list[tuple[str, str]]:
    """Return what the plan decides, each choice with its reason: (what, how and why)."""
    return [
        ("reader", f"{plan.reader}; no code of the file runs"),
        ("saved on", f"{plan.topology.short()} ({plan.provenance.topology})"),
        ("map_location", f"{plan.map_location!r}: {plan.device_reason}"),
        ("keys", _keys(plan)),
        ("weights", _weights(plan)),
        ("memory", _memory(plan)),
        ("dtype", _dtype(plan)),
        ("restored", _restored(plan)),
        *(("ignored", note) for note in _grouped((n.what, n.reason) for n in plan.ignored)),
        *(("kept", note) for note in _grouped((n.what, n.reason) for n in plan.kept)),
        *(("warning", warning) for warning in plan.warnings),
        *(("advice", advice) for advice in plan.advice),
    ]


def _keys(plan: LoadPlan) -> str:
    if plan.keys_from == "as they are":
        return "as they are in the file: how they are wrapped is not recorded"
    style = f"the file's are {_reading(plan.reading)}, {_SOURCES[plan.keys_from]}"
    renames = plan.renames
    if not renames:
        return f"none renamed ({style})"
    source, key = next(iter(renames.items()))
    return f"{len(renames)} renamed, {source!r} -> {key!r} ({style})"


_SOURCES = {
    "recorded": "recorded",
    "stated": "stated by hand",
    "inferred": "inferred: the net fits no other reading",
}


def _reading(reading: Reading) -> str:
    style = repr(str(reading.style)) if reading.style else "plain"
    if reading.drop:
        return f"{style} with the net under {reading.drop!r}"
    return f"{style} without the {reading.add!r} that holds them" if reading.add else style


def _weights(plan: LoadPlan) -> str:
    text = f"{len(plan.moves)} tensors, {plan.weights}, {_size(plan.bytes_to_read)} to read"
    if plan.size_bytes:
        text += f" of {_size(plan.size_bytes)}"
    if plan.assign:
        text += "; assigned, because the net is on meta"
    if plan.retie:
        text += f"; {len(plan.retie)} tied again"
    if plan.must_equal:
        text += (
            f"; {len(plan.must_equal)} tied in the net only: refused unless their values are equal"
        )
    return text


def _memory(plan: LoadPlan) -> str:
    devices = ", ".join(f"{_size(size)} on {name}" for name, size in plan.memory.devices.items())
    held = " (the net has them already)" if plan.into_target and not plan.assign else ""
    return f"{devices or 'none'}{held}; at most {_size(plan.memory.host_peak)} on the host"


def _dtype(plan: LoadPlan) -> str:
    if not plan.casts:
        return "exact"
    kinds = Counter(f"{m.dtype} -> {m.to_dtype}" for m in plan.casts)
    shown = ", ".join(f"{many} {kind}" for kind, many in kinds.items())
    checked = any(m.check_finite for m in plan.casts)
    return f"{shown} (cast={plan.dtype!r}{'; refused if a value is lost' if checked else ''})"


def _restored(plan: LoadPlan) -> str:
    parts = ["weights"]
    for move in plan.optimizers:
        how = "positions re-mapped by name" if move.reordered else "same order"
        proof = {
            "recorded": f"{how}, recorded",
            "param_names": f"{how}, by PyTorch's param_names",
            "shapes": "positions proved by shapes that are all different",
            "no state": "it has no state per parameter",
        }[move.proof]
        parts.append(f"{move.name} ({move.cls.rpartition('.')[2]}: {proof})")
    parts += ["scheduler"] * plan.scheduler
    parts += plan.stateful
    parts += ["rng"] * plan.rng
    parts += [name for _, name in plan.wrapper_state]
    return ", ".join(parts)


def _grouped(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Join notes that share a reason into one line."""
    by_reason: dict[str, list[str]] = {}
    for what, reason in notes:
        shared = NOT_ASKED if reason.startswith(NOT_ASKED) else reason
        by_reason.setdefault(shared, []).append(what)
    return [f"{_listed(what)}: {reason}" for reason, what in by_reason.items()]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")


def _cut(line: str) -> str:
    return line if len(line) <= 110 else line[:109] + "…"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


# --- the same by hand -----------------------------------------------------------------------------


def by_hand(
    plan: LoadPlan, saved: Saved, renames: Mapping[str, str], of_wrapper: Mapping[str, str]
) -> str:
    """Return plain torch code that does what the plan does, on the file that `ckreg pull` gives.

    Args:
        renames: raw key -> target key of every tensor whose names agree.
        of_wrapper: raw keys in the file that are a wrapper's own.
    """
    name = plan.ref.replace("/", "-").replace("@", "-")
    device = "cpu" if plan.map_location == PER_PARAMETER else plan.map_location
    lines: list[str] = []
    if plan.reader == "safetensors":
        where = "" if device == RECORDED else f", device={device!r}"
        lines.append(f"weights = safetensors.torch.load_file({name + '.safetensors'!r}{where})")
    elif plan.reader in FOLDERS:
        whole = bool(plan.optimizers or plan.scheduler)
        how = "--format pt" if whole else "--format pt --only weights"
        lines.append(f"# as one file: ckreg pull {plan.ref} {how} -o {name}.pt")
        where = "" if device == RECORDED else f"map_location={device!r}, "
        lines.append(f"ckpt = torch.load({name + '.pt'!r}, {where}weights_only=True)")
        steps = plan.where.split(".") if plan.where and whole else []
        lines.append("weights = ckpt" + "".join(f"[{step!r}]" for step in steps))
    else:
        if saved.unsafe_globals:
            shown = _listed([repr(g) for g in saved.unsafe_globals])
            lines.append(f"# torch.load refuses {shown} in this file, ckreg doesn't need them")
        where = "" if device == RECORDED else f"map_location={device!r}, "
        lines.append(f"ckpt = torch.load({name + '.pt'!r}, {where}weights_only=True)")
        steps = plan.where.split(".") if plan.where else []
        lines.append("weights = ckpt" + "".join(f"[{step!r}]" for step in steps))
    lines += _renaming(plan, renames)
    unwanted = sorted(
        {renames.get(raw, raw) for raw in of_wrapper} if not plan.wrapper_state else ()
    )
    misshapen = _misshapen_keys(plan, renames)
    if unwanted or misshapen:
        lines.append(f"for key in {[*unwanted, *misshapen]!r}: del weights[key]")
    own = {key: source for source, key in renames.items()}
    for move in plan.moves:
        if move.key not in own:
            lines.append(f"weights[{move.key!r}] = weights[{renames[move.source]!r}]  # tied")
    loose = plan.missing or plan.unexpected or plan.mismatched or plan.kept or plan.wrapper_state
    options = (", strict=False" if loose else "") + (", assign=True" if plan.assign else "")
    lines.append(f"net.load_state_dict(weights{options})")
    for group in plan.retie:
        lines.append(f"# tie again: {', '.join(map(repr, group))}")
    for optimizer in plan.optimizers:
        lines += _optimizer(optimizer, saved)
    if plan.scheduler:
        lines.append("scheduler.load_state_dict(ckpt['scheduler'])")
    return "\n".join(lines)


def _misshapen_keys(plan: LoadPlan, renames: Mapping[str, str]) -> list[str]:
    moved = {m.source for m in plan.moves}
    return [key for source, key in renames.items() if source not in moved]


def _renaming(plan: LoadPlan, renames: Mapping[str, str]) -> list[str]:
    """Return the shortest rename that is right for every key."""
    if all(source == key for source, key in renames.items()):
        return []
    source, key = next(pair for pair in renames.items() if pair[0] != pair[1])
    expression: str | None = None
    if source.endswith(key):
        prefix = source.removesuffix(key)
        if all(raw == prefix + new for raw, new in renames.items()):
            expression = f"k.removeprefix({prefix!r})"
    elif key.endswith(source):
        prefix = key.removesuffix(source)
        if all(new == prefix + raw for raw, new in renames.items()):
            expression = f"{prefix!r} + k"
    if expression is None:
        expression = _replacing(plan, renames)
    if expression is not None:
        return [f"weights = {{{expression}: v for k, v in weights.items()}}"]
    changed = {raw: new for raw, new in renames.items() if raw != new}
    return [
        f"renames = {changed!r}",
        "weights = {renames.get(k, k): v for k, v in weights.items()}",
    ]


def _replacing(plan: LoadPlan, renames: Mapping[str, str]) -> str | None:
    """Return a chain of replacements, one for each wrapper, if that gives every key."""
    steps = [
        *((old, new) for new, old in reversed(_positions(plan.file_keys))),
        *_positions(plan.out_keys),
    ]
    if not 0 < len(steps) <= 3:
        return None
    for raw, new in renames.items():
        key = raw
        for old, put in steps:
            key = key.replace(old, put, 1)
        if key != new:
            return None
    return "k" + "".join(f".replace({old!r}, {put!r}, 1)" for old, put in steps)


def _positions(style: KeyStyle) -> list[tuple[str, str]]:
    """Return (prefix without wrapper, prefix with it) for each position, outer ones first."""
    found: list[tuple[str, str]] = []
    for path, tokens in sorted(style.wraps, key=lambda wrap: len(wrap[0])):
        if path:
            leaf = f"{path}.x"
            outer = KeyStyle(tuple(w for w in style.wraps if w[0] != path))
            before = to_raw([leaf], outer)[leaf].removesuffix("x")
            found.append((before, before + "".join(f"{t}." for t in tokens)))
    return found


def _optimizer(move: OptimizerMove, saved: Saved) -> list[str]:
    inside = "" if move.name == "optimizer" else f"[{move.name!r}]"
    state = f"ckpt['optimizer']{inside}"
    name = "optimizer" if move.name == "optimizer" else f"optimizers[{move.name!r}]"
    if not move.reordered:
        return [f"{name}.load_state_dict({state})"]
    sizes = saved.optimizers[move.name].group_sizes
    starts = [sum(sizes[move.groups[j]] for j in range(i)) for i in range(len(move.groups))]
    params = {
        group: (start, start + sizes[group])
        for group, start in zip(move.groups, starts, strict=True)
    }
    return [
        f"was, order = {state}, {list(move.order)!r}",
        f"{name}.load_state_dict({{",
        "    'state': {i: was['state'][j] for i, j in enumerate(order) if j in was['state']},",
        "    'param_groups': [{**was['param_groups'][g], 'params': list(range(*span))}",
        f"                     for g, span in {params!r}.items()]}})",
    ]
