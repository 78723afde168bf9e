"""How Alembic runs the migrations: on the connection and in the transaction of registry.schema.

From a checkout, `alembic -x registry=FOLDER upgrade head` comes here too, and takes the same lock.
"""

from __future__ import annotations

import os
from pathlib import Path

from alembic import context
from sqlalchemy import Connection

from registry.location import DATABASE
from registry.schema import VERSION_TABLE, Database
from registry.tables import metadata


def run(connection: Connection) -> None:
    """Run the migrations in the transaction that is open already."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def folder() -> Path:
    """Return the registry's folder that the command line or the environment names."""
    named = context.get_x_argument(as_dictionary=True).get("registry") or os.environ.get(
        "CKREG_REGISTRY"
    )
    if not named:
        raise SystemExit(
            "error: which registry?\n"
            "hint:  alembic -x registry=FOLDER upgrade head, or set CKREG_REGISTRY"
        )
    return Path(named).expanduser()


lent = context.config.attributes.get("connection")
if lent is not None:
    run(lent)
elif context.is_offline_mode():
    raise SystemExit("error: these migrations run on a registry, not as SQL text (drop --sql)")
else:
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    with Database(place / DATABASE).migrating() as own:
        run(own)
