"""Create the registry: every table of the first release.

Nothing was there before, so no row has to become anything. Foreseen and still empty: file indexes,
tombstones and their collection, probes, alias moves, raw signatures.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
COUNT = "BETWEEN 0 AND 9223372036854775807"
FINITE = "BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"
LIVE = "removed_at IS NULL"


def check(table: str, column: str, rule: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} {rule}", name=op.f(f"ck_{table}_{column}"))


def refers(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [target], name=op.f(f"fk_{table}_{column}"), ondelete="RESTRICT"
    )


def index(
    name: str, table: str, columns: list[str], *, unique: bool = False, where: str | None = None
) -> None:
    only = None if where is None else sa.text(where)
    op.create_index(
        op.f(name), table, columns, unique=unique, sqlite_where=only, postgresql_where=only
    )


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_settings")),
    )
    op.create_table(
        "models",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("versions", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.BigInteger(), nullable=False),
        sa.Column("metric", TEXT, nullable=False),
        sa.Column("mode", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
        check("models", "versions", COUNT),
        check("models", "live", "BETWEEN 0 AND versions"),
        check("models", "mode", "IN ('max', 'min')"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 255", name=op.f("ck_models_name")),
    )
    op.create_table(
        "runs",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("model_pk", KEY, nullable=False),
        sa.Column("name", TEXT),
        sa.Column("dataset", TEXT),
        sa.Column("config", TEXT, nullable=False),
        sa.Column("batch_size", sa.BigInteger()),
        sa.Column("hostname", TEXT),
        sa.Column("command", TEXT),
        sa.Column("git_commit", TEXT),
        sa.Column("git_dirty", sa.Boolean()),
        sa.Column("author", TEXT),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("seal", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_runs")),
        sa.UniqueConstraint("id", name=op.f("uq_runs_id")),
        refers("runs", "model_pk", "models.pk"),
        sa.CheckConstraint("length(id) = 32", name=op.f("ck_runs_id")),
        check("runs", "batch_size", COUNT),
    )
    index(
        "uq_runs_named",
        "runs",
        ["model_pk", "dataset", "name"],
        unique=True,
        where="dataset IS NOT NULL",
    )
    index(
        "uq_runs_named_without_dataset",
        "runs",
        ["model_pk", "name"],
        unique=True,
        where="dataset IS NULL",
    )
    index("ix_runs_model", "runs", ["model_pk", "created_at"])
    index("ix_runs_name", "runs", ["name", "model_pk"], where="name IS NOT NULL")
    op.create_table(
        "signatures",
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("tensors", TEXT, nullable=False),
        sa.Column("tensor_count", sa.BigInteger(), nullable=False),
        sa.Column("parameters", sa.BigInteger()),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_signatures")),
        sa.CheckConstraint("length(digest) = 71", name=op.f("ck_signatures_digest")),
        check("signatures", "tensor_count", COUNT),
        check("signatures", "parameters", COUNT),
        check("signatures", "size_bytes", COUNT),
    )
    op.create_table(
        "checkpoints",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("model_pk", KEY, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("run_pk", KEY),
        sa.Column("dataset", TEXT),
        sa.Column("epoch", sa.BigInteger()),
        sa.Column("step", sa.BigInteger()),
        sa.Column("acc", sa.Double()),
        sa.Column("batch_size", sa.BigInteger()),
        sa.Column("key_style", TEXT, nullable=False),
        sa.Column("file_keys", TEXT, nullable=False),
        sa.Column("weights", TEXT, nullable=False),
        sa.Column("container", TEXT, nullable=False),
        sa.Column("strategy", TEXT),
        sa.Column("world_size", sa.BigInteger()),
        sa.Column("device_type", TEXT),
        sa.Column("device_count", sa.BigInteger()),
        sa.Column("hostname", TEXT),
        sa.Column("topology_provenance", TEXT, nullable=False),
        sa.Column("key_style_provenance", TEXT, nullable=False),
        sa.Column("signature", TEXT, nullable=False),
        sa.Column("raw_signature", TEXT),
        sa.Column("tensors", sa.BigInteger(), nullable=False),
        sa.Column("parameters", sa.BigInteger()),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("scheduler", TEXT),
        sa.Column("parent", TEXT),
        sa.Column("note", TEXT),
        sa.Column("author", TEXT),
        sa.Column("origin", TEXT, nullable=False),
        sa.Column("created_at", TEXT, nullable=False),
        sa.Column("facts_digest", TEXT, nullable=False),
        sa.Column("removed_at", TEXT),
        sa.Column("removed_by", TEXT),
        sa.Column("collected_at", TEXT),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_checkpoints")),
        sa.UniqueConstraint("id", name=op.f("uq_checkpoints_id")),
        refers("checkpoints", "model_pk", "models.pk"),
        refers("checkpoints", "run_pk", "runs.pk"),
        refers("checkpoints", "signature", "signatures.digest"),
        refers("checkpoints", "raw_signature", "signatures.digest"),
        sa.CheckConstraint("length(id) = 32", name=op.f("ck_checkpoints_id")),
        check("checkpoints", "version", "BETWEEN 1 AND 9223372036854775807"),
        check("checkpoints", "epoch", COUNT),
        check("checkpoints", "step", COUNT),
        check("checkpoints", "acc", FINITE),
        check("checkpoints", "batch_size", COUNT),
        check("checkpoints", "weights", "IN ('live', 'ema', 'both')"),
        check(
            "checkpoints",
            "strategy",
            "IN ('single', 'dp', 'ddp', 'fsdp1', 'fsdp2', 'tp', 'hsdp', 'deepspeed')",
        ),
        check("checkpoints", "world_size", COUNT),
        check("checkpoints", "device_count", COUNT),
        check("checkpoints", "topology_provenance", "IN ('recorded', 'inferred', 'unknown')"),
        check("checkpoints", "key_style_provenance", "IN ('recorded', 'inferred', 'unknown')"),
        check("checkpoints", "tensors", COUNT),
        check("checkpoints", "parameters", COUNT),
        check("checkpoints", "size_bytes", COUNT),
        check("checkpoints", "origin", "IN ('save', 'push')"),
        sa.CheckConstraint("length(created_at) = 27", name=op.f("ck_checkpoints_created_at")),
        sa.CheckConstraint("length(removed_at) = 27", name=op.f("ck_checkpoints_removed_at")),
        check("checkpoints", "collected_at", "IS NULL OR removed_at IS NOT NULL"),
    )
    index("uq_checkpoints_version", "checkpoints", ["model_pk", "version"], unique=True)
    index("ix_checkpoints_newest", "checkpoints", ["created_at", "version", "pk"], where=LIVE)
    index(
        "ix_checkpoints_model_newest",
        "checkpoints",
        ["model_pk", "created_at", "version", "pk"],
        where=LIVE,
    )
    index(
        "ix_checkpoints_dataset_newest",
        "checkpoints",
        ["model_pk", "dataset", "created_at", "version", "pk"],
        where=LIVE,
    )
    index(
        "ix_checkpoints_latest", "checkpoints", ["model_pk", "dataset", "version", "pk"], where=LIVE
    )
    index("ix_checkpoints_acc", "checkpoints", ["model_pk", "acc", "version", "pk"], where=LIVE)
    index("ix_checkpoints_epoch", "checkpoints", ["model_pk", "epoch", "version", "pk"], where=LIVE)
    index("ix_checkpoints_run", "checkpoints", ["run_pk", "version", "pk"], where=LIVE)
    index(
        "ix_checkpoints_signature",
        "checkpoints",
        ["signature", "created_at", "version", "pk"],
        where=LIVE,
    )
    index(
        "ix_checkpoints_raw_signature",
        "checkpoints",
        ["raw_signature", "created_at", "version", "pk"],
        where="raw_signature IS NOT NULL AND removed_at IS NULL",
    )
    index(
        "uq_checkpoints_live_push",
        "checkpoints",
        ["facts_digest"],
        unique=True,
        where="origin = 'push' AND removed_at IS NULL",
    )
    index("ix_checkpoints_parent", "checkpoints", ["parent"], where="parent IS NOT NULL")
    index(
        "ix_checkpoints_removed",
        "checkpoints",
        ["removed_at", "pk"],
        where="removed_at IS NOT NULL",
    )
    op.create_table(
        "records",
        sa.Column("checkpoint_pk", KEY, nullable=False, autoincrement=False),
        sa.Column("record", TEXT, nullable=False),
        sa.Column("seal", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_pk", name=op.f("pk_records")),
        refers("records", "checkpoint_pk", "checkpoints.pk"),
    )
    op.create_table(
        "metrics",
        sa.Column("checkpoint_pk", KEY, nullable=False, autoincrement=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("author", TEXT),
        sa.Column("recorded_at", TEXT, nullable=False),
        sa.Column("seal", TEXT, nullable=False),
        sa.Column("model_pk", KEY, nullable=False),
        sa.Column("dataset", TEXT),
        sa.Column("run_pk", KEY),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_pk", "name", name=op.f("pk_metrics")),
        refers("metrics", "checkpoint_pk", "checkpoints.pk"),
        refers("metrics", "model_pk", "models.pk"),
        refers("metrics", "run_pk", "runs.pk"),
        check("metrics", "value", FINITE),
    )
    index(
        "ix_metrics_best",
        "metrics",
        ["model_pk", "name", "live", "dataset", "value", "version", "checkpoint_pk"],
    )
    index(
        "ix_metrics_best_of_run",
        "metrics",
        ["run_pk", "name", "live", "dataset", "value", "version", "checkpoint_pk"],
        where="run_pk IS NOT NULL",
    )
    op.create_table(
        "tags",
        sa.Column("checkpoint_pk", KEY, nullable=False, autoincrement=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("author", TEXT),
        sa.Column("tagged_at", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_pk", "name", name=op.f("pk_tags")),
        refers("tags", "checkpoint_pk", "checkpoints.pk"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name=op.f("ck_tags_name")),
    )
    index("ix_tags_name", "tags", ["name", "checkpoint_pk"])
    op.create_table(
        "aliases",
        sa.Column("model_pk", KEY, nullable=False, autoincrement=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("checkpoint_pk", KEY, nullable=False),
        sa.Column("author", TEXT),
        sa.Column("moved_at", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("model_pk", "name", name=op.f("pk_aliases")),
        refers("aliases", "model_pk", "models.pk"),
        refers("aliases", "checkpoint_pk", "checkpoints.pk"),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 64", name=op.f("ck_aliases_name")),
    )
    index("ix_aliases_checkpoint", "aliases", ["checkpoint_pk", "name"])
    op.create_table(
        "alias_moves",
        sa.Column("pk", KEY, nullable=False),
        sa.Column("model_pk", KEY, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("from_pk", KEY),
        sa.Column("to_pk", KEY),
        sa.Column("author", TEXT),
        sa.Column("moved_at", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("pk", name=op.f("pk_alias_moves")),
        refers("alias_moves", "model_pk", "models.pk"),
        refers("alias_moves", "from_pk", "checkpoints.pk"),
        refers("alias_moves", "to_pk", "checkpoints.pk"),
    )
    index("ix_alias_moves_name", "alias_moves", ["model_pk", "name", "pk"])
    op.create_table(
        "blobs",
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("probe", TEXT),
        sa.Column("created_at", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
        sa.UniqueConstraint("name", name=op.f("uq_blobs_name")),
        sa.CheckConstraint("length(digest) = 71", name=op.f("ck_blobs_digest")),
        check("blobs", "size_bytes", COUNT),
    )
    index("ix_blobs_probe", "blobs", ["probe"], where="probe IS NOT NULL")
    op.create_table(
        "files",
        sa.Column("checkpoint_pk", KEY, nullable=False, autoincrement=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("index_digest", TEXT),
        sa.PrimaryKeyConstraint("checkpoint_pk", "name", name=op.f("pk_files")),
        refers("files", "checkpoint_pk", "checkpoints.pk"),
        refers("files", "digest", "blobs.digest"),
        refers("files", "index_digest", "blobs.digest"),
    )
    index("ix_files_digest", "files", ["digest"])
    index("ix_files_index_digest", "files", ["index_digest"], where="index_digest IS NOT NULL")


def downgrade() -> None:
    for table in (
        "files", "blobs", "alias_moves", "aliases", "tags", "metrics", "records", "checkpoints",
        "signatures", "runs", "models", "settings",
    ):  # fmt: skip
        op.drop_table(table)
