"""The record that written weights carry, in the form in which a saved file carries its own.

Law: it says of the weights what is known of their checkpoint, and no more: what is inferred stays
marked so, and what isn't written (an optimizer) isn't spoken of. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .planning import LoadPlan
from .records import Checkpoint, RunRecord
from .values import FORMAT

_OF_THE_NET: Final = ("buffers", "ties")
"""What only a record of ours knows: of no other file is it said which tensors are buffers."""


def carried(
    checkpoint: Checkpoint, run: RunRecord | None, plan: LoadPlan, own: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the record that a checkpoint's weights carry, written as a plan says.

    Args:
        run: the whole of the checkpoint's run.
        own: the record that the checkpoint's own file carries.
    """
    facts = checkpoint.to_dict()
    same = (
        "model", "dataset", "epoch", "step", "metrics", "config", "batch_size", "parent",
        "topology", "git", "command", "author",
    )  # fmt: skip
    record = {"format": FORMAT, **{name: facts[name] for name in same}}
    record["run"] = None if run is None else run.to_dict()
    record["weights"] = "ema" if "ema" in (plan.weights, checkpoint.weights) else "live"
    known = plan.keys_from != "as they are"
    record["key_style"] = str(checkpoint.key_style) if known else ""
    record["file_keys"] = str(plan.out_keys) if known else ""
    record["provenance"] = {
        **facts["provenance"],
        "key_style": "recorded" if known else "unknown",
    }
    return record | {name: own[name] for name in _OF_THE_NET if own is not None and name in own}
