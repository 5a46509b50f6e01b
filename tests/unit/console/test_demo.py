"""`make demo` fails where what it is to show did not happen."""

from __future__ import annotations

import pytest

from console import demo
from console.demo_webhooks import Delivered
from devstack.stack import STRIPE_API


def test_a_reply_that_was_to_be_lost_and_was_not_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRIPE_API, "http://127.0.0.1:1")
    assert demo._show_lost(1, issued=300) == []
    assert demo._show_lost(0, issued=0) == [], "a second run has nothing to send"
    assert "no reply was lost" in demo._show_lost(0, issued=300)[0]
    monkeypatch.delenv(STRIPE_API)
    assert demo._show_lost(0, issued=300) == [], "Stripe itself loses replies when it likes"


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        (None, False),
        (Delivered("INV-1", webhooks=4, events=2, moved=1, booked=1), False),
        (Delivered("INV-1", webhooks=2, events=2, moved=1, booked=1), True),
        (Delivered("INV-1", webhooks=4, events=1, moved=1, booked=1), True),
        (Delivered("INV-1", webhooks=4, events=2, moved=2, booked=1), True),
        (Delivered("INV-1", webhooks=4, events=2, moved=0, booked=0), True),
    ],
)
def test_webhooks_that_did_not_come_twice_or_were_not_kept_once_are_a_failure(
    told: Delivered | None, wrong: bool
) -> None:
    assert bool(demo._show_told(told)) == wrong
