"""The second half of gate R1: of each boot the numbers 1…last are applied, duplicates, quarantined, or waived."""

from __future__ import annotations

from datetime import datetime

import psycopg

from reconciliation.agreement import Check
from reconciliation.comparison import Difference
from streams.completeness import numbers_in_time


def numbers_received(connection: psycopg.Connection, begin: datetime, end: datetime) -> list[Check]:
    """Every known number of the boots that may have made events in [begin, end); no check where there is no boot.

    A number that is missing belongs to the time from when all before it were here to the first heartbeat that knew of
    it. One whose boot a person has written off is waived. What has not settled yet is no gap.
    """
    boots = numbers_in_time.boots_between(connection, begin, end)
    missing = numbers_in_time.missing_between(connection, begin, end)
    differences = tuple(
        Difference(f"{gap.replica_id}/{gap.boot_id}/{gap.first_number}-{gap.last_number}", gap.missing, None)
        for gap in missing
    )
    check = Check("numbered events are here", "numbers that are missing", "received", boots, differences)
    return [check] if boots or differences else []
