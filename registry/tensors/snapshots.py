"""Undoing a load that failed half-way.

Law: memory is taken for a copy of the weights only where code that is not torch's takes part in the
loading, since torch's own, once keys and shapes are checked, doesn't fail. What is undone last was
done first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .observe import Live
from .views import form_of
from .wrappers import class_name


class Undo:
    """The steps that bring the target back, in reverse order; each runs even if another fails."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Remember a step."""
        self._steps.append(step)

    def run(self) -> None:
        """Undo everything.

        Raises:
            ExceptionGroup: some steps failed; the others were done.
        """
        failed: list[Exception] = []
        while self._steps:
            try:
                self._steps.pop()()
            except Exception as error:
                failed.append(error)
        if failed:
            raise ExceptionGroup(
                "a load failed, and undoing it failed too: the target is not as it was", failed
            )


def take_snapshot(live: Live, undo: Undo, *, values: bool) -> None:
    """Remember which tensors a net's modules hold, and with `values` also what is in them."""
    held = [(p.module, dict(p.module._parameters), dict(p.module._buffers)) for p in live.places]
    copies: dict[str, Tensor] = {}
    extra: list[tuple[nn.Module, object]] = []
    if values:
        for key, value in live.state.items():
            if key in live.extra_states:
                extra.append((live.owners[key][0], copy.deepcopy(value)))
            elif isinstance(value, Tensor):
                copies[key] = value.clone()

    def back() -> None:
        for module, parameters, buffers in held:
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for key, saved in copies.items():
                tensor = live.state[key]
                if form_of(saved) != "strided" and key in live.owners:
                    tensor = getattr(*live.owners[key])  # its indices or scales are its own
                assert isinstance(tensor, Tensor)  # state_dict's tensors share the net's memory
                tensor.copy_(saved)
        for module, state in extra:
            module.set_extra_state(state)

    undo.add(back)


_HOOKED = ("load_state_dict", "_load_from_state_dict", "set_extra_state")


def foreign_code(live: Live) -> str | None:
    """Return whose code, if not torch's, takes part in a net's load_state_dict, or None."""
    for place in live.places:
        module = place.module
        for name in _HOOKED:
            owner = next((c for c in type(module).__mro__ if name in vars(c)), nn.Module)
            if not _is_torch(owner.__module__):
                return class_name(module)
        for hooks in (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks):
            for hook in hooks.values():
                function = getattr(hook, "hook", hook)
                function = getattr(function, "func", function)  # functools.partial
                if not _is_torch(getattr(function, "__module__", None) or ""):
                    return class_name(module)
    return None


def _is_torch(module: str) -> bool:
    return module == "torch" or module.startswith("torch.")
