"""The tables of a registry, as SQLAlchemy Core knows them.

Law: the same as what migrations/ builds, name by name; a test compares the two by reflection, and
nothing ever calls create_all. Every constraint is named; what a row must never hold is a CHECK.
Knows no query and no engine; types and conditions stay within what SQLite and PostgreSQL share.

    settings                      one word, one value: where the blobs are, who shares it
    models ─┬─ runs               a model's name, its version counter, what best means for it
            ├─ checkpoints ─┬─ records      the immutable facts, as one JSON text
            │               ├─ metrics      append-only; repeats what `best` asks for
            │               ├─ tags
            │               └─ files ─── blobs
            └─ aliases, alias_moves
    signatures                    shared by all checkpoints of an architecture
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)

metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# SQLite makes a key of its own only of a column typed INTEGER exactly.
KEY: Final = BigInteger().with_variant(Integer, "sqlite")
# Text sorts and compares by bytes on both engines; SQLite does so by itself.
TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
NUMBER: Final[Double[float]] = Double()
COUNT: Final = BigInteger()

LIVE: Final = "removed_at IS NULL"


def _finite(column: str) -> CheckConstraint:
    # SQLite makes NaN NULL and takes infinities; PostgreSQL sorts NaN above all. A range refuses
    # them on both, and text too, which SQLite would store in a number's column.
    return CheckConstraint(
        f"{column} BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308", name=column
    )


def _count(column: str, low: int = 0) -> CheckConstraint:
    return CheckConstraint(f"{column} BETWEEN {low} AND 9223372036854775807", name=column)


def _one_of(column: str, *words: str) -> CheckConstraint:
    quoted = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({quoted})", name=column)


def _live_index(name: str, *columns: str, unique: bool = False, where: str = LIVE) -> Index:
    # postgresql_where is the migrations' to say, which alone make an index: here it would import
    # that dialect, 20 ms in every command.
    return Index(name, *columns, unique=unique, sqlite_where=text(where))


settings = Table(
    "settings",
    metadata,
    Column("name", TEXT, primary_key=True),
    Column("value", TEXT, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("pk", KEY, primary_key=True),
    Column("name", TEXT, nullable=False, unique=True),
    Column("versions", COUNT, nullable=False),  # ever given; the next is one more
    Column("live", COUNT, nullable=False),  # checkpoints that are not removed
    Column("metric", TEXT, nullable=False),  # the monitor
    Column("mode", TEXT, nullable=False),
    Column("created_at", TEXT, nullable=False),
    _count("versions"),
    CheckConstraint("live BETWEEN 0 AND versions", name="live"),
    _one_of("mode", "max", "min"),
    CheckConstraint("length(name) BETWEEN 1 AND 255", name="name"),
)

runs = Table(
    "runs",
    metadata,
    Column("pk", KEY, primary_key=True),
    Column("id", TEXT, nullable=False, unique=True),
    Column("model_pk", KEY, ForeignKey("models.pk", ondelete="RESTRICT"), nullable=False),
    Column("name", TEXT),
    Column("dataset", TEXT),
    Column("config", TEXT, nullable=False),  # canonical JSON
    Column("batch_size", COUNT),
    Column("hostname", TEXT),
    Column("command", TEXT),
    Column("git_commit", TEXT),
    Column("git_dirty", Boolean),
    Column("author", TEXT),
    Column("created_at", TEXT, nullable=False),
    Column("seal", TEXT, nullable=False),  # digest of the row, see catalog/rows.py
    CheckConstraint("length(id) = 32", name="id"),
    _count("batch_size"),
    # A name is one run's within its model and dataset, and no dataset is a dataset of its own.
    _live_index(
        "uq_runs_named", "model_pk", "dataset", "name", unique=True, where="dataset IS NOT NULL"
    ),
    _live_index(
        "uq_runs_named_without_dataset", "model_pk", "name", unique=True, where="dataset IS NULL"
    ),
    Index("ix_runs_model", "model_pk", "created_at"),
    _live_index("ix_runs_name", "name", "model_pk", where="name IS NOT NULL"),
)

signatures = Table(
    "signatures",
    metadata,
    Column("digest", TEXT, primary_key=True),
    Column("tensors", TEXT, nullable=False),  # canonical JSON of Signature
    Column("tensor_count", COUNT, nullable=False),
    Column("parameters", COUNT),  # NULL until a save tells parameters from buffers
    Column("size_bytes", COUNT),  # of the weights alone; NULL for a dtype of unknown width
    CheckConstraint("length(digest) = 71", name="digest"),
    _count("tensor_count"),
    _count("parameters"),
    _count("size_bytes"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("pk", KEY, primary_key=True),
    Column("id", TEXT, nullable=False, unique=True),
    Column("model_pk", KEY, ForeignKey("models.pk", ondelete="RESTRICT"), nullable=False),
    Column("version", COUNT, nullable=False),
    Column("run_pk", KEY, ForeignKey("runs.pk", ondelete="RESTRICT")),
    Column("dataset", TEXT),
    Column("epoch", COUNT),
    Column("step", COUNT),
    Column("acc", NUMBER),  # the metric `acc` once more, for queries by hand
    Column("batch_size", COUNT),
    Column("key_style", TEXT, nullable=False),
    Column("file_keys", TEXT, nullable=False),
    Column("weights", TEXT, nullable=False),
    Column("container", TEXT, nullable=False),
    Column("strategy", TEXT),
    Column("world_size", COUNT),
    Column("device_type", TEXT),
    Column("device_count", COUNT),
    Column("hostname", TEXT),
    Column("topology_provenance", TEXT, nullable=False),
    Column("key_style_provenance", TEXT, nullable=False),
    Column(
        "signature", TEXT, ForeignKey("signatures.digest", ondelete="RESTRICT"), nullable=False
    ),
    Column("raw_signature", TEXT, ForeignKey("signatures.digest", ondelete="RESTRICT")),
    Column("tensors", COUNT, nullable=False),
    Column("parameters", COUNT),
    Column("size_bytes", COUNT, nullable=False),
    Column("scheduler", TEXT),
    Column("parent", TEXT),  # an id; its checkpoint may live in another registry
    Column("note", TEXT),
    Column("author", TEXT),
    Column("origin", TEXT, nullable=False),
    Column("created_at", TEXT, nullable=False),
    Column("facts_digest", TEXT, nullable=False),
    Column("removed_at", TEXT),  # the tombstone
    Column("removed_by", TEXT),
    Column("collected_at", TEXT),  # gc took its files: restore can't bring it back
    CheckConstraint("length(id) = 32", name="id"),
    _count("version", 1),
    _count("epoch"),
    _count("step"),
    _finite("acc"),
    _count("batch_size"),
    _one_of("weights", "live", "ema", "both"),
    _one_of("strategy", "single", "dp", "ddp", "fsdp1", "fsdp2", "tp", "hsdp", "deepspeed"),
    _count("world_size"),
    _count("device_count"),
    _one_of("topology_provenance", "recorded", "inferred", "unknown"),
    _one_of("key_style_provenance", "recorded", "inferred", "unknown"),
    _count("tensors"),
    _count("parameters"),
    _count("size_bytes"),
    _one_of("origin", "save", "push"),
    CheckConstraint("length(created_at) = 27", name="created_at"),
    CheckConstraint("length(removed_at) = 27", name="removed_at"),
    CheckConstraint("collected_at IS NULL OR removed_at IS NOT NULL", name="collected_at"),
    Index("uq_checkpoints_version", "model_pk", "version", unique=True),
    _live_index("ix_checkpoints_newest", "created_at", "version", "pk"),
    _live_index("ix_checkpoints_model_newest", "model_pk", "created_at", "version", "pk"),
    _live_index(
        "ix_checkpoints_dataset_newest", "model_pk", "dataset", "created_at", "version", "pk"
    ),
    _live_index("ix_checkpoints_latest", "model_pk", "dataset", "version", "pk"),
    _live_index("ix_checkpoints_acc", "model_pk", "acc", "version", "pk"),
    _live_index("ix_checkpoints_epoch", "model_pk", "epoch", "version", "pk"),
    _live_index("ix_checkpoints_run", "run_pk", "version", "pk"),
    _live_index("ix_checkpoints_signature", "signature", "created_at", "version", "pk"),
    _live_index(
        "ix_checkpoints_raw_signature",
        "raw_signature", "created_at", "version", "pk",
        where=f"raw_signature IS NOT NULL AND {LIVE}",
    ),
    _live_index(
        "uq_checkpoints_live_push",
        "facts_digest",
        unique=True,
        where=f"origin = 'push' AND {LIVE}",
    ),
    _live_index("ix_checkpoints_parent", "parent", where="parent IS NOT NULL"),
    _live_index("ix_checkpoints_removed", "removed_at", "pk", where="removed_at IS NOT NULL"),
)  # fmt: skip

# Beside checkpoints, not in it: a search that reads every row must not read every record too.
records = Table(
    "records",
    metadata,
    Column(
        "checkpoint_pk",
        KEY,
        ForeignKey("checkpoints.pk", ondelete="RESTRICT"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("record", TEXT, nullable=False),  # canonical JSON of what never changes
    Column("seal", TEXT, nullable=False),  # its digest
)

metrics = Table(
    "metrics",
    metadata,
    Column(
        "checkpoint_pk",
        KEY,
        ForeignKey("checkpoints.pk", ondelete="RESTRICT"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("name", TEXT, primary_key=True),
    Column("value", NUMBER, nullable=False),
    Column("author", TEXT),
    Column("recorded_at", TEXT, nullable=False),
    Column("seal", TEXT, nullable=False),  # digest of the row
    # Repeated from the checkpoint, so that best is two index steps.
    Column("model_pk", KEY, ForeignKey("models.pk", ondelete="RESTRICT"), nullable=False),
    Column("dataset", TEXT),
    Column("run_pk", KEY, ForeignKey("runs.pk", ondelete="RESTRICT")),
    Column("version", COUNT, nullable=False),
    Column("live", Boolean, nullable=False),
    _finite("value"),
    Index(
        "ix_metrics_best",
        "model_pk", "name", "live", "dataset", "value", "version", "checkpoint_pk",
    ),
    _live_index(
        "ix_metrics_best_of_run",
        "run_pk", "name", "live", "dataset", "value", "version", "checkpoint_pk",
        where="run_pk IS NOT NULL",
    ),
)  # fmt: skip

tags = Table(
    "tags",
    metadata,
    Column(
        "checkpoint_pk",
        KEY,
        ForeignKey("checkpoints.pk", ondelete="RESTRICT"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("name", TEXT, primary_key=True),
    Column("author", TEXT),
    Column("tagged_at", TEXT, nullable=False),
    CheckConstraint("length(name) BETWEEN 1 AND 64", name="name"),
    Index("ix_tags_name", "name", "checkpoint_pk"),
)

aliases = Table(
    "aliases",
    metadata,
    Column(
        "model_pk",
        KEY,
        ForeignKey("models.pk", ondelete="RESTRICT"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("name", TEXT, primary_key=True),
    Column("checkpoint_pk", KEY, ForeignKey("checkpoints.pk", ondelete="RESTRICT"), nullable=False),
    Column("author", TEXT),
    Column("moved_at", TEXT, nullable=False),
    CheckConstraint("length(name) BETWEEN 1 AND 64", name="name"),
    Index("ix_aliases_checkpoint", "checkpoint_pk", "name"),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    Column("pk", KEY, primary_key=True),
    Column("model_pk", KEY, ForeignKey("models.pk", ondelete="RESTRICT"), nullable=False),
    Column("name", TEXT, nullable=False),
    Column("from_pk", KEY, ForeignKey("checkpoints.pk", ondelete="RESTRICT")),
    Column("to_pk", KEY, ForeignKey("checkpoints.pk", ondelete="RESTRICT")),
    Column("author", TEXT),
    Column("moved_at", TEXT, nullable=False),
    Index("ix_alias_moves_name", "model_pk", "name", "pk"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", TEXT, primary_key=True),
    Column("name", TEXT, nullable=False, unique=True),  # of its file in the store, never used again
    Column("size_bytes", COUNT, nullable=False),
    Column("probe", TEXT),  # digest of size, head and tail; NULL for a file's index
    Column("created_at", TEXT, nullable=False),
    CheckConstraint("length(digest) = 71", name="digest"),
    _count("size_bytes"),
    _live_index("ix_blobs_probe", "probe", where="probe IS NOT NULL"),
)

files = Table(
    "files",
    metadata,
    Column(
        "checkpoint_pk",
        KEY,
        ForeignKey("checkpoints.pk", ondelete="RESTRICT"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("name", TEXT, primary_key=True),
    Column("digest", TEXT, ForeignKey("blobs.digest", ondelete="RESTRICT"), nullable=False),
    Column("index_digest", TEXT, ForeignKey("blobs.digest", ondelete="RESTRICT")),
    Index("ix_files_digest", "digest"),
    _live_index("ix_files_index_digest", "index_digest", where="index_digest IS NOT NULL"),
)
