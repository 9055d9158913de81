"""Health of the processors: its parts, its versions, and the log of its changes."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the three tables; note with each prediction what its decision knew."""
    op.add_column("predictions", sa.Column("health", sa.Text))
    op.create_index("ix_predictions_created_at", "predictions", ["created_at"])
    op.create_table(
        "health",
        sa.Column("merchant_id", sa.Text, primary_key=True),
        sa.Column("processor", sa.Text, primary_key=True),
        sa.Column("part", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text),
    )
    op.create_index("ix_health_version", "health", ["merchant_id", "version"])
    op.create_table(
        "health_versions",
        sa.Column("merchant_id", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("routing_version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "transitions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("merchant_id", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("incident", sa.Text, nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("closes", sa.Boolean, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_transitions_merchant", "transitions", ["merchant_id", "id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("transitions")
    op.drop_table("health_versions")
    op.drop_table("health")
    op.drop_index("ix_predictions_created_at", "predictions")
    with op.batch_alter_table("predictions") as batch:
        batch.drop_column("health")
