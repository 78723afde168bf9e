"""Which sorts of tensor go into which: a sparse or quantised one into its like, exactly.

Law: no load makes one sort of another, and none casts what isn't dense.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RefusedLoadError
from .inputs import SavedTensor, TargetTensor

DENSE = "strided"


def check_forms(ref: str, pairs: Sequence[tuple[SavedTensor, TargetTensor]]) -> None:
    """Refuse tensors of another sort than the net's, and sparse or quantised ones to be cast.

    Raises:
        RefusedLoadError: there are some; the message gives the first few.
    """
    refused = [
        (s, t) for s, t in pairs if s.form != t.form or (s.form != DENSE and s.dtype != t.dtype)
    ]
    if not refused:
        return
    shown = "".join(
        f"\n  {t.canonical!r} is {_named(s)} in the file, {_named(t)} in the net"
        for s, t in refused[:5]
    )
    raise RefusedLoadError(
        f"{len(refused)} of {len(pairs)} tensors of {ref} are of another sort than the net's"
        + shown
        + ("\n  …" if len(refused) > 5 else ""),
        hint=_cure(ref, *refused[0]),
    )


def _named(tensor: SavedTensor | TargetTensor) -> str:
    return f"a {'dense' if tensor.form == DENSE else tensor.form} tensor of {tensor.dtype}"


def _cure(ref: str, saved: SavedTensor, target: TargetTensor) -> str:
    if saved.form == target.form:
        return f"make the net's {target.canonical!r} {saved.dtype}: only dense tensors are cast"
    dense = ".dequantize()" if saved.form.startswith("per_") else ".to_dense()"
    if target.form == DENSE:
        return (
            f"make it dense by hand: state = reg.load({ref!r}).state_dict; "
            f"state[{target.canonical!r}] = state[{target.canonical!r}]{dense}; "
            "net.load_state_dict(state)"
        )
    return f"make the net's {target.canonical!r} as the file's is: a {saved.form} tensor"
