"""What follows from a replay in money, and how a customer is told. Values only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from billing.money import currency, plain, round_to_quantum
from billing.periods import parse_period


@dataclass(frozen=True, slots=True)
class MoneyEffect:
    """What a replay changes of a tenant's billing period: exact, in major units; as of when the plan was made."""

    tenant_id: str
    billing_account: str
    period: str
    currency: str
    amount: Decimal
    frozen: bool
    """Its usage is cut (docs/spec/money.md 1), or its invoice frozen: what comes now is late."""
    books_closed: bool
    tenant_closed: bool = False
    unbillable: int = 0
    """Events that came later than the contract bills."""
    problem: str = ""
    cut: bool = False
    """Cut by a close that has not frozen its invoice yet."""
    reopen: str = ""
    """The month of that close, where the account may be reopened; '' where it may not."""
    without_invoice: bool = False
    """Closed with nothing to bill."""

    @property
    def follows(self) -> str:
        """What becomes of it (docs/spec/money.md 7)."""
        if self.problem:
            return self.problem
        if self.unbillable:
            told = f"{self.unbillable} events are later than the contract bills: into the register of {self.period}"
            return told + (f", the rest as {self._document}" if self.amount else "")
        return self._document

    @property
    def _document(self) -> str:
        if not self.frozen:
            return f"counted: on the invoice of {self.period} when it is drawn up"
        booked = ", booked in the open month" if self.books_closed else ""
        stands = "cut" if self.cut else "closed without an invoice" if self.without_invoice else "invoiced"
        return f"{self.period} is {stands}{self._late(booked)}{self._reopening}"

    def _late(self, booked: str) -> str:
        if not self.amount:
            return "; no amount changes"
        if self.amount < 0:
            return f": a credit note against its invoice{booked}"
        if self.tenant_closed:
            return f" and the tenant closed: an adjustment invoice of its own{booked}"
        return f": a line on the next invoice of {self.billing_account}{booked}"

    @property
    def _reopening(self) -> str:
        if not (self.reopen and self.amount):
            return ""
        return (
            f"; on the invoice of {self.period} itself only if it is cut anew, before another plan is applied:"
            f" `tollbook close reopen {self.reopen} {self.billing_account}`"
        )

    def as_document(self) -> dict[str, Any]:
        """For storing and showing."""
        return {
            "tenant_id": self.tenant_id, "billing_account": self.billing_account, "period": self.period,
            "currency": self.currency, "amount": plain(self.amount), "frozen": self.frozen,
            "cut": self.cut, "without_invoice": self.without_invoice, "tenant_closed": self.tenant_closed,
            "unbillable": self.unbillable,
            "problem": self.problem, "follows": self.follows,
        }  # fmt: skip


def came_out(
    money: Sequence[Mapping[str, Any]],
    planned: Sequence[Mapping[str, Any]],
    added: Sequence[Mapping[str, Any]],
    moved: Collection[str] = (),
) -> list[Mapping[str, Any]]:
    """A plan's money effects once it is applied: of tenants of whom other usage was added than planned, none is known.

    Nor of accounts whose period was cut or invoiced meanwhile: `moved`, as `account period`. `planned` and `added` are
    usage by tenant and month, as in a plan's effects.
    """
    then, now = (
        {(r["tenant_id"], r["month"]): tuple(r[name] for name in _ADDED) for r in of} for of in (planned, added)
    )
    others = {key[0] for key in then.keys() | now.keys() if then.get(key, _NONE) != now.get(key, _NONE)}
    told = []
    for row in money:
        if row["tenant_id"] in others:
            row = {**row, **_unknown("not what was planned was added, since more came meanwhile")}
        elif f"{row['billing_account']} {row['period']}" in moved:
            row = {**row, **_unknown(f"how far {row['period']} is changed while it was applied: some may be late")}
        told.append(row)
    return told


def _unknown(why: str) -> dict[str, Any]:
    why += ": it is billed as any usage"
    return {"amount": "0", "currency": "", "unbillable": 0, "problem": why, "follows": why}


_ADDED: Final = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens")
_NONE: Final = (0,) * len(_ADDED)
_RECORDED_LATE: Final = (
    "Usage that was recorded late",
    "Some of your requests between {first} and {last} (UTC) were served, but their usage records did not reach our"
    " billing system at the time. We found the records and have added them, each once.",
    "What was added",
)
_TAKEN_BACK: Final = (
    "Usage that is taken back",
    "Between {first} and {last} (UTC) more was recorded for you than you used. We have taken it back.",
    "What was taken back",
)


def customer_message(
    tenant_id: str, usage: Sequence[Mapping[str, Any]], money: Sequence[Mapping[str, Any]], *, first: str, last: str
) -> str:
    """A draft for a person to read and send: what happened, what is counted now, what it costs and where it appears.

    `usage` is what was added for the tenant by month, `money` what that comes to.
    """
    taken_back = all(row[name] <= 0 for row in usage for name in _ADDED)
    subject, what, done = _TAKEN_BACK if taken_back else _RECORDED_LATE
    lines = [f"To: {tenant_id}", f"Subject: {subject}", "", what.format(first=first, last=last), "", f"{done}:"]
    sign = -1 if taken_back else 1
    lines += [
        f"  {row['month']}: {sign * row['requests']:,} requests, {sign * row['input_tokens']:,} input tokens"
        f" ({sign * row['cache_hit_tokens']:,} of them cached), {sign * row['output_tokens']:,} output tokens"
        for row in usage
    ]
    lines += ["", "What it means for your bill:"]
    for row in money:
        lines.append(f"  {row['period']}: {_plain(row, Decimal(row['amount']))}")
    if not money:
        lines.append("  Nothing: none of it is billed.")
    lines += [
        "",
        "Your usage page shows the corrected numbers now. If the correction used up a quota of a period that is over,"
        " nothing that you were allowed then is taken back.",
        "We are sorry for the late correction. Answer this message if a number is not clear.",
    ]
    return "\n".join(lines)


def _plain(row: Mapping[str, Any], amount: Decimal) -> str:
    if row.get("problem"):
        return "We are still working out what it comes to, and will tell you."
    money = currency(row["currency"], parse_period(row["period"]).end.date())
    billed = f"{round_to_quantum(amount, money.quantum):,} {money.code} before tax. {_where(row, amount)}"
    if not row.get("unbillable"):
        return billed
    late = f"{row['unbillable']:,} of these requests are older than what we bill: they are not charged."
    return f"{late} The others: {billed}" if amount else late


def _where(row: Mapping[str, Any], amount: Decimal) -> str:
    if not row["frozen"]:
        return f"It is part of your invoice for {row['period']}, which is not issued yet."
    if not amount:
        stays = f"Your invoice for {row['period']} stays as it is."
        return "Nothing is charged." if row.get("without_invoice") else stays
    if amount < 0:
        return f"You get a credit note for your invoice of {row['period']}."
    next_one = "the amount is a line of its own on the next one"
    on = "you get an invoice of its own for the amount" if row.get("tenant_closed") else next_one
    if row.get("without_invoice"):
        return f"You had no invoice for {row['period']}; {on}."
    stays = "is drawn up without it" if row.get("cut") else "stays as it is"
    return f"Your invoice for {row['period']} {stays}; {on}."
