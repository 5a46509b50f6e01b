"""How engine counters stand to events, for `streams status` and `reconcile run`."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from console.output import listing, out
from streams.completeness.engine_witness import EngineComparison, EngineReport, Standing

SHOWN: Final = 20
TOLD: Final = 1000
"""Boots and models in a JSON document: those that are not equal first."""
COLUMNS: Final = ("replica_id", "boot_id", "model", "standing", "prompt_tokens", "generation_tokens", "cached_tokens")


def as_document(report: EngineReport) -> dict[str, Any]:
    """For machines. `difference` is counters − events − itemised."""
    ordered = sorted(report.comparisons, key=lambda found: found.standing is Standing.EQUAL)
    return {
        "witnesses": report.witnesses,
        "standing": _standing(report),
        "boots": [_told(found) for found in ordered[:TOLD]],
        "unaccounted_requests": [
            {"replica_id": boot.replica_id, "boot_id": boot.boot_id, "unexplained": boot.requests.unexplained}
            | boot.requests._asdict()
            for boot in report.unexplained
        ],
    }


def show(report: EngineReport) -> None:
    """For people: which witnesses there are, then each boot on which they do not agree, with what they differ by."""
    counts = _standing(report)
    out.print(report.witnesses + (": " if counts else "") + ", ".join(f"{n} {name}" for name, n in counts.items()))
    found = report.standing(Standing.DIFFERS, Standing.CUT_OFF)[:SHOWN]
    if found:
        rows = [_told(f) | f.difference._asdict() for f in found]
        listing(rows, COLUMNS, title="engine counters − events: what the engine counted and no event has")
    for boot in report.unexplained[:SHOWN]:
        r = boot.requests
        out.print(
            f"boot {boot.boot_id} of {boot.replica_id}: {r.started:,} requests started, {r.ended:,} ended,"
            f" {r.lost:,} lost: {r.unexplained:,} unaccounted for"
        )


def _standing(report: EngineReport) -> dict[str, int]:
    return dict(sorted(Counter(found.standing.value for found in report.comparisons).items()))


def _told(found: EngineComparison) -> dict[str, Any]:
    tokens = {name: getattr(found, name)._asdict() for name in ("counters", "events", "itemised", "difference")}
    return {
        "replica_id": found.replica_id, "boot_id": found.boot_id, "model": found.model,
        "standing": found.standing.value, "scraped_at": found.scraped_at, **tokens,
    }  # fmt: skip
