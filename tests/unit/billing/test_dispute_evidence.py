"""The evidence of a dispute as values: usage by day, and texts within Stripe's limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from billing.presentation.dispute_evidence import TEXT_MAX, DailyUsage, evidence_texts
from billing.usage.usage_digest import BilledEvent

INVOICE: dict[str, Any] = {
    "number": "INV-1", "currency": "USD", "total": 1250, "period": "2026-10", "issue_date": "2026-11-02",
    "service_start": "2026-10-01T00:00:00Z", "service_end": "2026-11-01T00:00:00Z", "usage_digest": "ab12",
    "buyer": {"name": "Acme", "email": None},
}  # fmt: skip


def event(day: int, model: str, kind: Any = "usage", output: int = 7) -> BilledEvent:
    return BilledEvent(
        completed_at=datetime(2026, 10, 1, 23, 59, tzinfo=UTC) + timedelta(days=day), tenant_id="acme",
        request_id=f"r{day}", attempt=1, kind=kind, correction_no=0, model=model, adapter="", region="", tier="",
        status="ok", fault="none", usage_source="engine", input_tokens=10, cache_hit_tokens=4, output_tokens=output,
        gpu_us=0,
    )  # fmt: skip


def test_usage_is_added_up_by_day_and_model_and_a_correction_is_no_request() -> None:
    days = DailyUsage()
    for each in (event(1, "b"), event(0, "b"), event(0, "a"), event(0, "a", "correction", -2)):
        days.add(each)
    shown = [(r["day"], r["model"], r["requests"], r["input_tokens"], r["output_tokens"]) for r in days.rows]
    assert shown == [("2026-10-01", "a", 1, 20, 5), ("2026-10-01", "b", 1, 10, 7), ("2026-10-02", "b", 1, 10, 7)]


def test_the_texts_name_the_invoice_and_its_digest_and_keep_to_the_limit() -> None:
    days = DailyUsage()
    for day in range(30):
        for model in range(100):
            days.add(event(day, f"model-{model}"))
    texts = evidence_texts(INVOICE, days.rows)
    assert "customer_email_address" not in texts, "nothing is said where nothing is known"
    assert "3000 requests" in texts["product_description"]
    assert "12.5 USD" in texts["product_description"]
    assert "ab12" in texts["uncategorized_text"]
    log = texts["access_activity_log"]
    assert len(log) <= TEXT_MAX
    shown = log.count("\n") - 1
    assert log.endswith(f"... and {3000 - shown} more lines, available on request")
