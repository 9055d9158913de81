"""Predictions, the feedback inbox and the log of outcomes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the three tables."""
    op.create_table(
        "predictions",
        sa.Column("prediction_id", sa.Text, primary_key=True),
        sa.Column("merchant_id", sa.Text, nullable=False),
        sa.Column("transaction_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("model_type", sa.Text, nullable=False),
        sa.Column("attempt_id", sa.Text),
        sa.Column("request_hash", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("response", sa.Text, nullable=False),
        sa.Column("ranking", sa.Text, nullable=False),
        sa.Column("probabilities", sa.Text, nullable=False),
        sa.Column("approach", sa.Text, nullable=False),
        sa.Column("explored", sa.Boolean, nullable=False),
        sa.Column("propensity", sa.Double),
        sa.Column("fallback_reason", sa.Text),
        sa.Column("model_name", sa.Text),
        sa.Column("model_version", sa.Text),
        sa.Column("experiment_id", sa.Text),
        sa.Column("arm", sa.Text),
        sa.Column("bucket", sa.Integer),
        sa.Column("shadow", sa.Boolean, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("merchant_id", "transaction_id", "sequence", "model_type", name="uq_predictions_attempt"),
    )
    op.create_index(
        "ix_predictions_attempt_id",
        "predictions",
        ["merchant_id", "attempt_id"],
        sqlite_where=sa.text("attempt_id IS NOT NULL"),
        postgresql_where=sa.text("attempt_id IS NOT NULL"),
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("idempotency_key", sa.Text, nullable=False, unique=True),
        sa.Column("content_hash", sa.Text, nullable=False),
        sa.Column("prediction_id", sa.Text),
        sa.Column("merchant_id", sa.Text),
        sa.Column("attempt_id", sa.Text),
        sa.Column("transaction_id", sa.Text),
        sa.Column("sequence", sa.Integer),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("processor", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("occurred_at", sa.Double),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("matched_id", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_feedback_unmatched",
        "feedback",
        ["id"],
        sqlite_where=sa.text("matched_id IS NULL"),
        postgresql_where=sa.text("matched_id IS NULL"),
    )
    op.create_table(
        "outcomes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("feedback_id", sa.Integer, sa.ForeignKey("feedback.id"), nullable=False),
        sa.Column("prediction_id", sa.Text, sa.ForeignKey("predictions.prediction_id"), nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("processor", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("known_at", sa.Double, nullable=False),
        sa.Column("occurred_at", sa.Double),
        sa.UniqueConstraint("prediction_id", "stage", "processor", name="uq_outcomes_attempt"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    """Drop the three tables."""
    op.drop_table("outcomes")
    op.drop_table("feedback")
    op.drop_table("predictions")
