"""Credits over a month: what was owed before, bought, drawn, expired, paid back, and is owed after. Pure.

Only a paid credit that was settled or invoiced is owed (2100); one that was given is a memo, and reduces income when it
is drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from billing.bills.credits import Grant, GrantKind
from billing.invoicing.credit_store import MovementKind
from billing.money import total
from billing.periods import BillingPeriod
from billing.reports.report import Amounts, Report, summed, table, ties

COLUMN_OF: Final[Mapping[MovementKind, str]] = {
    MovementKind.DRAWN: "drawn", MovementKind.RESTORED: "drawn", MovementKind.EXPIRED: "expired",
    MovementKind.REINSTATED: "expired", MovementKind.REFUNDED: "refunded", MovementKind.VOIDED: "voided",
}  # fmt: skip
COUNTS_FROM: Final = (MovementKind.SETTLED, MovementKind.INVOICED)
CHANGES: Final = ("granted", *dict.fromkeys(COLUMN_OF.values()))
COLUMNS: Final = (
    "billing_account", "grant_id", "kind", "owed", "currency", "opening", *CHANGES, "closing", "expires_at",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moved:
    """What is added to what is left of a grant, in major units, and when that is booked."""

    kind: MovementKind
    amount: Decimal
    booked_at: datetime


@dataclass(frozen=True, slots=True)
class GrantHistory:
    """A grant, whose it is, and all that moved it."""

    grant: Grant
    billing_account: str
    moved: Sequence[Moved]

    @property
    def since(self) -> datetime | None:
        """From when it is there: a paid one when its payment or its invoice was booked; None: not yet."""
        if self.grant.kind is not GrantKind.PAID:
            return self.grant.granted_at or self.grant.effective
        return min((each.booked_at for each in self.moved if each.kind in COUNTS_FROM), default=None)


def credit_report(histories: Iterable[GrantHistory], span: BillingPeriod, opening: Amounts, closing: Amounts) -> Report:
    """The roll-forward by grant; what takes away is negative. `opening`, `closing`: (currency, grant) → 2100."""
    rows = [row for each in histories if (row := _row(each, span)) is not None]
    rows.sort(key=lambda row: (row["currency"], not row["owed"], row["billing_account"], row["grant_id"]))
    owed = [row for row in rows if row["owed"]]
    reported = [
        summed(((row["currency"], row["grant_id"]), row[column]) for row in owed) for column in ("opening", "closing")
    ]
    return Report(
        "credits",
        table(rows, COLUMNS),
        (
            *ties("opening of what is owed = 2100 before", reported[0], opening),
            *ties("closing of what is owed = 2100", reported[1], closing),
        ),
        ("what is not owed is a memo: it was not paid for, and reduces income when it is drawn",),
    )


def _row(history: GrantHistory, span: BillingPeriod) -> dict[str, Any] | None:
    grant, since = history.grant, history.since
    if since is None or since >= span.end:
        return None
    before: list[Decimal] = [grant.amount] if since < span.start else []
    changes: dict[str, list[Decimal]] = defaultdict(list)
    if since >= span.start:
        changes["granted"].append(grant.amount)
    for each in history.moved:
        if each.kind in COUNTS_FROM or each.booked_at >= span.end:
            continue
        (before if each.booked_at < span.start else changes[COLUMN_OF[each.kind]]).append(each.amount)
    opening = total(before)
    if not opening and not changes:
        return None
    sums = {name: total(changes[name]) for name in CHANGES}
    return {
        "billing_account": history.billing_account, "grant_id": grant.grant_id, "kind": grant.kind.value,
        "owed": grant.kind is GrantKind.PAID, "currency": grant.currency, "opening": opening, **sums,
        "closing": total([opening, *sums.values()]), "expires_at": grant.expires,
    }  # fmt: skip
