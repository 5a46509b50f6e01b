"""Limiting a tenant that floods: the refusal, and the alerts at its begin and end. Pure but for the alerts' type."""

from __future__ import annotations

from streams.alerts import Alert
from streams.quotas.book import TenantBook
from streams.quotas.calendar import moment
from streams.quotas.decisions import Ask, Refused, Wall
from streams.quotas.definitions import Quota
from streams.quotas.volume import FLOOD_FROM

FLOOD_QUOTA = "flood"
"""What the limit is called in refusals."""


def shed(ask: Ask, book: TenantBook, now: int) -> Refused | None:
    """The refusal of a request of a tenant that floods, unless it is among those that go through; counts it."""
    if book.volume.lets_through():
        return None
    limit = book.volume.limit
    quota = Quota(
        ask.tenant_id, "", "", "", "minute", "requests", limit, True, (), "deny", 1, 0, None, moment(now)
    )  # fmt: skip
    object.__setattr__(quota, "quota_id", FLOOD_QUOTA)
    wall = Wall(quota, "flood", 1, 0, book.volume.wait_us(now))
    return Refused(ask, now, (wall,), tuple(book.meters.standings(ask.model, ask.adapter, now)))


def count(book: TenantBook, requests: int, now: int) -> list[Alert]:
    """Count requests that were asked for; alerts if a flood is over, or begins with them."""
    volume = book.volume
    found = []
    since = volume.since
    if volume.turn(now) == "calm":
        found.append(_alert(book, "quota_flood_over", since, now, "asks for its usual volume again: not limited"))
    if requests and volume.ask(now, requests) == "flood":
        text = f"asks for more than {FLOOD_FROM} times its usual volume: limited to {volume.limit} requests a minute"
        found.append(_alert(book, "quota_flood", now, now, text))
    return found


def _alert(book: TenantBook, kind: str, since: int, now: int, text: str) -> Alert:
    subject = {"since": moment(since).isoformat()}
    return Alert(kind, book.tenant_id, subject, f"{book.tenant_id} {text}", moment(now))
