"""Which blob store a database's blobs are in: its id, as a setting has it."""

from __future__ import annotations

from typing import Final

from ..errors import ConflictError

STORE: Final = "store"
"""The setting's name."""


def check_same(known: str | None, store: str) -> None:
    """See that the blobs are in a store, as far as it is recorded.

    Args:
        known: the id that is recorded.
        store: the store's own.

    Raises:
        ConflictError: they are in another one.
    """
    if known not in (None, store):
        raise ConflictError(
            f"the database's blobs are in the store {known}, and this one is {store}",
            hint="see whether the right folder is mounted there: ckreg info",
        )
