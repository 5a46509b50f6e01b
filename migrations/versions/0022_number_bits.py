"""Received numbers as bits, and what boots counted read with what is not folded yet.

Revision ID: 0022
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import sqlalchemy
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

SEGMENT = 8192
RANGES_SEGMENT = 16_384
COLUMNS = (
    "events", "input_tokens", "output_tokens", "cache_hit_tokens", "engine_input_beyond", "engine_output_beyond",
    "engine_cached_beyond", "lost",
)  # fmt: skip
READ = "select replica_id, boot_id, lower(part), upper(part) from usage.received_numbers, unnest(numbers) as part"
BITS = f"""
create table usage.received_numbers (
    replica_id text   collate "C" not null,
    boot_id    text   collate "C" not null,
    segment    bigint not null check (segment >= 0),
    numbers    bytea  not null check (length(numbers) between 1 and {SEGMENT // 8}),
    primary key (replica_id, boot_id, segment)
)
"""
RANGES = """
create table usage.received_numbers (
    replica_id text           collate "C" not null,
    boot_id    text           collate "C" not null,
    segment    bigint         not null check (segment >= 0),
    numbers    int8multirange not null check (not isempty(numbers)),
    primary key (replica_id, boot_id, segment)
)
"""


def upgrade() -> None:
    """Numbers beyond received_through, a row for 8,192 of them, the lowest in the lowest bit of the first byte."""
    found = op.get_bind().execute(sqlalchemy.text(READ)).all()
    bits: dict[tuple[str, str, int], int] = defaultdict(int)
    for replica, boot, first, after in found:
        for segment in range((first - 1) // SEGMENT, (after - 2) // SEGMENT + 1):
            low = max(first - 1 - segment * SEGMENT, 0)
            high = min(after - 1 - segment * SEGMENT, SEGMENT)
            bits[replica, boot, segment] |= (1 << high) - (1 << low)
    _replaced(BITS, [(*key, held.to_bytes((held.bit_length() + 7) // 8, "little")) for key, held in bits.items()])
    sums = ", ".join(f"sum({name})::int8 as {name}" for name in COLUMNS)
    names = ", ".join(COLUMNS)
    op.execute(
        f"create view usage.replica_counts as select replica_id, boot_id, tenant_id, model, {sums} from ("
        f" select replica_id, boot_id, tenant_id, model, {names} from usage.replica_usage union all"
        f' select replica_id collate "C", boot_id collate "C", tenant_id collate "C", model collate "C", {names}'
        f" from usage.replica_usage_fills) as counted group by replica_id, boot_id, tenant_id, model"
    )
    op.execute("comment on view usage.replica_counts is 'What was counted of each boot''s events, folded or not'")


def downgrade() -> None:
    """Ranges again."""
    op.execute("drop view usage.replica_counts")
    rows = op.get_bind().execute(
        sqlalchemy.text("select replica_id, boot_id, segment, numbers from usage.received_numbers")
    )
    ranges: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for replica, boot, segment, stored in rows.all():
        below = segment * SEGMENT + 1
        parts = ranges[replica, boot, segment * SEGMENT // RANGES_SEGMENT]
        parts += [f"[{below + first},{below + after})" for first, after in _runs(int.from_bytes(stored, "little"))]
    _replaced(RANGES, [(*key, "{" + ",".join(parts) + "}") for key, parts in ranges.items()])


def _runs(held: int) -> Iterator[tuple[int, int]]:
    """The bits that are set: of each run the first, and the first behind it."""
    at = 0
    while held >> at:
        first = at + _lowest(held >> at)
        at = first + _lowest(~(held >> first))
        yield first, at


def _lowest(value: int) -> int:
    """The lowest bit that is set."""
    return (value & -value).bit_length() - 1


def _replaced(table: str, rows: list[tuple[object, ...]]) -> None:
    op.execute("drop table usage.received_numbers")
    op.execute(table)
    kind = "bytea" if "bytea" in table else "int8multirange"
    insert = sqlalchemy.text(
        "insert into usage.received_numbers (replica_id, boot_id, segment, numbers)"
        f" values (:replica, :boot, :segment, cast(:numbers as {kind}))"
    )
    if rows:
        names = ("replica", "boot", "segment", "numbers")
        op.get_bind().execute(insert, [dict(zip(names, row, strict=True)) for row in rows])
