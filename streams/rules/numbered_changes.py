"""What a reader knows by its highest number: changes of quotas, tiers, billing periods and prices.

Numbers are given out when a row is written, and seen when it is committed. A reader that asks for what is above the
highest number it has seen would miss a lower one that is committed after it; so these are written one at a time.
"""

from __future__ import annotations

from typing import Final

import psycopg

CHANGES_LOCK: Final = 7_240_605


def write_in_order(connection: psycopg.Connection) -> None:
    """Before the next number is given out: wait for whoever has one and has not committed. Held to commit."""
    connection.execute("select pg_advisory_xact_lock(%s)", (CHANGES_LOCK,))
