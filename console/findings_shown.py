"""How findings are shown: a line each, or one with all that is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from console.output import document, listing, out
from reconciliation.findings.finding_store import StoredFinding
from reconciliation.findings.hours import ByHour, Hour

SHORT: Final = ("no", "kind", "state", "events", "tokens", "money")
COLUMNS: Final = (*SHORT, "about", "tenants", "begins", "ends", "found_at")
TENANTS_SHOWN: Final = 5
HOURS: Final = (
    "tenant_id", "model", "hour", "admitted", "counted", "missing", "beyond", "admitted_input", "counted_input",
    "admitted_output", "counted_output",
)  # fmt: skip
HOURS_SHOWN: Final = 100


def table(found: Sequence[StoredFinding], *, as_json: bool, as_csv: bool) -> None:
    """Findings as asked for; for people the likely causes below."""
    if as_json:
        document(documents(found))
        return
    columns = COLUMNS if as_csv else SHORT
    listing([_row(stored) for stored in found], columns, as_csv=as_csv, title="Findings", empty="nothing is open")
    for stored in [] if as_csv else found:
        out.print(f"{stored.finding_no}: {_about(stored)}", soft_wrap=True)


def documents(found: Sequence[StoredFinding]) -> list[dict[str, Any]]:
    """Findings as JSON has them."""
    return [_document(stored) for stored in found]


def hours(compared: ByHour) -> None:
    """A gateway's log beside the events: how many hours of a tenant and model agree, and those that do not."""
    if not compared.whole:
        out.print("the log has too much to be compared by hour: look at a shorter time (--from, --to)")
        return
    differing = compared.differing
    out.print(
        f"log and events by tenant, model and hour, {compared.begin:%Y-%m-%d %H:%M} to {compared.end:%Y-%m-%d %H:%M}:"
        f" {len(compared.hours) - len(differing):,} agree, {len(differing):,} do not"
    )
    if differing:
        rows = [_hour(each) for each in differing[:HOURS_SHOWN]]
        listing(rows, HOURS, title="Hours that do not agree")
    if len(differing) > HOURS_SHOWN:
        out.print(f"and {len(differing) - HOURS_SHOWN:,} more: --json has all")


def hours_document(compared: ByHour) -> dict[str, Any]:
    """The same as JSON: every hour that is compared."""
    return {
        "from": compared.begin, "to": compared.end, "compared": compared.whole,
        "hours": [_hour(each) | {"agrees": each.agrees} for each in compared.hours],
    }  # fmt: skip


def _hour(each: Hour) -> dict[str, Any]:
    admitted, counted = each.admitted, each.counted
    return {
        "tenant_id": each.tenant_id, "model": each.model, "hour": each.hour,
        "admitted": admitted.requests, "counted": counted.requests, "missing": each.missing, "beyond": each.beyond,
        "admitted_input": admitted.input_tokens, "counted_input": counted.input_tokens,
        "admitted_output": admitted.output_tokens, "counted_output": counted.output_tokens,
    }  # fmt: skip


def whole(stored: StoredFinding, history: Sequence[tuple[datetime, str, str]], *, as_json: bool) -> None:
    """One finding."""
    if as_json:
        states = [{"at": at, "state": state, "cause": cause} for at, state, cause in history]
        document(_document(stored) | {"history": states})
        return
    listing([_row(stored)], SHORT)
    out.print(_about(stored), soft_wrap=True)
    if source := stored.size["estimated_from"]:
        out.print(f"estimated from {source}", soft_wrap=True)
    shares = [
        {name: between(value) if isinstance(value, list) else value for name, value in share.items()}
        for share in stored.size["shares"]
    ]
    if shares:
        listing(shares, tuple(shares[0]), title="By tenant and model")
    if by_hour := stored.size.get("hours"):
        listing(by_hour, tuple(by_hour[0]), title="By tenant, model and hour of the log")
        if more := stored.size["more_hours"]:
            out.print(f"and {more:,} more: `tollbook reconcile run --admission-log … --json` has all")
    listing([{"at": at, "state": state} for at, state, _ in history], ("at", "state"), title="How it went")


def _document(stored: StoredFinding) -> dict[str, Any]:
    return asdict(stored) | {"finding_id": str(stored.finding_id)}


def between(interval: Sequence[int]) -> str:
    """From least to most; one number where it is known."""
    low, high = interval
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _about(stored: StoredFinding) -> str:
    """What it is about, when, whose, and why."""
    row = _row(stored)
    times = [f"{at:%Y-%m-%d %H:%M}" for at in (stored.begins, stored.ends) if at is not None]
    when = f" between {' and '.join(times)}" if times else ""
    return f"{row['about']}{when}{', of ' + row['tenants'] if row['tenants'] else ''}: {stored.cause}"


def _row(stored: StoredFinding) -> dict[str, Any]:
    size = stored.size
    tenants = sorted({share["tenant_id"] for share in size["shares"]} - {""})
    more = f" and {len(tenants) - TENANTS_SHOWN} more" if len(tenants) > TENANTS_SHOWN else ""
    return {
        "no": stored.finding_no,
        "kind": stored.kind,
        "state": stored.state,
        "about": ", ".join(stored.subject.values()),
        "tenants": ", ".join(tenants[:TENANTS_SHOWN]) + more,
        "events": between(size["events"]),
        "tokens": between(size["tokens"]),
        "money": ", ".join(f"{_amount(m['low'], m['high'])} {m['currency']}" for m in size["money"]),
        "begins": stored.begins,
        "ends": stored.ends,
        "found_at": stored.found_at,
    }


def _amount(low: str, high: str) -> str:
    return high if low == high else f"{low} to {high}"
