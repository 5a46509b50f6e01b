"""What a dispute's evidence says: texts for the bank, and tables, from the invoice and the usage it bills. Pure.

Limits: https://docs.stripe.com/api/disputes/update (20,000 characters of a log or a text, 150,000 of all).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from billing.money import currency, from_minor, plain
from billing.periods import parse_period
from billing.usage.usage_digest import BilledEvent

TEXT_MAX: Final = 20_000
COLUMNS: Final = ("day", "tenant_id", "model", "requests", "input_tokens", "cache_hit_tokens", "output_tokens")


@dataclass(slots=True)
class DailyUsage:
    """Billed usage by UTC day of completion, tenant and model, added up as events pass."""

    _sums: dict[tuple[str, str, str], list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0, 0]))

    def add(self, event: BilledEvent) -> None:
        """Count an event; a correction is no request."""
        sums = self._sums[event.completed_at.date().isoformat(), event.tenant_id, event.model]
        counts = (event.kind == "usage", event.input_tokens, event.cache_hit_tokens, event.output_tokens)
        for place, count in enumerate(counts):
            sums[place] += count

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The days in order, as COLUMNS."""
        return [dict(zip(COLUMNS, (*key, *sums), strict=True)) for key, sums in sorted(self._sums.items())]


def evidence_texts(invoice: Mapping[str, Any], days: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The evidence as Stripe takes it, by field: who, what, when, how much, and a log of use by day."""
    money = currency(invoice["currency"], parse_period(invoice["period"]).end.date())
    total = f"{plain(Decimal(from_minor(invoice['total'], money)))} {invoice['currency']}"
    requests = sum(row["requests"] for row in days)
    texts = {
        "customer_name": invoice["buyer"]["name"],
        "customer_email_address": invoice["buyer"].get("email") or "",
        "service_date": f"{invoice['service_start'][:10]} to {invoice['service_end'][:10]} (UTC, end exclusive)",
        "product_description": (
            "Metered use of large language models over an API: each request of the customer's own credentials was"
            f" counted as it was served. {requests} requests in the service period, billed on invoice"
            f" {invoice['number']} over {total}."
        ),
        "access_activity_log": _log(days),
        "uncategorized_text": (
            f"Invoice {invoice['number']} of {invoice['issue_date']} over {total}. Every request on it can be listed"
            " with its time, model and token counts. SHA-256 digest over all billed requests, fixed when the invoice"
            f" was drawn up: {invoice['usage_digest'] or 'none'}."
        ),
    }
    return {name: text for name, text in texts.items() if text}


def _log(days: Sequence[Mapping[str, Any]]) -> str:
    """A line for each day and model, as many as fit; what does not is told."""
    lines = ["UTC day, model: requests, input tokens (of them cached), output tokens"]
    room = TEXT_MAX - len(lines[0]) - 100
    for number, row in enumerate(days):
        line = (
            f"{row['day']} {row['model']}: {row['requests']} requests, {row['input_tokens']}"
            f" ({row['cache_hit_tokens']}), {row['output_tokens']}"
        )
        room -= len(line) + 1
        if room < 0:
            lines.append(f"... and {len(days) - number} more lines, available on request")
            break
        lines.append(line)
    return "\n".join(lines)
