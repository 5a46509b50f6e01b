"""Unit tests need no service, and reach none that the environment names."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell has for `tollbook` is not for these: a replica in a test would report to its Kafka."""
    for name in ("TOLLBOOK_KAFKA", "TOLLBOOK_DATABASE_URL", "TOLLBOOK_STRIPE_API", "TOLLBOOK_STRIPE_KEY"):
        monkeypatch.delenv(name, raising=False)
