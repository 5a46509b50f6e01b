"""Engine counters and replicas' requests against events, as checks (docs/spec/metering.md 6.4). Values only."""

from __future__ import annotations

from reconciliation.agreement import Check
from reconciliation.comparison import Difference
from streams.completeness.engine_witness import EngineReport, Standing


def engine_checks(report: EngineReport) -> list[Check]:
    """What must be equal where it can be compared; no check where nothing can be, since it would prove nothing.

    Boots that were cut off are listed beside the checks, by the caller.
    """
    compared = report.standing(Standing.EQUAL, Standing.DIFFERS)
    tokens = [
        Difference(f"{found.replica_id}/{found.boot_id}/{found.model}/{name}", counter, event)
        for found in report.standing(Standing.DIFFERS)
        for name, counter, event in zip(
            found.counters._fields, found.counters, found.events.plus(found.itemised), strict=True
        )
        if counter != event
    ]
    requests = [
        Difference(f"{boot.replica_id}/{boot.boot_id}", boot.requests.started, boot.requests.ended + boot.requests.lost)
        for boot in report.unexplained
    ]
    checks = [
        Check("engines counted what events say", "engine counters", "events", len(compared), tuple(tokens)),
        Check("requests have ended", "started", "ended and lost", len(report.requests), tuple(requests)),
    ]
    return [check for check in checks if check.compared]
