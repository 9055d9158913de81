"""Segments are kept under numbers that are used again: rows under their names, and of those that are gone, go."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Delete the rows; what a segment holds is learned again within two of its attempts."""
    op.execute("DELETE FROM health WHERE part LIKE 'segment:%'")


def downgrade() -> None:
    """The same the other way."""
    op.execute("DELETE FROM health WHERE part LIKE 'segment:%'")
