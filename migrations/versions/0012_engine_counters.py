"""Engine counters by run, what engines counted beyond what is billed, since when a boot has been quiet.

Revision ID: 0012
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0010"
branch_labels = None
depends_on = None

# Statements are separated by a line that holds only `--;`.
STATEMENTS = r"""
-- No version that was handed out has ever filled the table that this one replaces.
drop table usage.engine_counters
--;
-- Cumulative counts as the engine says, by run: a stretch over which they only grow, begun at counting_since. A report
-- that comes again, or late, changes nothing: the first is the least, the latest the greatest.
create table usage.engine_counters (
    replica_id              text        collate "C" not null,
    boot_id                 text        collate "C" not null,
    model                   text        collate "C" not null,
    counting_since          timestamptz not null,
    from_zero               boolean     not null,
    first_prompt_tokens     bigint      not null check (first_prompt_tokens >= 0),
    first_generation_tokens bigint      not null check (first_generation_tokens >= 0),
    first_cached_tokens     bigint      check (first_cached_tokens >= 0),
    prompt_tokens           bigint      not null check (prompt_tokens >= first_prompt_tokens),
    generation_tokens       bigint      not null check (generation_tokens >= first_generation_tokens),
    cached_tokens           bigint      check (cached_tokens >= first_cached_tokens),
    finished                jsonb       not null,
    first_scraped_at        timestamptz not null,
    scraped_at              timestamptz not null check (scraped_at >= first_scraped_at),
    primary key (replica_id, boot_id, model, counting_since)
)
--;
-- What has to be added to a row's counts to get what its engine counted, signed; and how many events say `lost`.
alter table usage.replica_usage_fills
    add column engine_input_beyond  bigint not null default 0,
    add column engine_output_beyond bigint not null default 0,
    add column engine_cached_beyond bigint not null default 0,
    add column lost                 bigint not null default 0
--;
alter table usage.replica_usage
    add column engine_input_beyond  bigint not null default 0,
    add column engine_output_beyond bigint not null default 0,
    add column engine_cached_beyond bigint not null default 0,
    add column lost                 bigint not null default 0
--;
-- The earliest report of the boot's last number and last start with nothing open: nothing has happened since.
alter table usage.boots add column quiet_since timestamptz
"""


def upgrade() -> None:
    """Replace the table, add the columns. Events that were applied before stand as if engines had counted as billed."""
    for statement in STATEMENTS.split("\n--;\n"):
        op.execute(statement)


def downgrade() -> None:
    """Take away what this revision added; the counters are scraped again."""
    op.execute("alter table usage.boots drop column quiet_since")
    for table in ("replica_usage", "replica_usage_fills"):
        op.execute(
            f"alter table usage.{table} drop column engine_input_beyond, drop column engine_output_beyond,"
            " drop column engine_cached_beyond, drop column lost"
        )
    op.execute("drop table usage.engine_counters")
    op.execute("""
        create table usage.engine_counters (
            replica_id        text        collate "C" not null,
            boot_id           text        collate "C" not null,
            model             text        collate "C" not null,
            prompt_tokens     bigint      not null,
            generation_tokens bigint      not null,
            cached_tokens     bigint      not null,
            scraped_at        timestamptz not null,
            primary key (replica_id, boot_id, model)
        )
    """)
