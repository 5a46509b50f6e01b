"""How plans and replays are shown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from console.output import listing, out
from reconciliation.errors import ReplayRefused
from reconciliation.replay.applying import Replayed
from reconciliation.replay.outcome import came_out, customer_message
from reconciliation.replay.plan_store import StoredPlan

FATES: Final = {
    "add": "would be added",
    "supersede": "would take the place of a weaker source's telling",
    "fill": "are counted, and would fill their missing number",
    "there": "are there already",
    "conflict": "conflict with what is counted: left out",
    "refused": "would be refused: left out",
    "not_mappable": "cannot be mapped to an event: left out",
}
USAGE: Final = ("tenant_id", "month", "requests", "input", "cached", "output")
MONEY: Final = ("tenant_id", "period", "amount", "currency", "follows")


def plan(stored: StoredPlan) -> None:
    """A plan for people."""
    out.print(f"{stored.plan_id}: {stored.state}; {origin(stored)}", style="bold", soft_wrap=True)
    out.print(f"{stored.counts['read']:,} read, of these")
    for fate, told in FATES.items():
        if count := stored.counts.get(fate):
            out.print(f"  {count:>10,} {told}")
    if stored.reaches_behind:
        out.print(f"             {stored.counts['behind']:,} behind the horizon, compared with the archive")
    for reason, count in sorted(stored.counts["reasons"].items()):
        out.print(f"             {count:,} {reason}")
    effects = stored.effects
    if effects["usage"]:
        out.print(
            f"completed from {_told(effects['first'])} to {_told(effects['last'])}; {effects['windows_1m']:,} windows"
            f" of a minute and {effects['windows_1h']:,} of an hour change"
        )
        _usage(effects["usage"], "Usage that would be added")
    if effects["quotas"]:
        columns = ("tenant_id", "quota_id", "from", "to", "limit", "used", "after", "passes")
        listing(effects["quotas"], columns, title="Quotas")
    if stored.money:
        listing(stored.money, MONEY, title="Money, by rating it")
    elif stored.money is not None and stored.records:
        out.print("in money: nothing, since nobody pays for them")
    if stored.state == "planned" and stored.records:
        out.print(f"apply it: tollbook replay apply {stored.plan_id}")


def report(stored: StoredPlan, found: Replayed) -> None:
    """What applying came to."""
    out.print(
        f"{stored.plan_id}: {found.through:,} of {found.records:,} events are through: {found.applied:,} applied,"
        f" {found.duplicates:,} there by now, {found.quarantined:,} in quarantine"
    )
    if found.done:
        _usage(found.added, "Usage that was added")
        listing(_money(stored, found.added, found.moved), MONEY, title="Money")
        out.print(f"messages to the customers: tollbook replay show {stored.plan_id} --messages")


def _money(
    stored: StoredPlan, added: Sequence[Mapping[str, Any]], moved: Sequence[str]
) -> list[Mapping[str, Any]]:  # fmt: skip
    return came_out(stored.money or [], stored.effects["usage"], added, moved)


def _usage(usage: Sequence[Mapping[str, Any]], title: str) -> None:
    rows = [
        {"tenant_id": row["tenant_id"], "month": row["month"], "requests": row["requests"],
         "input": row["input_tokens"], "cached": row["cache_hit_tokens"], "output": row["output_tokens"]}
        for row in usage
    ]  # fmt: skip
    listing(rows, USAGE, title=title)


def messages(stored: StoredPlan) -> dict[str, str]:
    """A draft for each customer concerned, of what was added. Raises ReplayRefused before the plan is applied."""
    if stored.report is None:
        raise ReplayRefused(
            f"plan {stored.plan_id} is {stored.state}: customers are told what was added, once it is applied"
        )
    added = stored.report.get("added", stored.effects["usage"])
    usage: dict[str, list[Any]] = defaultdict(list)
    for row in added:
        usage[row["tenant_id"]].append(row)
    money = _money(stored, added, stored.report.get("moved", ()))
    drafts = {}
    for tenant, rows in sorted(usage.items()):
        mine = [row for row in money if row["tenant_id"] == tenant]
        first, last = (
            _told(of(filter(None, (row.get(name) for row in rows)), default=stored.effects[name]))
            for of, name in ((min, "first"), (max, "last"))
        )
        drafts[tenant] = customer_message(tenant, rows, mine, first=first, last=last)
    return drafts


def origin(stored: StoredPlan) -> str:
    """Where a plan's material comes from, in a line."""
    return ", ".join(f"{name} {value}" for name, value in stored.origin.items() if value)


def _told(text: str | None) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}" if text else ""
