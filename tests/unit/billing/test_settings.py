"""Which Stripe billing talks to."""

from __future__ import annotations

import pytest

from billing.settings import StripeSettings
from serving_adapter.settings import SettingsError


def test_settings_come_from_the_environment_and_never_show_the_key() -> None:
    found = StripeSettings.from_environment({"TOLLBOOK_STRIPE_KEY": "sk_test_1", "TOLLBOOK_STRIPE_API": "http://twin"})
    assert (found.key, found.api, found.is_live) == ("sk_test_1", "http://twin", False)
    assert "sk_test_1" not in repr(found)
    assert StripeSettings.from_environment({"TOLLBOOK_STRIPE_KEY": "sk_live_1"}).is_live


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "TOLLBOOK_STRIPE_KEY is not set"),
        ({"TOLLBOOK_STRIPE_KEY": ""}, "TOLLBOOK_STRIPE_KEY is not set"),
        ({"TOLLBOOK_STRIPE_KEY": "sk_live_1", "TOLLBOOK_STRIPE_API": "http://twin"}, "live key"),
        ({"TOLLBOOK_STRIPE_KEY": "rk_live_1", "TOLLBOOK_STRIPE_API": "http://twin"}, "live key"),
    ],
)
def test_what_would_be_dangerous_or_useless_is_refused(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        StripeSettings.from_environment(environment)
