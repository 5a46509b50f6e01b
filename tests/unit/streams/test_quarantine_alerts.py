"""Which alerts refused messages raise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from streams.ingest.quarantine_alerts import alerts_of
from streams.rules.chunks import Record, Refused
from tests.builders import RECEIVED

SOURCE = "kafka:t.usage.v1/3"
NOW = datetime(2026, 12, 1, tzinfo=UTC)


def refused(position: int, reason: str, tenant_id: str | None, at: datetime = RECEIVED) -> Refused:
    return Refused(Record(position, None, b"{torn", at), reason, f"detail {position}", tenant_id)


def test_one_alert_for_each_tenant_or_source_reason_and_hour() -> None:
    later = RECEIVED + timedelta(hours=1)
    messages = [
        refused(1, "conflict", "a"),
        refused(2, "conflict", "a", RECEIVED + timedelta(minutes=59)),
        refused(3, "conflict", "b"),
        refused(4, "invalid", "a"),
        refused(5, "conflict", "a", later),
        refused(6, "torn", None),
        refused(7, "torn", None),
    ]
    found = alerts_of(SOURCE, messages, {"a", "b"}, NOW)
    first = RECEIVED.isoformat()
    assert [(alert.kind, alert.key, alert.subject) for alert in found] == [
        ("quarantine", "a", {"tenant_id": "a", "reason": "conflict", "hour": first}),
        ("quarantine", "b", {"tenant_id": "b", "reason": "conflict", "hour": first}),
        ("quarantine", "a", {"tenant_id": "a", "reason": "invalid", "hour": first}),
        ("quarantine", "a", {"tenant_id": "a", "reason": "conflict", "hour": later.isoformat()}),
        ("quarantine", SOURCE, {"source": SOURCE, "reason": "torn", "hour": first}),
    ]
    assert "position 1: detail 1" in found[0].detail


def test_whatever_strangers_are_named_there_is_one_alert() -> None:
    messages = [refused(position, "unknown_tenant", f"stranger-{position}") for position in range(100)]
    (alert,) = alerts_of(SOURCE, messages, set(), NOW)
    assert alert.key == SOURCE


def test_an_alerts_id_is_the_same_whoever_raises_it_and_whenever() -> None:
    elsewhere = RECEIVED.astimezone(timezone(timedelta(hours=5, minutes=30)))
    (one,) = alerts_of(SOURCE, [refused(1, "conflict", "a")], {"a"}, NOW)
    (again,) = alerts_of("release:9", [refused(0, "conflict", "a", elsewhere)], {"a"}, NOW + timedelta(days=1))
    assert one.alert_id == again.alert_id
